"""The command `vidchat`: one group of commands for each thing people do beside training and answering."""

from __future__ import annotations

import vidchat.threads  # noqa: F401  (before torch)

# isort: split
import typer

from vidchat.cli import data, model
from vidchat.cli.bench import app as bench

app = typer.Typer(
    help="SpeakerVid-5M's data and VidChatBench. Training is train.py, one answer is infer.py.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.add_typer(bench, name="bench")


@app.callback()
def main() -> None:
    """Groups of commands; each says with --help what it does."""

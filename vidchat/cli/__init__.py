"""The command `vidchat`: settings are KEY=VALUE, files are arguments or `--output`, switches are flags."""

from __future__ import annotations

import vidchat.runtime.threads  # noqa: F401  (before torch)

# isort: split
from functools import partial
from typing import Annotated

import typer

from vidchat.cli import data, model, release
from vidchat.cli.bench import app as bench

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.add_typer(bench, name="bench")
app.add_typer(release.app, name="release")


# These commands parse their words themselves, --help included.
_passed_on = partial(
    app.command,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=False,
)
Words = Annotated[list[str] | None, typer.Argument(help="Words of the command; --help lists them.", show_default=False)]


@_passed_on("train")
def _train(words: Words = None) -> None:
    """Trains one stage: vidchat train stage=pretrain_av data=folder data.root=DIR"""
    from vidchat.cli.train import main

    main(words or [])


@_passed_on("infer")
def _infer(words: Words = None) -> None:
    """Answers a clip: vidchat infer initiator=CLIP.mp4 reference=FACE.png checkpoint=DIR output=OUT.mp4"""
    from vidchat.cli.infer import main

    main(words or [])


@_passed_on("people")
def _people(words: Words = None) -> None:
    """Renders a small data set of people who talk: vidchat people --output DIR --dialogues 24"""
    from vidchat.playground.people.__main__ import main

    main(words or [])


@_passed_on("demo")
def _demo(words: Words = None) -> None:
    """Trains and scores a model on rendered people and writes a page of its answers: vidchat demo --minutes 15"""
    from vidchat.playground.demo.__main__ import main

    main(words or [])


@app.callback()
def main() -> None:
    """Trains and runs an audio-visual video-chat model, prepares its data, and benchmarks any such model.

    --help after a command describes it.
    """

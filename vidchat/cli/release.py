"""`vidchat release`: the model card of a release, and its way to the Hub."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidchat.cli.settings import Settings, command_with, read_settings
from vidchat.model_card import CardDetails
from vidchat.runtime.errors import user_errors

if TYPE_CHECKING:
    from vidchat.release import Release

app = typer.Typer(help="Releases: their model card, and the Hub.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(metavar="RELEASE", help="Folder of the release, or its name on the Hub.")]


@dataclass(frozen=True)
class ReleaseSettings(CardDetails):
    """Settings of both commands.

    Attributes:
        trust: Packages whose parts the release may have, e.g. [mylab]; their code is run.
    """

    trust: tuple[str, ...] = ()


@app.callback()
def main() -> None:
    """Commands about a release."""


@app.command(cls=command_with(lambda: [ReleaseSettings]))
def card(
    release: Source,
    settings: Settings = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of printing.")] = None,
) -> None:
    """Prints the model card of a release: sizes, training, figures, how to run it.

    vidchat release card outputs/sft_dyadic/release name=owner/name license=cc-by-nc-4.0 results=RESULTS/scores.json
    """
    with user_errors():
        loaded, details = _load(release, settings)
        text = loaded.model_card(release, details)
        if output is not None:
            from vidchat.runtime.atomic import write_text

            write_text(output, text)
            return
    typer.echo(text)


@app.command(cls=command_with(lambda: [ReleaseSettings]))
def push(
    release: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder of the release.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Repository on the Hub, OWNER/NAME or OWNER/NAME@BRANCH.")
    ],
    settings: Settings = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is new.")] = False,
) -> None:
    """Uploads a release and its model card to the Hub, in one commit.

    The card is the folder's README.md if that is one (see `vidchat release card -o`); else it is made now.

    vidchat release push outputs/sft_dyadic/release OWNER/NAME license=cc-by-nc-4.0 --private
    """
    with user_errors():
        loaded, details = _load(release, settings)
        typer.echo(loaded.push_to_hub(target, details, private))


def _load(source: str, words: list[str] | None) -> tuple[Release, CardDetails]:
    """The release, and what its card says beside what it knows."""
    from vidchat.release import load_release

    given = read_settings(ReleaseSettings, words)
    values: dict[str, Any] = {field.name: getattr(given, field.name) for field in fields(CardDetails)}
    return load_release(source, trust=given.trust), CardDetails(**values)

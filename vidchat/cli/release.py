"""`vidchat release`: prints the model card of a release and uploads releases to the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidchat.cli.settings import Settings, command_with, read_two
from vidchat.runtime.errors import user_errors

if TYPE_CHECKING:
    from vidchat.release import Release
    from vidchat.release.model_card import CardDetails

app = typer.Typer(help="Releases: their model card, and the Hub.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(metavar="RELEASE", help="Folder of the release, or its name on the Hub.")]


@dataclass(frozen=True)
class ReleaseSettings:
    """Settings of both commands besides those of the card.

    Attributes:
        trust: Packages whose classes the release may name, e.g. [mylab]; their code is run.
    """

    trust: tuple[str, ...] = ()


def _settings() -> tuple[type, ...]:
    from vidchat.release.model_card import CardDetails

    return CardDetails, ReleaseSettings


@app.callback()
def main() -> None:
    """Commands about a release."""


@app.command(cls=command_with(_settings))
def card(
    release: Source,
    settings: Settings = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of printing.")] = None,
) -> None:
    """Prints the model card of a release: its size, training, results and commands.

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


@app.command(cls=command_with(_settings))
def push(
    release: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder of the release.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Repository on the Hub, OWNER/NAME or OWNER/NAME@BRANCH.")
    ],
    settings: Settings = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is new.")] = False,
) -> None:
    """Uploads a release and its model card to the Hub, in one commit.

    The card is the folder's README.md if that is a model card (see `vidchat release card -o`); otherwise it is made.

    vidchat release push outputs/sft_dyadic/release OWNER/NAME license=cc-by-nc-4.0 --private
    """
    with user_errors():
        loaded, details = _load(release, settings)
        typer.echo(loaded.push_to_hub(target, details, private))


def _load(source: str, words: list[str] | None) -> tuple[Release, CardDetails]:
    """Returns the release, and the facts for its card that it does not hold."""
    from vidchat.release import load_release
    from vidchat.release.model_card import CardDetails

    details, settings = read_two(CardDetails, ReleaseSettings, words)
    return load_release(source, trust=settings.trust), details

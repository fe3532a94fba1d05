"""`vidchat data stats | show`: how much there is, and what it looks like."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidchat.cli.settings import Settings, command_with, read_settings
from vidchat.dialogue import Branch, Split, Tier
from vidchat.runtime.errors import user_errors

if TYPE_CHECKING:
    from vidchat.data.report import Report
    from vidchat.data.show import Decoders, Packed
    from vidchat.data.stats import Distributions
    from vidchat.data.tokens.media_shards import MediaShards
    from vidchat.data.tokens.token_folder import TokenFolder


@dataclass(frozen=True)
class ShowSettings:
    """Choice of dialogues to show, and the tokenizers where only tokens are there.

    Attributes:
        count: Number of dialogues.
        branch: Branch of the dialogues; null is any.
        tier: Tier of the dialogues; null is any.
        split: Split of the dialogues; null is any.
        seed: Seed of the choice.
        video_vae: Decoder of video tokens, a name of configs/video_vae or the folder of a saved one.
        audio_codec: Decoder of audio tokens, a name of configs/audio_codec or a folder; none shows video alone.
    """

    count: int = 5
    branch: Branch | None = None
    tier: Tier | None = None
    split: Split | None = None
    seed: int = 0
    video_vae: str = "demo"
    audio_codec: str = "demo"


def register(group: typer.Typer) -> None:
    """Adds the commands to a group."""
    group.command()(stats)
    group.command(cls=command_with(lambda: (ShowSettings,)))(show)


def stats(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="The data folder, or a manifest.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The plot to write; DATA/stats.png by default.")
    ] = None,
) -> None:
    """Counts dialogues and hours by branch and tier, and plots the distributions of the clips.

    Where clips lie in media shards, the shards are counted; where a folder holds tokens alone, the tokens.
    """
    with user_errors():
        from vidchat.data.folder import MANIFESTS, FolderError
        from vidchat.data.report import Report
        from vidchat.data.stats import MANIFEST, dialogue_table, draw

        if not data.exists():
            raise FolderError(f"{data}: is not there; give a data folder, or a manifest")
        manifest = data / MANIFEST if data.is_dir() else data
        elsewhere = clips_elsewhere(data) if data.is_dir() and not manifest.is_file() else None
        if data.is_dir() and (any((data / name).is_file() for name in MANIFESTS) or not manifest.is_file()):
            report = Report("dialogues")
            print_table(dialogue_table(data, elsewhere, report))
            _print_skipped(report)
        else:
            print("no dialogues yet; derive them with 'vidchat data branches'")
        found, rows = _distributions(data, manifest, elsewhere)
        plot = output or manifest.parent / "stats.png"
        draw(found, plot)
        print(f"{found.clips:,} {rows}, {found.hours:,.2f} hours; distributions: {plot}")


def _distributions(
    data: Path, manifest: Path, elsewhere: MediaShards | TokenFolder | None
) -> tuple[Distributions, str]:
    """The distributions of the clips, wherever they are, and what is counted as one; prints what is not known."""
    from vidchat.data.manifest.sources import ingest_folder
    from vidchat.data.stats import distributions, distributions_elsewhere
    from vidchat.data.tokens.token_folder import TokenFolder

    if isinstance(elsewhere, TokenFolder):
        print(
            f"the clips are not here: hours are those of the tokens, at most {elsewhere.latents.made['longest']} "
            "chunks of an answer or turn, and the resolution of the video is not known"
        )
        return distributions_elsewhere(data, elsewhere, "tokens"), "clips"
    if elsewhere is not None:
        print(
            f"the clips lie in media shards, {elsewhere.count:,} of them: hours are those that the dialogues or "
            "the clips' headers give; no frame was decoded, and the resolution is not counted"
        )
        return distributions_elsewhere(data, elsewhere, "media shards"), "clips"
    if manifest.is_file() or not data.is_dir():
        return distributions(manifest), "clips"
    with tempfile.TemporaryDirectory() as place:  # a folder without a manifest: one is made in passing
        ingest_folder(data, Path(place) / "clips.parquet")
        found = distributions(Path(place) / "clips.parquet")
    return found, "turns (a clip counts in every dialogue that it is part of)"


def _print_skipped(report: Report, most: int = 10) -> None:
    for where, why in report.skipped[:most]:
        print(f"left out: {where}: {why}")
    if len(report.skipped) > most:
        print(f"left out: {len(report.skipped) - most:,} more")


def clips_elsewhere(data: Path) -> MediaShards | TokenFolder | None:
    """Returns the media shards of a folder, or else its tokens, if none of its first clips is there as a file."""
    from itertools import islice

    from vidchat.data.folder import entries, make_dialogue, manifest_of, parse_entry
    from vidchat.data.tokens.media_shards import MediaShards
    from vidchat.data.tokens.token_cache import TOKENS
    from vidchat.data.tokens.token_folder import TokenFolder

    for _, entry in islice(entries(manifest_of(data)), 100):
        try:
            make_dialogue(data, parse_entry(entry))
        except (ValueError, TypeError, OSError):
            continue
        return None
    packed = MediaShards(data)
    if packed.count:
        return packed
    return TokenFolder(data) if (data / TOKENS).is_dir() else None


def print_table(table: list[dict[str, Any]]) -> None:
    """Prints dialogues and hours by branch and tier."""
    from rich.console import Console
    from rich.table import Table

    from vidchat.data.stats import by_branch_and_tier

    grid = Table()
    for name in ("branch", "tier"):
        grid.add_column(name)
    for name in ("dialogues", "hours", "hours of answers", "train", "val", "test"):
        grid.add_column(name, justify="right")
    for row in by_branch_and_tier(table):
        name = row["branch"] + (f", {row['kind'].replace('_', '-')}" if row["kind"] else "")
        hours = (f"{row[key]:,.{2 if row[key] < 100 else 0}f}" for key in ("hours", "answer_hours"))
        counts = (f"{row[key]:,}" for key in ("train", "val", "test"))
        grid.add_row(name, row["tier"], f"{row['dialogues']:,}", *hours, *counts)
    Console(width=max(100, Console().width)).print(grid)


def show(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="The data folder.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A page (.html) or a contact sheet (.png) to write; DATA/show.html by default."
        ),
    ] = None,
    settings: Settings = None,
) -> None:
    """Shows some dialogues: a page with their clips, words and scores that needs no other file.

    Clips in media shards are shown from there. Where there are tokens alone, the tokenizers that made them decode them.
    """
    with user_errors():
        from vidchat.data.show import Choice
        from vidchat.data.show import show as run

        chosen = read_settings(ShowSettings, settings)
        page = output or data / "show.html"
        elsewhere = _shown_from(data, chosen.video_vae, chosen.audio_codec)
        number = run(data, page, Choice(chosen.branch, chosen.tier, chosen.split), chosen.count, chosen.seed, elsewhere)
        print(f"{number} dialogues: {page}")


def _shown_from(data: Path, video_vae: str, audio_codec: str) -> Packed | Decoders | None:
    """Returns the source of clips that are no files; decoders are checked to be those that made the tokens."""
    from vidchat.cli.data_encode import tokenizers
    from vidchat.data.show import Decoders, Packed
    from vidchat.data.tokens.media_shards import MediaShards

    tokens = clips_elsewhere(data)
    if tokens is None:
        return None
    if isinstance(tokens, MediaShards):
        return Packed(tokens)
    video, audio = tokenizers(video_vae, "none" if tokens.codes is None else audio_codec)
    tokens.check(video, "latents")
    if audio is not None:
        tokens.check(audio, "codes")
    return Decoders(tokens, video, audio)

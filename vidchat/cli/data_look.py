"""`vidchat data stats | show`: counts of a data set, and sample dialogues."""

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
    """Selection of dialogues to show, and tokenizers for folders with tokens alone.

    Attributes:
        count: Number of dialogues.
        branch: Branch of the dialogues; null is any.
        tier: Tier of the dialogues; null is any.
        split: Split of the dialogues; null is any.
        seed: Seed of the choice.
        video_vae: Decoder of video tokens: a name of configs/video_vae or the folder of a saved tokenizer.
        audio_codec: Decoder of audio tokens: a name of configs/audio_codec or a folder; none shows video alone.
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

    For a folder with media shards, the clips in the shards are counted; for a folder with tokens alone, the tokens.
    """
    with user_errors():
        from vidchat.data.folder import MANIFESTS, FolderError
        from vidchat.data.report import Report
        from vidchat.data.stats import MANIFEST, dialogue_table, draw

        if not data.exists():
            raise FolderError(f"{data} does not exist; give a data folder or a manifest")
        manifest = data / MANIFEST if data.is_dir() else data
        store = find_store(data) if data.is_dir() and not manifest.is_file() else None
        if data.is_dir() and (any((data / name).is_file() for name in MANIFESTS) or not manifest.is_file()):
            report = Report("dialogues")
            print_table(dialogue_table(data, store, report))
            _print_skipped(report)
        else:
            print("no dialogues yet; derive them with 'vidchat data branches'")
        result, unit = _distributions(data, manifest, store)
        plot = output or manifest.parent / "stats.png"
        draw(result, plot)
        print(f"{result.clips:,} {unit}, {result.hours:,.2f} hours; distributions: {plot}")


def _distributions(data: Path, manifest: Path, store: MediaShards | TokenFolder | None) -> tuple[Distributions, str]:
    """Returns the distributions of the clips, and the name of the counted unit; prints what is unknown."""
    from vidchat.data.manifest.sources import ingest_folder
    from vidchat.data.stats import manifest_distributions, store_distributions
    from vidchat.data.tokens.token_folder import TokenFolder

    if isinstance(store, TokenFolder):
        print(
            f"the clips do not exist here: hours are those of the tokens, at most {store.latents.made['longest']} "
            "chunks of an answer or turn, and the resolution is unknown"
        )
        return store_distributions(data, store, "tokens"), "clips"
    if store is not None:
        print(
            f"{store.count:,} clips lie in media shards: hours are from the dialogues or the clips' headers; "
            "no frame was decoded, and the resolution is unknown"
        )
        return store_distributions(data, store, "media shards"), "clips"
    if manifest.is_file() or not data.is_dir():
        return manifest_distributions(manifest), "clips"
    with tempfile.TemporaryDirectory() as folder:  # a temporary manifest for a folder without one
        ingest_folder(data, Path(folder) / "clips.parquet")
        result = manifest_distributions(Path(folder) / "clips.parquet")
    return result, "turns (a clip counts once in every dialogue)"


def _print_skipped(report: Report, most: int = 10) -> None:
    for position, reason in report.skipped[:most]:
        print(f"left out: {position}: {reason}")
    if len(report.skipped) > most:
        print(f"left out: {len(report.skipped) - most:,} more")


def find_store(data: Path) -> MediaShards | TokenFolder | None:
    """Returns the media shards of a folder, or else its tokens; `None` if its first clips exist as files."""
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
    """Prints a table of dialogues and hours by branch and tier."""
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
    """Shows sample dialogues on a self-contained page with clips, text and scores.

    Clips are also read from media shards. Tokens without clips are decoded by the tokenizers that made them.
    """
    with user_errors():
        from vidchat.data.show import Choice
        from vidchat.data.show import show as run

        chosen = read_settings(ShowSettings, settings)
        page = output or data / "show.html"
        store = _decoding_store(data, chosen.video_vae, chosen.audio_codec)
        shown = run(data, page, Choice(chosen.branch, chosen.tier, chosen.split), chosen.count, chosen.seed, store)
        print(f"{shown} dialogues: {page}")


def _decoding_store(data: Path, video_vae: str, audio_codec: str) -> Packed | Decoders | None:
    """Returns the store of clips that are no files; checks that the tokenizers are those that made the tokens."""
    from vidchat.cli.data_encode import tokenizers
    from vidchat.data.show import Decoders, Packed
    from vidchat.data.tokens.media_shards import MediaShards

    store = find_store(data)
    if store is None:
        return None
    if isinstance(store, MediaShards):
        return Packed(store)
    video, audio = tokenizers(video_vae, "none" if store.codes is None else audio_codec)
    store.check(video, "latents")
    if audio is not None:
        store.check(audio, "codes")
    return Decoders(store, video, audio)

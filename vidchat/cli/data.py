"""`vidchat data`: from annotations or own videos to the data set that training reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vidchat.cli import data_encode, data_look
from vidchat.cli.data_look import print_table
from vidchat.cli.settings import Settings, command_with, read_settings, read_two
from vidchat.runtime.errors import user_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vidchat.data.manifest.cut_video import CutReport

app = typer.Typer(
    help="Data: ingest annotations, cut clips, derive branches and tiers, count them, look at them.",
    no_args_is_help=True,
)
Manifest = Annotated[
    Path, typer.Argument(metavar="MANIFEST", help="The manifest, clips.parquet, or the folder that holds it.")
]
Folder = Annotated[Path, typer.Option("--output", "-o", help="The data folder to write to.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Count the work without writing anything.")]
TERMS = """\
SpeakerVid-5M is released for non-commercial research and education only. Its videos are not part of it: they belong to
the people who published them on YouTube, whose terms of service apply, and must be removed where their owners ask for
it. Whoever downloads them does so in their own name and must have the right to."""


@dataclass(frozen=True)
class IngestSettings:
    """Settings of `ingest`.

    Attributes:
        source: Layout of the folder of annotations.
        workers: Number of processes; null is one per CPU.
    """

    source: Literal["speakervid", "seamless_interaction", "folder"] = "speakervid"
    workers: int | None = None


@dataclass(frozen=True)
class CutWork:
    """Division of the work of `cut`.

    Attributes:
        part: Share of the source videos for this machine, k/n: share k, from 0, of n.
        workers: Number of processes; null is one per CPU.
    """

    part: str = "0/1"
    workers: int | None = None

    def share(self) -> tuple[int, int]:
        """Returns (k, n). Raises `ValueError`."""
        index, _, count = self.part.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError(f"part must be k/n with k from 0 to n-1, such as 0/8, not {self.part!r}")
        return int(index), int(count)


@dataclass(frozen=True)
class DialogueFiles:
    """Files that `branches` reads and writes, beside the manifest.

    Attributes:
        media: Folder of source files that the dialogues refer to in place of cut clips.
        format: Format of the dialogues; null is parquet for more than 200,000 clips, else jsonl.
    """

    media: Path | None = None
    format: Literal["jsonl", "parquet"] | None = None


def _cut_settings() -> Sequence[type]:
    from vidchat.data.manifest.cut_video import CutSettings

    return CutSettings, CutWork


def _branch_settings() -> Sequence[type]:
    from vidchat.data.manifest.dialogues import DeriveSettings

    return DeriveSettings, DialogueFiles


@app.command(cls=command_with(lambda: (IngestSettings,)))
def ingest(
    annotations: Annotated[
        Path,
        typer.Argument(metavar="ANNOTATIONS", help="Folder of the annotations, or of your own clips and dialogues."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The Parquet file to write, usually DATA/clips.parquet.")
    ],
    settings: Settings = None,
) -> None:
    """Reads annotations into a manifest: one Parquet file with a row for each clip.

    Archives are read in place. Damaged records are left out and listed with their reasons in <output>.damaged.jsonl;
    <output>.report.json sums up what was read, damaged and missing. The same command resumes a killed run.
    """
    with user_errors():
        chosen = read_settings(IngestSettings, settings)
        if chosen.source == "speakervid":
            from vidchat.data.manifest.speakervid.ingest import ingest_speakervid

            report = ingest_speakervid(annotations, output, chosen.workers)
        elif chosen.source == "seamless_interaction":
            from vidchat.data.manifest.seamless import ingest_seamless

            report = ingest_seamless(annotations, output, chosen.workers)
        else:
            from vidchat.data.manifest.sources import ingest_folder

            report = ingest_folder(annotations, output)
        _print_ingest(report, output)


def _print_ingest(report: dict[str, Any], output: Path) -> None:
    print(f"{report['clips']:,} clips, {report['hours']:,.1f} hours: {output}")
    for name, kind in report.get("kinds", {}).items():
        if not kind["files"]:
            print(f"  {name}: no files")
            continue
        print(f"  {name}: {kind['read']:,} records of {kind['files']} files")
        for reason, count in kind["left_out"].items():
            print(f"    left out, {reason}: {count:,}")
        for reason, count in kind["kept_though_odd"].items():
            print(f"    kept, but {reason}: {count:,}")
    for reason, count in report.get("left_out", {}).items():
        print(f"  left out, {reason}: {count:,}")
    for outcome, count in report.get("joining", {}).items():
        print(f"  {outcome}: {count:,}")
    missing = {name: count for name, count in report["clips_without_score"].items() if count}
    for name, count in missing.items():
        print(f"  clips without {name}: {count:,}")
    print(f"details: {output.with_suffix('.report.json')}, {output.with_suffix('.damaged.jsonl')}")


@app.command(cls=command_with(_cut_settings))
def cut(
    manifest: Manifest,
    media: Annotated[Path, typer.Argument(metavar="MEDIA", help="Folder of the source videos, each named by its id.")],
    output: Folder,
    only_dialogues: Annotated[
        bool, typer.Option("--only-dialogues", help="Cut only clips that the folder's dialogues name ('branches').")
    ] = False,
    dry_run: DryRun = False,
    download: Annotated[
        bool,
        typer.Option("--download", help="Download missing videos by yt-dlp, after asking you to accept the terms."),
    ] = False,
    settings: Settings = None,
) -> None:
    """Cuts clips out of source videos by time and box, 25 frames a second, the other speaker silenced.

    Existing clips are kept; the same command resumes a killed run. Missing source videos are skipped and listed in
    cut.report.json.
    """
    with user_errors():
        from vidchat.data.manifest.cut import CutSettings, dialogue_files
        from vidchat.data.manifest.cut import cut as run

        cut_settings, work = read_two(CutSettings, CutWork, settings)
        share = work.share()
        selected = dialogue_files(output) if only_dialogues else None
        path = _manifest(manifest)
        report = run(
            path, media, output, cut_settings, selected=selected, part=share, workers=work.workers, dry_run=dry_run
        )
        missing = sorted(set(report.missing))
        _print_cut(report, missing, dry_run)
        if download and missing and not dry_run:
            _download(missing, media)


def _print_cut(report: CutReport, missing: list[str], dry_run: bool) -> None:
    for outcome, count in sorted(report.counts.items()):
        print(f"{outcome}{' (would be)' if dry_run and outcome == 'cut' else ''}: {count:,}")
    if missing:
        more = "" if len(missing) <= 10 else f" and {len(missing) - 10:,} more"
        print(f"missing source videos: {', '.join(missing[:10])}{more}")
    for clip, reason in report.damage[:10]:
        print(f"left out: {clip}: {reason}")
    for clip, reason in report.short[:10]:
        print(f"cut short: {clip}: {reason}")


def _download(missing: list[str], media: Path) -> None:
    """Downloads the videos by yt-dlp once the user has accepted the terms."""
    from vidchat.data.manifest.fetch import fetch

    print(f"\n{TERMS}\n")
    typer.confirm(f"Download {len(missing):,} videos into {media}?", abort=True)
    print(f"{fetch(missing, media):,} videos downloaded; run the same command again to cut them")


@app.command(cls=command_with(_branch_settings))
def branches(manifest: Manifest, output: Folder, dry_run: DryRun = False, settings: Settings = None) -> None:
    """Derives dialogues of all branches, their tiers and splits, as the folder data set that `vidchat train` reads.

    No person and no source video is in two splits. Thresholds default to the paper's values where it gives them.
    """
    with user_errors():
        from vidchat.data.manifest.dialogues import DeriveSettings, write_dialogues

        chosen, files = read_two(DeriveSettings, DialogueFiles, settings)
        summary = write_dialogues(_manifest(manifest), output, chosen, files.media, files.format, dry_run)
        table = summary.as_json()
        print_table(table["dialogues"])
        for name, count in table["clips_without_score"].items():
            print(f"clips without {name}: {count:,}; tiers.missing={chosen.tiers.missing} determines their tier")
        for reason, count in table["left_out"].items():
            print(f"dialogues left out, {reason}: {count:,}")
        if summary.torn:
            print(f"groups of people whose clips had different splits: {summary.torn:,}; each is now in one")


def _manifest(path: Path) -> Path:
    return path / "clips.parquet" if path.is_dir() else path


data_look.register(app)
data_encode.register(app)

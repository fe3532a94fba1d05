"""`vidchat data`: from what a lab has downloaded, or a student has filmed, to what training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import typer

from vidchat.cli import data_encode, data_look
from vidchat.cli.data_look import tell_table
from vidchat.dialogue import Branch
from vidchat.errors import plainly

app = typer.Typer(
    help="Data: ingest annotations, cut clips, derive branches and tiers, count them, look at them.",
    no_args_is_help=True,
)
Source = Literal["speakervid", "seamless_interaction", "folder"]
Workers = Annotated[int | None, typer.Option(help="Processes; one per CPU unless told.")]
Manifest = Annotated[Path, typer.Argument(help="The manifest, clips.parquet, or the folder that holds it.")]
TERMS = """\
SpeakerVid-5M is released for non-commercial research and education only. Its videos are not part of it: they belong to
the people who published them on YouTube, whose terms of service apply, and must be removed where their owners ask for
it. Whoever downloads them does so in their own name and must have the right to."""


@app.command()
def ingest(
    annotations: Annotated[Path, typer.Option(help="Folder of the annotations (or of your own clips and dialogues).")],
    output: Annotated[Path, typer.Option(help="The Parquet file to write, usually DATA/clips.parquet.")],
    source: Annotated[Source, typer.Option(help="Whose layout the folder has.")] = "speakervid",
    workers: Workers = None,
) -> None:
    """Read annotations into a manifest: one Parquet file with a row for each clip.

    Archives are read in place. Damaged records are left out and listed with their reasons in <output>.damaged.jsonl;
    what was read, damaged and missing is summed up in <output>.report.json. The same command goes on where a killed one
    stopped.
    """
    with plainly():
        if source == "speakervid":
            from vidchat.data.manifest.speakervid.ingest import ingest_speakervid

            report = ingest_speakervid(annotations, output, workers)
        elif source == "seamless_interaction":
            from vidchat.data.manifest.seamless import ingest_seamless

            report = ingest_seamless(annotations, output, workers)
        else:
            from vidchat.data.manifest.sources import ingest_folder

            report = ingest_folder(annotations, output)
        _tell_ingest(report, output)


def _tell_ingest(report: dict[str, Any], output: Path) -> None:
    print(f"{report['clips']:,} clips, {report['hours']:,.1f} hours: {output}")
    for name, kind in report.get("kinds", {}).items():
        if not kind["files"]:
            print(f"  {name}: not there")
            continue
        print(f"  {name}: {kind['read']:,} records of {kind['files']} files")
        for reason, count in kind["left_out"].items():
            print(f"    left out, {reason}: {count:,}")
        for reason, count in kind["kept_though_odd"].items():
            print(f"    kept, but {reason}: {count:,}")
    for reason, count in report.get("left_out", {}).items():
        print(f"  left out, {reason}: {count:,}")
    for what, count in report.get("joining", {}).items():
        print(f"  {what}: {count:,}")
    lacking = {name: count for name, count in report["clips_without_score"].items() if count}
    for name, count in lacking.items():
        print(f"  clips without {name}: {count:,}")
    print(f"details: {output.with_suffix('.report.json')}, {output.with_suffix('.damaged.jsonl')}")


@app.command()
def cut(
    manifest: Manifest,
    media: Annotated[Path, typer.Option(help="Folder of the source videos; each is named by its id.")],
    output: Annotated[Path, typer.Option(help="The data folder; clips go to its clips/.")],
    fps: Annotated[int, typer.Option(help="Pictures per second.")] = 25,
    sample_rate: Annotated[int, typer.Option(help="Working samples per second.")] = 16000,
    longest_side: Annotated[int | None, typer.Option(help="Make larger crops smaller, to so many pixels.")] = None,
    window: Annotated[
        Literal["scene", "track"], typer.Option(help="The whole scene, or where the person is tracked.")
    ] = "scene",
    clean: Annotated[bool, typer.Option(help="Silence the others where only they talk.")] = True,
    only_dialogues: Annotated[
        bool, typer.Option(help="Only clips that the data folder's dialogues name (after 'branches').")
    ] = False,
    part: Annotated[str, typer.Option(help="k/n: the k-th share, from 0, of n machines.")] = "0/1",
    workers: Workers = None,
    dry_run: Annotated[bool, typer.Option(help="Only count what would be done.")] = False,
    download: Annotated[
        bool, typer.Option(help="Hand missing videos to yt-dlp, after the terms were accepted.")
    ] = False,
) -> None:
    """Cut clips out of source videos, by time and box, 25 pictures a second, the other speaker silenced.

    Clips that are there are kept; the same command goes on where a killed one stopped. Source videos that are missing
    are listed in cut.report.json and skipped.
    """
    with plainly():
        from vidchat.data.manifest.cut import CutSettings, wanted_files
        from vidchat.data.manifest.cut import cut as run

        settings = CutSettings(fps, sample_rate, longest_side, window, clean)
        wanted = wanted_files(output) if only_dialogues else None
        report = run(
            _manifest(manifest),
            media,
            output,
            settings,
            wanted=wanted,
            part=_part(part),
            workers=workers,
            dry_run=dry_run,
        )
        for what, count in sorted(report.counts.items()):
            print(f"{what}{' (would be)' if dry_run and what == 'cut' else ''}: {count:,}")
        missing = sorted(set(report.missing))
        if missing:
            more = "" if len(missing) <= 10 else f" and {len(missing) - 10:,} more"
            print(f"missing source videos: {', '.join(missing[:10])}{more}")
        for clip, why in report.damage[:10]:
            print(f"left out: {clip}: {why}")
        for clip, why in report.short[:10]:
            print(f"cut short: {clip}: {why}")
        if download and missing and not dry_run:
            _download(missing, media)


def _part(told: str) -> tuple[int, int]:
    number, _, count = told.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise ValueError(f"--part must be k/n with k from 0 to n-1, such as 0/8, not {told!r}")
    return int(number), int(count)


def _download(missing: list[str], media: Path) -> None:
    """Hands the ids to yt-dlp, if it is installed and the terms are accepted."""
    from vidchat.data.manifest.fetch import fetch

    print(f"\n{TERMS}\n")
    typer.confirm(f"Download {len(missing):,} videos into {media}?", abort=True)
    print(f"{fetch(missing, media):,} videos downloaded; run the same command again to cut them")


@app.command()
def branches(
    manifest: Manifest,
    output: Annotated[Path, typer.Option(help="The data folder; dialogues.jsonl is written into it.")],
    branch: Annotated[list[str] | None, typer.Option(help="Only this branch; may be given more than once.")] = None,
    media: Annotated[
        Path | None, typer.Option(help="Use whole source files of this folder in place, without cutting.")
    ] = None,
    gap: Annotated[float, typer.Option(help="Dialogue: most seconds between a turn and its answer.")] = 2.0,
    overlap: Annotated[float, typer.Option(help="Most seconds by which an answer begins early.")] = 0.5,
    sync_difference: Annotated[float, typer.Option(help="Listening: talker's minus listener's SyncNet, above.")] = 2.0,
    sync_below: Annotated[float, typer.Option(help="Listening, talker unseen: listener's SyncNet, below.")] = 1.5,
    listening_asr: Annotated[
        float, typer.Option(help="Listening, talker unseen: transcript confidence, above.")
    ] = -1.0,
    context: Annotated[float, typer.Option(help="Multi-turn, contextual: seconds of earlier turns (T).")] = 30.0,
    delta_t: Annotated[float, typer.Option(help="Multi-turn, sequential: seconds between neighbours, at most.")] = 1.0,
    max_turns: Annotated[int, typer.Option(help="Multi-turn: most turns.")] = 8,
    sft_hand: Annotated[float, typer.Option(help="SFT tier: sharpness of the hands, above.")] = 0.5,
    sft_face: Annotated[float, typer.Option(help="SFT tier: sharpness of the face, above.")] = 0.7,
    sft_dover: Annotated[float, typer.Option(help="SFT tier: DOVER, above.")] = 0.6,
    sft_motion: Annotated[float, typer.Option(help="SFT tier: motion score, above.")] = 2.0,
    sft_asr: Annotated[float, typer.Option(help="SFT tier: transcript confidence, above.")] = -1.0,
    missing_score: Annotated[
        Literal["pretrain", "pass", "drop"], typer.Option(help="What a clip without a score is.")
    ] = "pretrain",
    tier_by: Annotated[Literal["scores", "release"], typer.Option(help="By thresholds, or SFT_set.json.")] = "scores",
    val: Annotated[float, typer.Option(help="Share of validation.")] = 0.02,
    test: Annotated[float, typer.Option(help="Share of test.")] = 0.02,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    given_splits: Annotated[bool, typer.Option(help="Keep splits that the source gives.")] = True,
    file_format: Annotated[
        Literal["jsonl", "parquet"] | None, typer.Option("--format", help="Of the dialogues; by size unless told.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only count what would be found.")] = False,
) -> None:
    """Derive dialogues of all branches, their tiers and splits, as the folder data set that train.py reads.

    No person and no source video is in two splits. The thresholds' defaults are the paper's, where it gives them.
    """
    with plainly():
        from vidchat.data.manifest.branches import BranchSettings
        from vidchat.data.manifest.dialogues import Derive, write_dialogues
        from vidchat.data.manifest.splits import SplitSettings
        from vidchat.data.manifest.tiers import TierSettings

        chosen = tuple(branch or get_args(Branch))
        unknown = [name for name in chosen if name not in get_args(Branch)]
        if unknown:
            raise ValueError(f"--branch must be one of {', '.join(get_args(Branch))}, not {unknown[0]}")
        found = BranchSettings(
            gap_s=gap,
            overlap_s=overlap,
            sync_difference=sync_difference,
            sync_below=sync_below,
            asr_above=listening_asr,
            context_s=context,
            delta_t_s=delta_t,
            max_turns=max_turns,
        )
        tiers = TierSettings(sft_hand, sft_face, sft_dover, sft_motion, sft_asr, missing_score, tier_by)
        splits = SplitSettings(val, test, seed, given_splits)
        settings = Derive(cast(tuple[Branch, ...], chosen), found, tiers, splits)
        summary = write_dialogues(_manifest(manifest), output, settings, media, file_format, dry_run)
        told = summary.as_json()
        tell_table(told["dialogues"])
        for name, count in told["clips_without_score"].items():
            print(f"clips without {name}: {count:,}; --missing-score {missing_score} decides about them")
        for reason, count in told["left_out"].items():
            print(f"dialogues left out, {reason}: {count:,}")
        if summary.torn:
            print(f"groups of people whose clips had different splits: {summary.torn:,}; each is now in one")


def _manifest(path: Path) -> Path:
    return path / "clips.parquet" if path.is_dir() else path


data_look.register(app)
data_encode.register(app)

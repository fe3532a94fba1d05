"""Derivation of a folder data set from a manifest: the dialogues of all videos, with tier and split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from vidchat.data.atomic_path import atomic_path, remove_partials
from vidchat.data.manifest.branches import BRANCH_COLUMNS, BranchSettings, DerivedDialogue, Row, find_dialogues
from vidchat.data.manifest.manifest_file import (
    SCORES,
    ManifestError,
    clip_file,
    clip_window,
    open_manifest,
    rows,
    videos,
)
from vidchat.data.manifest.splits import SPLIT_COLUMNS, SplitSettings, split_videos
from vidchat.data.manifest.tiers import TierSettings, is_silent, tier_of
from vidchat.dialogue import Branch, Clip, Split, Tier, TimedText
from vidchat.runtime.atomic import write_text

SUMMARY = "branches.json"
LARGE = 200_000  # number of clips above which the dialogues are written as Parquet
DIALOGUES = pa.schema([(name, pa.string()) for name in ("id", "branch", "kind", "tier", "split", "turns")])


@dataclass
class Summary:
    """Counts of the dialogues that were derived.

    Attributes:
        counts: Number of dialogues by (branch, kind, tier, split).
        seconds: Total seconds of the answers and of all turns, by the same key.
        missing: Number of clips that lack a score, by score.
        dropped: Number of dialogues that were left out, by reason.
        torn: Number of groups of people whose clips had different splits; each goes to test, val, train in this order.
    """

    counts: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    seconds: dict[tuple[str, str, str, str], list[float]] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    torn: int = 0

    def add(self, dialogue: DerivedDialogue, entry: dict[str, Any]) -> None:
        key = (dialogue.branch, dialogue.kind, entry["tier"], entry["split"])
        durations = [turn["end"] - turn["start"] for turn in entry["turns"]]
        self.counts[key] += 1
        sums = self.seconds.setdefault(key, [0.0, 0.0])
        sums[0] += durations[-1]
        sums[1] += sum(durations)

    def as_json(self) -> dict[str, Any]:
        table = [
            {
                **dict(zip(("branch", "kind", "tier", "split"), key, strict=True)),
                "dialogues": count,
                "answer_hours": round(self.seconds[key][0] / 3600, 4),
                "hours": round(self.seconds[key][1] / 3600, 4),
            }
            for key, count in sorted(self.counts.items())
        ]
        return {
            "dialogues": table,
            "clips_without_score": dict(sorted(self.missing.items())),
            "left_out": dict(sorted(self.dropped.items())),
            "groups_given_two_splits": self.torn,
        }


@dataclass(frozen=True)
class DeriveSettings:
    """Settings that determine which dialogues are derived from a manifest.

    Attributes:
        branches: Branches to derive.
        window: Span of a clip that is a turn: the whole scene, or where the person is tracked.
        pairing: Thresholds that decide which clips make a dialogue.
        tiers: Thresholds of the SFT tier.
        splits: Shares of the splits.
    """

    branches: Sequence[Branch] = ("single", "dialogue", "listening", "multi_turn")
    window: Literal["scene", "track"] = "scene"
    pairing: BranchSettings = field(default_factory=BranchSettings)
    tiers: TierSettings = field(default_factory=TierSettings)
    splits: SplitSettings = field(default_factory=SplitSettings)


def derive_dialogues(
    manifest: Path, settings: DeriveSettings, summary: Summary, in_place: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields the dialogues of a manifest as entries of a folder data set.

    Args:
        manifest: Manifest, a Parquet file.
        settings: Branches and thresholds.
        summary: Counts, to which the dialogues are added.
        in_place: Whether the turns are spans of the source files, below `media/`, rather than cut clips.
    """
    splits, summary.torn = split_videos(rows(manifest, SPLIT_COLUMNS), settings.splits)
    singles: set[tuple[str, float]] = set()
    for clips in track(videos(manifest, BRANCH_COLUMNS), "deriving dialogues", total=len(splits)):
        missing = summary.missing
        tiers: dict[str, Tier | None] = {clip["clip"]: tier_of(clip, settings.tiers, missing) for clip in clips}
        for dialogue in find_dialogues(clips, settings.pairing, settings.branches):
            judged = [tiers[clip["clip"]] for _, clip, _ in dialogue.turns[-dialogue.judged :]]
            tier: Tier = "sft" if all(t == "sft" for t in judged) else "pretrain"
            answer = dialogue.turns[-1][1]
            if None in judged:
                summary.dropped["a clip lacks a score"] += 1
            elif dialogue.branch == "single" and answer["dialogue"] and _repeated(answer, singles):
                summary.dropped["the same clip is in two dialogues, and one single"] += 1
            elif in_place and any(clip["media"] is None or voice_only for _, clip, voice_only in dialogue.turns):
                summary.dropped["a clip has no file of its own; cut it"] += 1
            else:
                entry = _entry(dialogue, tier, splits[answer["video"]], settings.window, in_place)
                summary.add(dialogue, entry)
                yield entry


def _repeated(clip: Row, singles: set[tuple[str, float]]) -> bool:
    span = (clip["media"] or clip["clip"], clip["start_s"])
    if span in singles:
        return True
    singles.add(span)
    return False


def _entry(
    dialogue: DerivedDialogue, tier: Tier, split: Split, window: Literal["scene", "track"], in_place: bool
) -> dict[str, Any]:
    windows = [clip_window(clip, window) for _, clip, _ in dialogue.turns]
    turns = []
    for (role, clip, voice_only), span, at in zip(dialogue.turns, windows, _starts(dialogue, windows), strict=True):
        turn = _turn(role, clip, voice_only, span, in_place)
        turns.append(turn if at is None else {**turn, "at": at})
    kind = {"kind": dialogue.kind} if dialogue.kind else {}
    return {"id": dialogue.id, "branch": dialogue.branch, **kind, "tier": tier, "split": split, "turns": turns}


def _starts(dialogue: DerivedDialogue, windows: Sequence[tuple[float, float]]) -> list[float | None]:
    """Returns the start of each turn on the dialogue's clock: as the source gives it, else by the video's time line."""
    if dialogue.branch == "single":
        return [None]
    if dialogue.turns[0][1]["dialogue"] is not None:
        return [clip["at_s"] for _, clip, _ in dialogue.turns]
    first = min(start for start, _ in windows)
    return [round(start - first, 6) for start, _ in windows]


def _turn(role: str, clip: Row, voice_only: bool, span: tuple[float, float], in_place: bool) -> dict[str, Any]:
    """Returns the entry of a turn, which is a span of a clip in seconds of the source."""
    turn: dict[str, Any] = {"role": role, "speaker": _voice_of(clip) if voice_only else clip["speaker"]}
    delay, length = round(span[0] - clip["start_s"], 6), span[1] - span[0]
    if in_place:
        turn |= {"clip": f"media/{clip['media']}", "start": span[0], "end": span[1]}
    else:
        name = clip_file(clip["clip"], clip["video"], voice_only)
        turn |= {"clip": name, "start": delay, "end": delay + length}
    if voice_only or not is_silent(clip):  # text that a silent person hears is not that person's text
        turn |= _transcript(clip, delay, length)
    if clip["caption"] is not None and not voice_only:
        turn["caption"] = clip["caption"]
    scores = {name: clip[name] for name in SCORES if clip[name] is not None and not voice_only}
    scores |= json.loads(clip["more_scores"]) if clip["more_scores"] else {}
    if scores:
        turn["scores"] = scores
    if clip["truth"]:
        turn["truth"] = json.loads(clip["truth"])
    return turn


def _transcript(clip: Row, delay: float, length: float) -> dict[str, Any]:
    """Returns the transcript and its words with their times, from `delay` seconds after the clip's start."""
    words = tuple(TimedText(word["text"], word["start_s"], word["end_s"]) for word in clip["timed_words"] or ())
    whole = Clip(Path(clip["clip"]), clip["speaker"], clip["text"], clip["start_s"], clip["end_s"], words=words)
    text = whole.text_between(delay, delay + length)
    times = [[word.text, round(word.start - delay, 6), round(word.end - delay, 6)] for word in words]
    return {**({} if text is None else {"text": text}), **({"words": times} if times else {})}


def _voice_of(clip: Row) -> str:
    """Returns the speaker heard for longest in a clip whose person is silent."""
    spoken: Counter[str] = Counter()
    for interval in clip["speech"] or ():
        spoken[interval["speaker"]] += interval["end_s"] - interval["start_s"]
    return f"{clip['video']}_{spoken.most_common(1)[0][0]}" if spoken else f"{clip['clip']}~voice"


def write_dialogues(
    manifest: Path,
    output: Path,
    settings: DeriveSettings,
    media: Path | None = None,
    file_format: str | None = None,
    dry_run: bool = False,
) -> Summary:
    """Writes `dialogues.jsonl` (`.parquet` for many) and `branches.json` into a folder.

    Args:
        manifest: Manifest, a Parquet file.
        output: Data folder of the cut clips, which need not exist yet.
        settings: Branches and thresholds.
        media: Folder of the source files, if the turns are spans of these; `media` in the output then links to it.
        file_format: Format of the dialogues, `jsonl` or `parquet`; by default chosen by size.
        dry_run: Whether to count the dialogues without writing them.

    Raises:
        ManifestError: Another program wrote the folder's dialogues, or the manifest cannot be read.
    """
    clips = open_manifest(manifest).metadata.num_rows
    summary = Summary()
    entries = derive_dialogues(manifest, settings, summary, in_place=media is not None)
    if dry_run:
        for _ in entries:
            pass
        return summary
    _claim(output)
    if media is not None:
        _link(output / "media", media)
    as_parquet = (file_format or ("parquet" if clips > LARGE else "jsonl")) == "parquet"
    target, other = output / "dialogues.jsonl", output / "dialogues.parquet"
    if as_parquet:
        target, other = other, target
    remove_partials(target)
    with atomic_path(target) as partial:
        (_write_parquet if as_parquet else _write_jsonl)(partial, entries)
    other.unlink(missing_ok=True)
    record = {"settings": asdict(settings), "in_place": media is not None, **summary.as_json()}
    write_text(output / SUMMARY, json.dumps(record, indent=1) + "\n")
    return summary


def _claim(output: Path) -> None:
    """Creates and marks the folder; refuses one whose dialogues another program wrote."""
    output.mkdir(parents=True, exist_ok=True)
    foreign = [name for name in ("dialogues.jsonl", "dialogues.json") if (output / name).exists()]
    if foreign and not (output / SUMMARY).exists():
        raise ManifestError(
            f"{output / foreign[0]} was not written by 'vidchat data branches', so it is left alone; "
            "choose another --output"
        )
    if not (output / SUMMARY).exists():
        write_text(output / SUMMARY, "{}\n")


def _link(link: Path, media: Path) -> None:
    if not media.is_dir():
        raise ManifestError(f"{media}: there is no such folder; set media to the folder of the source files")
    if link.is_symlink():
        link.unlink()
    if link.exists():
        raise ManifestError(f"{link} is in the way; move it, or choose another --output")
    link.symlink_to(media.resolve(), target_is_directory=True)


def _write_jsonl(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def _write_parquet(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    with pq.ParquetWriter(path, DIALOGUES, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for entry in entries:
            batch.append({"kind": None, **entry, "turns": json.dumps(entry["turns"])})
            if len(batch) == 20_000:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=DIALOGUES))
                batch = []
        writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=DIALOGUES))

"""From a manifest to a folder data set: the dialogues of all its videos, with tier and split, for training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from vidchat.data.atomic_path import atomic_path, remove_partials
from vidchat.data.manifest.branches import BRANCH_COLUMNS, BranchSettings, Found, Row, find
from vidchat.data.manifest.manifest_file import SCORES, ManifestError, clip_file, open_manifest, rows, videos
from vidchat.data.manifest.splits import SPLIT_COLUMNS, SplitSettings, split_videos
from vidchat.data.manifest.tiers import TierSettings, is_silent, tier_of
from vidchat.dialogue import Branch, Split, Tier
from vidchat.runtime.atomic import write_text

SUMMARY = "branches.json"
LARGE = 200_000  # clips of a manifest from which on the dialogues go to Parquet
DIALOGUES = pa.schema([(name, pa.string()) for name in ("id", "branch", "kind", "tier", "split", "turns")])


@dataclass
class Summary:
    """Counts of the dialogues that were derived.

    Attributes:
        counts: Number of dialogues by (branch, kind, tier, split).
        seconds: Seconds of their answers and of all their turns, by the same key.
        missing: Number of clips that lack a score, by its name.
        dropped: Number of dialogues left out, by reason.
        torn: Number of groups of people whose clips had different splits; each group goes to the one withheld most.
    """

    counts: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    seconds: dict[tuple[str, str, str, str], list[float]] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    torn: int = 0

    def add(self, found: Found, tier: Tier, split: Split) -> None:
        key = (found.branch, found.kind, tier, split)
        lengths = [turn["duration_s"] or 0.0 for _, turn, _ in found.turns]
        self.counts[key] += 1
        sums = self.seconds.setdefault(key, [0.0, 0.0])
        sums[0] += lengths[-1]
        sums[1] += sum(lengths)

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
class Derive:
    """Everything that decides which dialogues come out of a manifest.

    Attributes:
        branches: Branches to derive.
        pairing: Thresholds that decide which clips make a dialogue.
        tiers: Thresholds of the SFT tier.
        splits: Shares of the splits.
    """

    branches: Sequence[Branch] = ("single", "dialogue", "listening", "multi_turn")
    pairing: BranchSettings = field(default_factory=BranchSettings)
    tiers: TierSettings = field(default_factory=TierSettings)
    splits: SplitSettings = field(default_factory=SplitSettings)


def derive(manifest: Path, settings: Derive, summary: Summary, in_place: bool = False) -> Iterator[dict[str, Any]]:
    """The dialogues of a manifest, one entry of a folder data set after another.

    Args:
        manifest: Manifest, a Parquet file.
        settings: Branches and thresholds.
        summary: Counts, which are added to.
        in_place: Whether the turns are spans of the source's own files, below `media/`, not cut clips.
    """
    splits, summary.torn = split_videos(rows(manifest, SPLIT_COLUMNS), settings.splits)
    singles: set[tuple[str, float]] = set()
    for clips in track(videos(manifest, BRANCH_COLUMNS), "deriving dialogues", total=len(splits)):
        missing = summary.missing
        tiers: dict[str, Tier | None] = {clip["clip"]: tier_of(clip, settings.tiers, missing) for clip in clips}
        for found in find(clips, settings.pairing, settings.branches):
            own = [tiers[clip["clip"]] for _, clip, _ in found.turns[-found.judged :]]
            tier: Tier = "sft" if all(t == "sft" for t in own) else "pretrain"
            answer = found.turns[-1][1]
            if None in own:
                summary.dropped["a clip lacks a score"] += 1
            elif found.branch == "single" and answer["dialogue"] and _repeated(answer, singles):
                summary.dropped["the same clip is in two dialogues, and one single"] += 1
            elif in_place and any(clip["media"] is None or heard for _, clip, heard in found.turns):
                summary.dropped["a clip has no file of its own; cut it"] += 1
            else:
                split = splits[found.turns[0][1]["video"]]
                summary.add(found, tier, split)
                yield _entry(found, tier, split, in_place)


def _repeated(clip: Row, singles: set[tuple[str, float]]) -> bool:
    place = (clip["media"] or clip["clip"], clip["start_s"])
    if place in singles:
        return True
    singles.add(place)
    return False


def _entry(found: Found, tier: Tier, split: Split, in_place: bool) -> dict[str, Any]:
    turns = [_turn(role, clip, heard, found, in_place) for role, clip, heard in found.turns]
    kind = {"kind": found.kind} if found.kind else {}
    return {"id": found.id, "branch": found.branch, **kind, "tier": tier, "split": split, "turns": turns}


def _turn(role: str, clip: Row, heard: bool, found: Found, in_place: bool) -> dict[str, Any]:
    """A turn. Words that a silent person hears are not that person's words."""
    silent = is_silent(clip) and not heard
    turn: dict[str, Any] = {"role": role, "speaker": _voice_of(clip) if heard else clip["speaker"]}
    if in_place:
        turn |= {"clip": f"media/{clip['media']}", "start": clip["start_s"], "end": clip["end_s"]}
    else:
        turn |= {"clip": clip_file(clip["clip"], clip["video"], heard), "start": 0.0, "end": clip["duration_s"]}
    if clip["text"] is not None and not silent:
        turn["text"] = clip["text"]
    scores = {name: clip[name] for name in SCORES if clip[name] is not None and not heard}
    scores |= json.loads(clip["more_scores"]) if clip["more_scores"] else {}
    if scores:
        turn["scores"] = scores
    if clip["truth"]:
        turn["truth"] = json.loads(clip["truth"])
    return turn


def _voice_of(clip: Row) -> str:
    """Who is heard for longest in a clip whose person is silent."""
    spoken: Counter[str] = Counter()
    for interval in clip["speech"] or ():
        spoken[interval["speaker"]] += interval["end_s"] - interval["start_s"]
    return f"{clip['video']}_{spoken.most_common(1)[0][0]}" if spoken else f"{clip['clip']}~voice"


def write_dialogues(
    manifest: Path,
    output: Path,
    settings: Derive,
    media: Path | None = None,
    file_format: str | None = None,
    dry_run: bool = False,
) -> Summary:
    """Writes `dialogues.jsonl` (`.parquet` for many) and `branches.json` into a folder.

    Args:
        manifest: Manifest, a Parquet file.
        output: Data folder, in which cut clips lie, or will.
        settings: Branches and thresholds.
        media: Folder of source files whose spans are the turns; `media` in the output then links to it.
        file_format: Format of the dialogues, `jsonl` or `parquet`; by default by size.
        dry_run: Whether to count only.

    Raises:
        ManifestError: The folder's dialogues were not made by this command, or the manifest cannot be read.
    """
    clips = open_manifest(manifest).metadata.num_rows
    summary = Summary()
    entries = derive(manifest, settings, summary, in_place=media is not None)
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
    told = {"settings": asdict(settings), "in_place": media is not None, **summary.as_json()}
    write_text(output / SUMMARY, json.dumps(told, indent=1) + "\n")
    return summary


def _claim(output: Path) -> None:
    """Makes the folder and marks it, or refuses one whose dialogues somebody else wrote."""
    output.mkdir(parents=True, exist_ok=True)
    taken = [name for name in ("dialogues.jsonl", "dialogues.json") if (output / name).exists()]
    if taken and not (output / SUMMARY).exists():
        raise ManifestError(
            f"{output / taken[0]} was not written by 'vidchat data branches' and is left alone; choose another --output"
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

"""How much there is: dialogues and hours by branch and tier, and the distributions of the paper's Figure 3."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from vidchat.data.atomic_path import atomic_path
from vidchat.data.folder import FolderError, entries, make_dialogue, manifest_of, parse_entry
from vidchat.data.manifest.dialogues import SUMMARY
from vidchat.data.manifest.manifest_file import COLUMNS, ROWS, ManifestError, as_table, open_manifest
from vidchat.data.report import Report
from vidchat.dialogue import Clip, Dialogue

MANIFEST = "clips.parquet"
MEASURES: dict[str, tuple[float, float, int, str]] = {
    "duration_s": (0, 15, 60, "duration, seconds"),
    "dover": (0, 1, 50, "DOVER"),
    "sync_confidence": (0, 12, 60, "SyncNet confidence"),
    "face_blur": (0, 3, 60, "sharpness of the face"),
    "hand_blur": (0, 3, 60, "sharpness of the hands"),
    "words": (0, 60, 60, "words of a clip"),
}
"""Column -> where its histogram begins and ends, its bins, and what to call it. What lies beyond is in the last bin."""
HEIGHTS = (360, 480, 720, 1080, 1440, 2160)


class Elsewhere(Protocol):
    """Where clips are that do not lie there as files: media shards, or the tokens that are left of them."""

    def seconds(self, dialogue: Dialogue, clip: Clip) -> float | None:
        """How long a dialogue's clip lasts there; `None` where it is not there."""


@dataclass
class Distributions:
    """Histograms of a manifest's clips.

    Attributes:
        clips: How many.
        hours: How long together.
        histograms: Column -> counts by bin of `MEASURES`.
        sums: Column -> how many clips have it, and the sum of their values.
        heights: Height of the source frame, rounded down to a usual one -> clips.
        topics: Topic -> clips.
        sources: Source -> clips.
    """

    clips: int = 0
    hours: float = 0.0
    histograms: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, list[float]] = field(default_factory=dict)
    heights: Counter[str] = field(default_factory=Counter)
    topics: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    def add(self, table: pa.Table | pa.RecordBatch) -> None:
        """Counts some rows of a manifest."""
        self.clips += table.num_rows
        self.hours += float(np.nansum(_numbers(table, "duration_s"))) / 3600
        for name, (low, high, bins, _) in MEASURES.items():
            values = _numbers(table, name)
            values = values[np.isfinite(values)]
            counts, _ = np.histogram(np.clip(values, low, high), bins, (low, high))
            self.histograms[name] = self.histograms.get(name, 0) + counts
            sums = self.sums.setdefault(name, [0.0, 0.0])
            sums[0] += len(values)
            sums[1] += float(values.sum())
        self.heights.update(_usual(height) for height in _short_sides(table))
        topics = (topic.strip().lower()[:40] for topic in table.column("topic").to_pylist() if topic)
        self.topics.update(topics)
        self.sources.update(table.column("source").to_pylist())
        if len(self.topics) > 200_000:  # free text; the rare ones cannot be among the first
            self.topics = Counter(dict(self.topics.most_common(50_000)))


def _numbers(table: pa.Table | pa.RecordBatch, name: str) -> np.ndarray:
    return np.asarray(table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=float)


def _short_sides(table: pa.Table | pa.RecordBatch) -> np.ndarray:
    """1080p is a frame whose shorter side is 1080."""
    sides = np.fmin(_numbers(table, "width"), _numbers(table, "height"))
    return sides[np.isfinite(sides)]


def _usual(height: float) -> str:
    below = [usual for usual in HEIGHTS if usual <= height]
    return f"{below[-1]}p" if below else f"< {HEIGHTS[0]}p"


def distributions(manifest: Path) -> Distributions:
    """Of all clips of a manifest, in one pass with little memory; raises `ManifestError`."""
    found = Distributions()
    columns = [*MEASURES, "width", "height", "topic", "source"]
    with open_manifest(manifest) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=columns):
            found.add(batch)
    return found


def dialogue_table(
    root: Path, elsewhere: Elsewhere | None = None, report: Report | None = None
) -> list[dict[str, Any]]:
    """Rows of branch, kind, tier, split, dialogues, answer_hours and hours, of a folder data set.

    What `vidchat data branches` wrote is taken from its summary, unless it was changed since; of another folder every
    file's header is read; what is not there as a file is looked up elsewhere.

    Args:
        root: The folder.
        elsewhere: Its media shards or tokens, if it has any.
        report: Where dialogues that cannot be counted are named.

    Raises:
        FolderError: There is no data set in the folder, or neither files nor shards with any dialogue's clips.
    """
    summary, dialogues = root / SUMMARY, manifest_of(root)
    if summary.is_file() and summary.stat().st_mtime_ns >= dialogues.stat().st_mtime_ns:
        told = json.loads(summary.read_text())
        if told.get("dialogues"):
            return list(told["dialogues"])
    sums: dict[tuple[str, str, str], list[float]] = {}
    for dialogue, seconds in lengths(root, elsewhere, report):
        row = sums.setdefault((dialogue.branch, dialogue.tier, dialogue.split), [0.0, 0.0, 0.0])
        answer = next(k for k, turn in enumerate(dialogue.turns) if turn.clip is dialogue.answer)
        for place, value in enumerate((1, seconds[answer], sum(seconds))):
            row[place] += value
    if not sums:
        raise FolderError(
            f"{root}: neither clips nor tokens of any of its dialogues are there, as files or in shards; cut or encode"
        )
    table = []
    for (branch, tier, split), (count, answers, everything) in sorted(sums.items()):
        told = {"branch": branch, "kind": "", "tier": tier, "split": split, "dialogues": int(count)}
        table.append({**told, "answer_hours": answers / 3600, "hours": everything / 3600})
    return table


def lengths(
    root: Path, elsewhere: Elsewhere | None, report: Report | None = None
) -> Iterator[tuple[Dialogue, list[float]]]:
    """Each dialogue whose answer is there, as a file or elsewhere, and how many seconds of each of its turns are.

    Those that cannot be used are named in the report.
    """
    from vidchat.data.media.read import length_of

    headers: dict[Path, float] = {}
    for where, entry in entries(manifest_of(root)):
        try:
            dialogue = make_dialogue(root, parse_entry(entry), media=False)
            seconds: list[float | None] = []
            for clip in (turn.clip for turn in dialogue.turns):
                if not clip.path.is_file():
                    seconds.append(None if elsewhere is None else elsewhere.seconds(dialogue, clip))
                    continue
                if clip.end is None and clip.path not in headers:
                    headers[clip.path] = length_of(clip.path)
                seconds.append((headers[clip.path] if clip.end is None else clip.end) - clip.start)
        except (ValueError, TypeError, OSError) as error:
            if report is not None:
                report.skipped.append((where, str(error)))
            continue
        answered = any(turn.clip is dialogue.answer and s for turn, s in zip(dialogue.turns, seconds, strict=True))
        if answered and (elsewhere is not None or None not in seconds):
            yield dialogue, [second or 0.0 for second in seconds]
        elif report is not None:
            report.skipped.append((where, "its clips are not all there, as files or in shards"))


def distributions_elsewhere(root: Path, elsewhere: Elsewhere, source: str) -> Distributions:
    """Of the clips that a folder has elsewhere, as far as its dialogues tell of them; their resolution is not known.

    Args:
        root: The folder.
        elsewhere: Its media shards or tokens.
        source: What these are called.
    """
    found, seen, rows = Distributions(), set[tuple[str, float]](), list[dict[str, Any]]()
    for dialogue, seconds in lengths(root, elsewhere):
        for turn, length in zip(dialogue.turns, seconds, strict=True):
            place = str(turn.clip.path), turn.clip.start
            if length and place not in seen:
                seen.add(place)
                words = None if turn.clip.text is None else len(turn.clip.text.split())
                scores = {name: value for name, value in turn.clip.scores.items() if name in COLUMNS}
                rows.append({**scores, "duration_s": length, "words": words, "source": source})
        if len(rows) >= ROWS:
            found.add(as_table(rows))
            rows = []
    found.add(as_table(rows))
    return found


def by_branch_and_tier(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The splits added up; a column for the dialogues of each."""
    sums: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in table:
        key = (row["branch"], row["kind"], row["tier"])
        into = sums.setdefault(
            key, {"dialogues": 0, "answer_hours": 0.0, "hours": 0.0, "train": 0, "val": 0, "test": 0}
        )
        for name in ("dialogues", "answer_hours", "hours"):
            into[name] += row[name]
        into[row["split"]] += row["dialogues"]
    named = ((dict(zip(("branch", "kind", "tier"), key, strict=True)), row) for key, row in sorted(sums.items()))
    return [{**key, **row} for key, row in named]


def draw(found: Distributions, frame: Path) -> None:
    """Draws the distributions into a PNG; raises `ManifestError` if there is nothing to draw with."""
    try:
        import matplotlib
    except ImportError:
        raise ManifestError("drawing needs matplotlib; install it with: pip install 'vidchat[demo]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(15, 6.5))
    panels = [axis for row in axes for axis in row]
    for axis, name in zip(panels, ("duration_s", "dover", "sync_confidence", "words"), strict=False):
        _histogram(axis, found, [name])
        axis.set_title(MEASURES[name][3])
    _histogram(panels[4], found, ["face_blur", "hand_blur"])
    panels[4].set_title("sharpness of face and hands")
    if panels[4].has_data() and panels[4].patches:
        panels[4].legend(fontsize=8)
    order = [f"< {HEIGHTS[0]}p", *(f"{height}p" for height in HEIGHTS)]
    _bars(panels[5], {name: found.heights[name] for name in order if found.heights[name]}, "resolution of the source")
    _bars(panels[6], dict(reversed(found.topics.most_common(12))), "topics")
    panels[7].axis("off")
    told = [f"{found.clips:,} clips", f"{found.hours:,.1f} hours"]
    told += [f"{source}: {count:,}" for source, count in found.sources.most_common()]
    panels[7].text(0.05, 0.95, "\n".join(told), va="top", fontsize=13)
    figure.tight_layout()
    frame.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(frame) as partial:
        figure.savefig(partial, dpi=110, format=frame.suffix[1:] or "png")
    plt.close(figure)


def _histogram(axis: Any, found: Distributions, names: list[str]) -> None:
    for name in names:
        low, high, bins, label = MEASURES[name]
        count, total = found.sums.get(name, [0, 0.0])
        if not count:
            continue
        edges = np.linspace(low, high, bins + 1)
        axis.stairs(found.histograms[name], edges, fill=True, alpha=0.6, label=label)
        axis.axvline(total / count, linestyle="--", color="0.4", linewidth=1)
    if not axis.has_data():
        axis.text(0.5, 0.5, "no clip has it", ha="center", transform=axis.transAxes)
    axis.set_ylabel("clips")


def _bars(axis: Any, counts: Mapping[str, int], title: str) -> None:
    axis.set_title(title)
    if counts:
        axis.barh(list(counts), list(counts.values()), alpha=0.7)
        axis.set_xlabel("clips")
    else:
        axis.text(0.5, 0.5, "no clip has it", ha="center", transform=axis.transAxes)

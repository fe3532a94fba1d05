"""Statistics of a data set: dialogues and hours by branch and tier, and the distributions of the paper's Figure 3."""

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
    "words": (0, 60, 60, "words per clip"),
}
"""Column -> (low, high, bins, label) of its histogram; values outside are counted in the first or last bin."""
HEIGHTS = (360, 480, 720, 1080, 1440, 2160)


class ClipStore(Protocol):
    """Clips that do not exist as files: media shards, or the tokens made from them."""

    def seconds(self, dialogue: Dialogue, clip: Clip) -> float | None:
        """Returns the duration of a dialogue's clip in seconds; `None` if the store lacks it."""


@dataclass
class Distributions:
    """Histograms of a manifest's clips.

    Attributes:
        clips: Number of clips.
        hours: Total duration in hours.
        histograms: Column -> counts by bin of `MEASURES`.
        sums: Column -> number of clips with a value, and the sum of the values.
        heights: Height of the source video, rounded down to a common one -> number of clips.
        topics: Topic -> number of clips.
        sources: Source -> number of clips.
    """

    clips: int = 0
    hours: float = 0.0
    histograms: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, list[float]] = field(default_factory=dict)
    heights: Counter[str] = field(default_factory=Counter)
    topics: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    def add(self, table: pa.Table | pa.RecordBatch) -> None:
        """Adds rows of a manifest."""
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
        self.heights.update(_common_height(height) for height in _short_sides(table))
        topics = (topic.strip().lower()[:40] for topic in table.column("topic").to_pylist() if topic)
        self.topics.update(topics)
        self.sources.update(table.column("source").to_pylist())
        if len(self.topics) > 200_000:  # free text; rare topics cannot be among the most common
            self.topics = Counter(dict(self.topics.most_common(50_000)))


def _numbers(table: pa.Table | pa.RecordBatch, name: str) -> np.ndarray:
    return np.asarray(table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=float)


def _short_sides(table: pa.Table | pa.RecordBatch) -> np.ndarray:
    """Returns the shorter side of each source video, which names its resolution (1080p), (n,)."""
    sides = np.fmin(_numbers(table, "width"), _numbers(table, "height"))
    return sides[np.isfinite(sides)]


def _common_height(height: float) -> str:
    lower = [common for common in HEIGHTS if common <= height]
    return f"{lower[-1]}p" if lower else f"< {HEIGHTS[0]}p"


def manifest_distributions(manifest: Path) -> Distributions:
    """Returns the distributions of all clips of a manifest, read in one pass; raises `ManifestError`."""
    result = Distributions()
    columns = [*MEASURES, "width", "height", "topic", "source"]
    with open_manifest(manifest) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=columns):
            result.add(batch)
    return result


def dialogue_table(root: Path, store: ClipStore | None = None, report: Report | None = None) -> list[dict[str, Any]]:
    """Returns rows of branch, kind, tier, split, dialogues, answer_hours and hours of a folder data set.

    If `vidchat data branches` wrote the folder's dialogues, its summary is read. Otherwise every file's header is read,
    and clips that do not exist as files are looked up in the store.

    Args:
        root: Data folder.
        store: Media shards or tokens of the folder, if any.
        report: Report, to which dialogues that cannot be counted are added.

    Raises:
        FolderError: The folder holds no data set, or no dialogue with clips or tokens.
    """
    summary, dialogues = root / SUMMARY, manifest_of(root)
    if summary.is_file() and summary.stat().st_mtime_ns >= dialogues.stat().st_mtime_ns:
        table = json.loads(summary.read_text()).get("dialogues")
        if table:
            return list(table)
    sums: dict[tuple[str, str, str], list[float]] = {}
    for dialogue, seconds in turn_seconds(root, store, report):
        row = sums.setdefault((dialogue.branch, dialogue.tier, dialogue.split), [0.0, 0.0, 0.0])
        answer = next(k for k, turn in enumerate(dialogue.turns) if turn.clip is dialogue.answer)
        for k, value in enumerate((1, seconds[answer], sum(seconds))):
            row[k] += value
    if not sums:
        raise FolderError(
            f"{root}: none of its dialogues has clips or tokens, as files or in shards; cut or encode them"
        )
    table = []
    for (branch, tier, split), (count, answer_seconds, all_seconds) in sorted(sums.items()):
        head = {"branch": branch, "kind": "", "tier": tier, "split": split, "dialogues": int(count)}
        table.append({**head, "answer_hours": answer_seconds / 3600, "hours": all_seconds / 3600})
    return table


def turn_seconds(
    root: Path, store: ClipStore | None, report: Report | None = None
) -> Iterator[tuple[Dialogue, list[float]]]:
    """Yields each dialogue whose answer exists, as a file or in the store, with the seconds of each turn.

    Unusable dialogues are added to the report.
    """
    from vidchat.data.media.read import length_of

    headers: dict[Path, float] = {}
    for position, entry in entries(manifest_of(root)):
        try:
            dialogue = make_dialogue(root, parse_entry(entry), media=False)
            seconds: list[float | None] = []
            for clip in (turn.clip for turn in dialogue.turns):
                if not clip.path.is_file():
                    seconds.append(None if store is None else store.seconds(dialogue, clip))
                    continue
                if clip.end is None and clip.path not in headers:
                    headers[clip.path] = length_of(clip.path)
                seconds.append((headers[clip.path] if clip.end is None else clip.end) - clip.start)
        except (ValueError, TypeError, OSError) as error:
            if report is not None:
                report.skipped.append((position, str(error)))
            continue
        answered = any(turn.clip is dialogue.answer and s for turn, s in zip(dialogue.turns, seconds, strict=True))
        if answered and (store is not None or None not in seconds):
            yield dialogue, [value or 0.0 for value in seconds]
        elif report is not None:
            report.skipped.append((position, "some of its clips do not exist, as files or in shards"))


def store_distributions(root: Path, store: ClipStore, source: str) -> Distributions:
    """Returns the distributions of a folder's clips in a store, from the dialogues; resolutions are unknown.

    Args:
        root: Data folder.
        store: Media shards or tokens of the folder.
        source: Name of the store in the plot.
    """
    result, seen, rows = Distributions(), set[tuple[str, float]](), list[dict[str, Any]]()
    for dialogue, seconds in turn_seconds(root, store):
        for turn, duration in zip(dialogue.turns, seconds, strict=True):
            span = str(turn.clip.path), turn.clip.start
            if duration and span not in seen:
                seen.add(span)
                words = None if turn.clip.text is None else len(turn.clip.text.split())
                scores = {name: value for name, value in turn.clip.scores.items() if name in COLUMNS}
                rows.append({**scores, "duration_s": duration, "words": words, "source": source})
        if len(rows) >= ROWS:
            result.add(as_table(rows))
            rows = []
    result.add(as_table(rows))
    return result


def by_branch_and_tier(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums the rows over splits, and adds a column with the number of dialogues of each split."""
    sums: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in table:
        key = (row["branch"], row["kind"], row["tier"])
        totals = sums.setdefault(
            key, {"dialogues": 0, "answer_hours": 0.0, "hours": 0.0, "train": 0, "val": 0, "test": 0}
        )
        for name in ("dialogues", "answer_hours", "hours"):
            totals[name] += row[name]
        totals[row["split"]] += row["dialogues"]
    named = ((dict(zip(("branch", "kind", "tier"), key, strict=True)), row) for key, row in sorted(sums.items()))
    return [{**key, **row} for key, row in named]


def draw(stats: Distributions, path: Path) -> None:
    """Plots distributions into an image file; raises `ManifestError` without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise ManifestError("drawing needs matplotlib; install it with: pip install 'vidchat[demo]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(15, 6.5))
    panels = [axis for row in axes for axis in row]
    for axis, name in zip(panels, ("duration_s", "dover", "sync_confidence", "words"), strict=False):
        _histogram(axis, stats, [name])
        axis.set_title(MEASURES[name][3])
    _histogram(panels[4], stats, ["face_blur", "hand_blur"])
    panels[4].set_title("sharpness of face and hands")
    if panels[4].has_data() and panels[4].patches:
        panels[4].legend(fontsize=8)
    order = [f"< {HEIGHTS[0]}p", *(f"{height}p" for height in HEIGHTS)]
    _bars(
        panels[5],
        {name: stats.heights[name] for name in order if stats.heights[name]},
        "resolution of the source",
    )
    _bars(panels[6], dict(reversed(stats.topics.most_common(12))), "topics")
    panels[7].axis("off")
    lines = [f"{stats.clips:,} clips", f"{stats.hours:,.1f} hours"]
    lines += [f"{source}: {count:,}" for source, count in stats.sources.most_common()]
    panels[7].text(0.05, 0.95, "\n".join(lines), va="top", fontsize=13)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=110, format=path.suffix[1:] or "png")
    plt.close(figure)


def _histogram(axis: Any, stats: Distributions, names: list[str]) -> None:
    for name in names:
        low, high, bins, label = MEASURES[name]
        count, total = stats.sums.get(name, [0, 0.0])
        if not count:
            continue
        edges = np.linspace(low, high, bins + 1)
        axis.stairs(stats.histograms[name], edges, fill=True, alpha=0.6, label=label)
        axis.axvline(total / count, linestyle="--", color="0.4", linewidth=1)
    if not axis.has_data():
        axis.text(0.5, 0.5, "no data", ha="center", transform=axis.transAxes)
    axis.set_ylabel("clips")


def _bars(axis: Any, counts: Mapping[str, int], title: str) -> None:
    axis.set_title(title)
    if counts:
        axis.barh(list(counts), list(counts.values()), alpha=0.7)
        axis.set_xlabel("clips")
    else:
        axis.text(0.5, 0.5, "no data", ha="center", transform=axis.transAxes)

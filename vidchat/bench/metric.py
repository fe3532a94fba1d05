"""The interface of a metric, which reads features of clips and compares an answer's with the truth's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vidchat.bench.pairs import Pair
from vidchat.data.media.read import Media

Features = dict[str, NDArray]
"""Features of one clip: arrays by name, small enough for a file."""
PROXY = "proxy-"
Better = Literal["higher", "lower"]
"""Direction of better values."""


NO_TURNS = {
    "speaking": "every true answer only listens, so metrics of speech do not apply",
    "listening": "no true answer listens (pairs of the branch 'listening', or whose true answer says nothing)",
    "any": "no pair has what this metric needs",
}
"""Reason why no pair has a value, by the kind of turns that a metric scores."""
ABSENT_FACTOR = -10.0
"""Factor from the features of the true answer to those of a missing clip."""


class BackendError(ValueError):
    """Error about weights or a package that a metric needs; its message is one sentence that says how to get them."""


def need_file(path: Path | str | None, what: str) -> Path:
    """Returns the path if there is such a file; else raises a `BackendError` that says what to give."""
    if path is None or not Path(path).is_file():
        raise BackendError(f"{path}: there is no such file; give {what}")
    return Path(path)


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: Name of the column.
        better: Direction of better values, `higher` or `lower`.
        kind: `mean` over the pairs' values, or `frechet` distance between all features of the system and the truth's.
        digits: Number of decimals.
        worst: Value of a pair whose answer is missing, or for which the column cannot be computed; no answer scores
            worse. `None` where a missing answer has no value at all (a distance between sets, a log).
    """

    name: str
    better: Better
    kind: Literal["mean", "frechet"] = "mean"
    digits: int = 3
    worst: float | None = None

    def bounded(self, value: float, truth: float, share: float = 1.0) -> float:
        """Bounds a pair's value by `worst` below and by the true answer's value above.

        An answer beyond the truth (a frozen face is more like the reference than one that turns, a louder mouth is
        better in sync) counts as equal to the truth.

        Args:
            value: Value of the answer; `nan` if it has none.
            truth: Value of the true answer; `nan` if it has none.
            share: Share of the scored span that the answer covers; the rest counts as `worst`, so that an answer gains
                in no metric by ending early.

        Returns:
            The bounded value; `nan` if the truth's is.
        """
        if math.isnan(truth) or self.worst is None:
            return truth if math.isnan(truth) else value
        at_least, at_most = (max, min) if self.better == "higher" else (min, max)
        value = self.worst if math.isnan(value) else at_most(at_least(value, self.worst), at_least(truth, self.worst))
        return share * value + (1 - share) * self.worst if share < 1 else value


class Metric(ABC):
    """A metric of one dimension. All metrics share one decoding of a clip.

    Attributes:
        dimension: Dimension of the benchmark: one of the paper's six, or of ours.
        columns: Columns of the table.
        proxy: Whether it stands in for the canonical metric, whose weights it does not need.
        needs_truth: Whether `read` compares with the truth, frame by frame.
        needs_reference: Whether `compare` uses the features of the reference.
        needs_candidates: Whether only pairs with candidate replies can be scored.
        turns: Kind of turns that can be scored: `speaking`, `listening`, or `any`.
        needs: Condition on a pair, as text for a table in which no pair meets it.
        doubt: Limitation on filmed people, as a sentence for the report.
    """

    dimension: ClassVar[str]
    columns: tuple[Column, ...]
    proxy: bool = True
    needs_truth: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    needs_candidates: ClassVar[bool] = False
    turns: ClassVar[Literal["speaking", "listening", "any"]] = "any"
    needs: ClassVar[str] = ""
    doubt: ClassVar[str] = ""

    @property
    def compares_sets(self) -> bool:
        """Returns whether a column is a distance between sets; its rows are read of `ScoredClip.media_for_sets`."""
        return any(column.kind == "frechet" for column in self.columns)

    def missing_requirement(self, pair: Pair, listens: bool) -> str:
        """Returns what a pair lacks for this metric, in a few words; empty if it can be scored.

        Args:
            pair: Pair of the benchmark.
            listens: Whether the true answer only listens.
        """
        if self.needs_candidates and len(pair.candidates) < 2:
            return "no candidate replies"
        if self.turns == "speaking" and listens:
            return "the responder only listens"
        if self.turns == "listening" and not listens:
            return "the responder speaks"
        return ""

    @abstractmethod
    def spec(self) -> Mapping[str, object]:
        """Returns everything of this metric that a value depends on, as parts of the protocol string."""

    @abstractmethod
    def read(self, media: Media, truth: Media | None = None) -> Features:
        """Returns the features of a clip; those of a `frechet` column are `rows`, (n, D)."""

    def absent(self, truth: Features) -> Features:
        """Returns features of a missing clip for distances between sets: farther from the truth than any clip's.

        By default they are the truth's features times -10, which are far from any clip whose features have the truth's
        order of magnitude. A metric whose features have bounds overrides this with features beyond the bounds.

        Args:
            truth: Features of the true answer.
        """
        return {"rows": ABSENT_FACTOR * truth["rows"]}

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        """Returns a value for each `mean` column; `nan` where the clip has none.

        Args:
            generated: Features of the generated clip.
            truth: Features of the true answer.
            reference: Features of the reference, a clip of one frame; empty unless `needs_reference`.
            pair: Pair of the benchmark.
        """
        return {}


def bounded_values(
    metric: Metric, generated: Mapping[str, float], truth: Mapping[str, float], share: float = 1.0
) -> dict[str, float]:
    """Returns a pair's values of the `mean` columns, no better than the truth's and no worse than a missing answer's.

    Args:
        metric: Metric whose columns are bounded.
        generated: Result of `compare` for the answer; empty for a missing answer.
        truth: Result of `compare` for the true answer.
        share: Share of the scored span that the answer covers; less than 1 only if the answer is `short`.
    """
    means = [column for column in metric.columns if column.kind == "mean"]
    missing = math.nan
    return {c.name: c.bounded(generated.get(c.name, missing), truth.get(c.name, missing), share) for c in means}


def column_title(name: str, proxy: bool) -> str:
    """Returns the name under which a column is published; that of a proxy is marked by a prefix."""
    return f"{PROXY}{name}" if proxy else name


def cosine(a: NDArray, b: NDArray) -> NDArray:
    """Returns the cosine similarity of vectors (..., D) over the last axis, (...); 0 where a vector is 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(-1), scale, out=np.zeros(np.broadcast(scale).shape), where=scale > 1e-20)


def even_indices(length: int, count: int | None) -> NDArray[np.int64]:
    """Returns `count` frame indices, evenly spaced from the first to the last; all for `None`."""
    if count is None:
        return np.arange(length)
    return np.round(np.linspace(0, length - 1, count)).astype(np.int64)

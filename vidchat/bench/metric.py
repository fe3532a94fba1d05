"""What a measure is: it reads features of a clip, and compares those of a generated one with those of the truth."""

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
"""Arrays by name, of one clip; small enough for a file."""
PROXY = "proxy-"
Better = Literal["higher", "lower"]
"""Which way is better."""


NO_TURNS = {
    "speaking": "every true answer only listens, so measures of speech do not apply",
    "listening": "no true answer listens (pairs of the branch 'listening', or whose true answer says nothing)",
    "any": "no pair has what it needs",
}
"""Why no pair has a measure's number, by the turns that it can measure."""
FAR = -10.0
"""Features of a missing clip, in those of its truth."""


class BackendError(ValueError):
    """Weights or a package that a measure needs, and how to get them, in one sentence."""


def need_file(path: Path | str | None, what: str) -> Path:
    """The file of some weights, or an error that says what it should be."""
    if path is None or not Path(path).is_file():
        raise BackendError(f"{path}: there is no such file; give {what}")
    return Path(path)


@dataclass(frozen=True)
class Column:
    """One number of the table.

    Attributes:
        name: Heads the column.
        better: Which way is better.
        kind: `mean` over the pairs' values, or `frechet` distance between all features of the system and the truth's.
        digits: Behind the point.
        worst: Value of a pair whose answer is missing, or is such that the column cannot be computed; no answer scores
            worse. `None` where a missing answer has no value at all (a distance between sets, a log).
    """

    name: str
    better: Better
    kind: Literal["mean", "frechet"] = "mean"
    digits: int = 3
    worst: float | None = None

    def between(self, value: float, truth: float, share: float = 1.0) -> float:
        """Bounds a pair's value by `worst` below and by the true answer's value above.

        An answer that passes the truth (a frozen face is more like the reference than one that turns, a louder mouth
        is better in sync) is as good as the truth, not better.

        Args:
            value: Value of the answer; `nan` if it cannot have one.
            truth: Value of the true answer; `nan` if this pair cannot have one.
            share: Share of the span that counts which the answer covers; the rest counts as `worst`, so that to end
                early is no gain in any measure.

        Returns:
            The bounded value; `nan` if the truth's is.
        """
        if math.isnan(truth) or self.worst is None:
            return truth if math.isnan(truth) else value
        pick, against = (max, min) if self.better == "higher" else (min, max)
        kept = self.worst if math.isnan(value) else against(pick(value, self.worst), pick(truth, self.worst))
        return share * kept + (1 - share) * self.worst if share < 1 else kept


class Metric(ABC):
    """One way to measure one dimension. All measures of a clip share one decoding of it.

    Attributes:
        dimension: Dimension of the benchmark: one of the paper's six, or one of ours.
        columns: Columns of the table that it fills.
        proxy: Whether it stands in for the canonical measure, whose weights it does without.
        beside: Whether `read` compares frame by frame, and so needs the truth beside the clip.
        needs_reference: Whether `compare` looks at the reference, which is then read too.
        needs_candidates: Whether it can only measure pairs that have candidate replies.
        turns: Kind of turns that it can measure: `speaking`, `listening`, or `any`.
        needs: Condition on a pair, as a sentence for a table in which no pair meets it.
        doubt: Limit of its numbers on filmed people, as a sentence for the report.
    """

    dimension: ClassVar[str]
    columns: tuple[Column, ...]
    proxy: bool = True
    beside: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    needs_candidates: ClassVar[bool] = False
    turns: ClassVar[Literal["speaking", "listening", "any"]] = "any"
    needs: ClassVar[str] = ""
    doubt: ClassVar[str] = ""

    @property
    def compares_sets(self) -> bool:
        """Whether it has a distance between sets; its rows are then read of `Found.whole`, too."""
        return any(column.kind == "frechet" for column in self.columns)

    def lacks(self, pair: Pair, listens: bool) -> str:
        """What a pair lacks for this measure, in a few words; empty if it can be taken.

        Args:
            pair: Pair of the benchmark.
            listens: Whether the true answer listens, and says nothing.
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
        """Everything of this measure that a number depends on, in the words of the protocol string."""

    @abstractmethod
    def read(self, media: Media, truth: Media | None = None) -> Features:
        """Features of a clip. A `frechet` column's are `rows`, (n, D)."""

    def absent(self, true: Features) -> Features:
        """Features of a missing clip, for distances between sets: farther from any truth than those of any clip.

        Here they are the truth's, turned around and ten times as long, which no clip comes near whose features have the
        truth's order of magnitude; a measure that knows bounds of its features overrides this with what is beyond them.

        Args:
            true: Features of the true answer.
        """
        return {"rows": FAR * true["rows"]}

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        """A value for each `mean` column; `nan` where the clip (of the truth: the pair) cannot have one.

        Args:
            made: Features of the generated clip.
            true: Features of the true answer.
            reference: Features of the reference, as a clip of one frame without audio; empty unless asked for.
            pair: Pair of the benchmark.
        """
        return {}


def bounded_values(
    metric: Metric, made: Mapping[str, float], truth: Mapping[str, float], share: float = 1.0
) -> dict[str, float]:
    """The values of a pair's `mean` columns, each no better than the truth's and no worse than a missing answer's.

    Args:
        measure: Measure whose columns are bounded.
        made: Result of `compare` for the answer; empty for a missing one.
        truth: Result of `compare` for the true answer.
        share: Share of the span that counts which the answer covers; less than 1 only if it is `short`.
    """
    means = [column for column in metric.columns if column.kind == "mean"]
    missing = math.nan
    return {c.name: c.between(made.get(c.name, missing), truth.get(c.name, missing), share) for c in means}


def titled(name: str, proxy: bool) -> str:
    """The name under which a column's numbers are published: a proxy's is its own, not the canonical measure's."""
    return f"{PROXY}{name}" if proxy else name


def cosine(a: NDArray, b: NDArray) -> NDArray:
    """Returns the cosine over the last axis; 0 where a vector is 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(-1), scale, out=np.zeros(np.broadcast(scale).shape), where=scale > 1e-20)


def evenly(length: int, wanted: int | None) -> NDArray[np.int64]:
    """`wanted` indices spread evenly over a clip from its first frame to its last; all for `None`."""
    if wanted is None:
        return np.arange(length)
    return np.round(np.linspace(0, length - 1, wanted)).astype(np.int64)

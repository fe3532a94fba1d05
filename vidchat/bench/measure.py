"""What a measure is: it reads features of a clip, and compares those of a generated one with those of the truth."""

from __future__ import annotations

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
Better = Literal["higher", "lower", "zero", "truth"]
"""Which way is better; `truth` is as near to the true answer's value as can be."""


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
    """

    name: str
    better: Better
    kind: Literal["mean", "frechet"] = "mean"
    digits: int = 3


class Measure(ABC):
    """One way to measure one dimension. All measures of a clip share one decoding of it.

    Attributes:
        dimension: Of the paper's six, or of ours.
        columns: What it gives.
        proxy: Whether it stands in for the canonical measure, whose weights it does without.
        beside: Whether `read` compares picture by picture, and so needs the truth beside the clip.
        needs_reference: Whether `compare` looks at the reference, which is then read too.
        needs_candidates: Whether it can only measure pairs that have candidate replies.
    """

    dimension: ClassVar[str]
    columns: tuple[Column, ...]
    proxy: bool = True
    beside: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    needs_candidates: ClassVar[bool] = False

    @abstractmethod
    def spec(self) -> Mapping[str, object]:
        """Everything of this measure that a number depends on, in the words of the protocol string."""

    @abstractmethod
    def read(self, media: Media, truth: Media | None = None) -> Features:
        """Features of a clip. A `frechet` column's are `rows`, (n, D)."""

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        """A value for each `mean` column, `nan` where this pair cannot have one (not: where the clip is bad).

        Args:
            made: Features of the generated clip.
            true: Of the true answer.
            reference: Of the responder's picture, as a clip of one picture without sound; empty unless asked for.
            pair: What was asked.
        """
        return {}


def cosine(a: NDArray, b: NDArray) -> NDArray:
    """Of the last axis; 0 where a vector is 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(-1), scale, out=np.zeros(np.broadcast(scale).shape), where=scale > 1e-20)


def evenly(length: int, wanted: int | None) -> NDArray[np.int64]:
    """`wanted` indices spread evenly over a clip from its first picture to its last; all for `None`."""
    if wanted is None:
        return np.arange(length)
    return np.round(np.linspace(0, length - 1, wanted)).astype(np.int64)

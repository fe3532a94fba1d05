"""What the indexes of a track's shards tell of its pieces, as columns: some 70 bytes for each of millions of pieces.

A piece's key ends in 64 bits of hash, written in hex (`TokenCache.key`); here that number stands for the key.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from operator import index
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vidchat.data.columns import Columns
from vidchat.data.tokens.shards import Member, reading

Stamp = tuple[int, int] | None  # of a clip's bytes: what changes when they do; None where they are not there
ABSENT = -1  # bytes of a clip that is not there


class Sample(NamedTuple):
    """One span's tokens: where they are, and the shape they have."""

    member: Member
    shape: tuple[int, ...]


class Entry(NamedTuple):
    """An encoded piece: its shard, its spans, the stamp of the clip it was made of, and its first span's number."""

    shard: int
    samples: tuple[Sample, ...]
    stamp: Stamp
    number: int


def number_of(key: str) -> int:
    """The number that stands for a piece's key."""
    return int(key[-16:], 16)


def key_of(number: int) -> str:
    """A key for the same piece."""
    return f"{number:016x}"


class TrackIndex:
    """The pieces of a track by key. Of two entries of a piece that one counts whose shard is of a later generation.

    Args:
        indexes: The index files of the shards.

    Raises:
        ShardError: One of them is damaged.

    Attributes:
        shards: The tars.
        generations: Of each.
        count: Samples.
    """

    def __init__(self, indexes: Iterable[Path]) -> None:
        self.shards: list[Path] = []
        self.generations: list[int] = []
        pieces = Columns(piece="Q", shard="i", first="q", spans="i", size="q", time="Q")
        samples = Columns(offset="q", size="q", check="Q", shape="i")
        bad: list[tuple[int, str, Stamp, str]] = []
        self._shapes: dict[tuple[int, ...], int] = {}
        for path in indexes:
            with reading(path):
                bad += self._add(path, pieces, samples)
        self.count, self._samples = len(samples), samples
        order = sorted(range(len(self.shards)), key=lambda shard: (self.generations[shard], self.shards[shard]))
        self._rank = np.empty(len(order), np.int64)
        self._rank[order] = np.arange(len(order))
        self._pieces = self._latest(pieces)
        self._bad = self._still_bad(bad)
        self._shape_list = list(self._shapes)

    def _add(self, path: Path, pieces: Columns, samples: Columns) -> list[tuple[int, str, Stamp, str]]:
        """Appends what one index tells of; returns the pieces that could not be encoded."""
        told = json.loads(path.read_text())
        some = told["pieces"]
        spans = [len(piece["samples"]) for piece in some]
        if 0 in spans:
            raise ValueError("a piece without samples")
        stamps = [_stamp(piece["stamp"]) or (ABSENT, 0) for piece in some]
        pieces.extend(
            piece=[number_of(piece["key"]) for piece in some],
            shard=[len(self.shards)] * len(some),
            first=list(accumulate(spans, initial=len(samples)))[:-1],
            spans=spans,
            size=[size for size, _ in stamps],
            time=[time for _, time in stamps],
        )
        every = [sample for piece in some for sample in piece["samples"]]
        samples.extend(
            offset=[sample[0] for sample in every],
            size=[sample[1] for sample in every],
            check=[int(sample[2], 16) for sample in every],
            shape=[self._shape(tuple(map(index, sample[3]))) for sample in every],
        )
        self.generations.append(index(told["generation"]))
        self.shards.append(path.with_suffix(".tar"))
        return [
            (len(self.shards) - 1, key_of(number_of(piece["key"])), _stamp(piece["stamp"]), str(piece["why"]))
            for piece in told["bad"]
        ]

    def _shape(self, shape: tuple[int, ...]) -> int:
        return self._shapes.setdefault(shape, len(self._shapes))

    def _latest(self, pieces: Columns) -> Columns:
        """Sorted by piece; of each piece the entry that counts."""
        key = pieces.view("piece")
        order = np.lexsort((self._rank[pieces.view("shard")], key))
        last = np.append(key[order][1:] != key[order][:-1], True)[: len(order)]
        return pieces.taken(order[last])

    def _still_bad(self, bad: list[tuple[int, str, Stamp, str]]) -> dict[int, tuple[Stamp, str, int]]:
        """Those that no later shard holds."""
        found: dict[int, tuple[Stamp, str, int]] = {}
        for shard, key, stamp, why in sorted(bad, key=lambda one: self._rank[one[0]]):
            row = self._row(key)
            if row is None or self._rank[self._pieces["shard"][row]] <= self._rank[shard]:
                found[number_of(key)] = (stamp, why, shard)
        return found

    def _row(self, key: str) -> int | None:
        wanted = number_of(key)
        row = bisect_left(self._pieces["piece"], wanted)
        return row if row < len(self._pieces) and self._pieces["piece"][row] == wanted else None

    def rows(self, pieces: np.ndarray) -> np.ndarray:
        """(n,) int64 the rows of n pieces (uint64, the numbers that stand for their keys); -1 where there is none."""
        known = self._pieces.view("piece")
        if not len(known):
            return np.full(len(pieces), -1)
        order = np.argsort(pieces)  # neighbours are looked for one after the other, which a processor's cache likes
        rows = np.empty(len(pieces), np.int64)
        rows[order] = np.minimum(np.searchsorted(known, pieces[order]), len(known) - 1)
        return np.where(known[rows] == pieces, rows, -1)

    def good(self, pieces: np.ndarray, sizes: np.ndarray, times: np.ndarray) -> np.ndarray:
        """(n,) whether n pieces are encoded, of clips that have these stamps or are gone (a size of `ABSENT`)."""
        rows = self.rows(pieces)
        found = rows >= 0
        if not found.any():
            return found
        same = (self._pieces.view("size")[rows] == sizes) & (self._pieces.view("time")[rows] == times)
        known_bad = np.isin(pieces, np.fromiter(self._bad, np.uint64, len(self._bad)))
        return found & (same | (sizes == ABSENT)) & ~known_bad

    def spans(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of n rows the first sample's number and how many samples there are, (n,) each."""
        return self._pieces.view("first")[rows], self._pieces.view("spans")[rows]

    def shapes(self, samples: np.ndarray) -> np.ndarray:
        """(n, d) the shapes of n samples, by their numbers."""
        return np.array(self._shape_list, np.int64)[self._samples.view("shape")[samples]]

    def entry(self, key: str) -> Entry | None:
        """An encoded piece, or `None`."""
        row = self._row(key)
        if row is None:
            return None
        _, shard, first, spans, size, time = self._pieces.row(row)
        samples = tuple(self._sample(number) for number in range(first, first + spans))
        return Entry(shard, samples, None if size == ABSENT else (size, time), first)

    def _sample(self, number: int) -> Sample:
        offset, size, check, shape = self._samples.row(number)
        return Sample(Member(offset, size, f"{check:016x}"), self._shape_list[shape])

    def bad(self, key: str) -> tuple[Stamp, str, int] | None:
        """The stamp of a clip that could not be encoded, why, and the shard that tells of it."""
        return self._bad.get(number_of(key)) if self._bad else None

    def shards_of(self, samples: np.ndarray) -> np.ndarray:
        """(n,) the shards of n samples, by their numbers."""
        return self._pieces.view("shard")[self._rows_of(samples)]

    def pieces_of(self, samples: np.ndarray) -> list[int]:
        """The numbers that stand for the keys of the pieces of some samples, each once."""
        found: list[int] = np.unique(self._pieces.view("piece")[self._rows_of(samples)]).tolist()
        return found

    def _rows_of(self, samples: np.ndarray) -> np.ndarray:
        first = self._pieces.view("first")
        order = np.argsort(first, kind="stable")
        rows: np.ndarray = order[np.searchsorted(first[order], samples, side="right") - 1]
        return rows


def _stamp(told: list[int] | None) -> Stamp:
    return None if told is None else (told[0], told[1] % 2**64)

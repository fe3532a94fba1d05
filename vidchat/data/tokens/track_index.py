"""What the indexes of a track's shards tell of its pieces, as columns: some 70 bytes for each of millions of pieces.

A piece's key ends in 64 bits of hash, written in hex (`TokenCache.key`); here that number stands for the key.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vidchat.data.columns import Columns
from vidchat.data.tokens.shards import Member

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
            told = json.loads(path.read_text())
            for piece in told["pieces"]:
                stamp = _stamp(piece["stamp"]) or (ABSENT, 0)
                spans = piece["samples"]
                pieces.add(number_of(piece["key"]), len(self.shards), len(samples), len(spans), *stamp)
                for offset, size, check, shape in spans:
                    samples.add(offset, size, int(check, 16), self._shape(tuple(shape)))
            bad += [(len(self.shards), piece["key"], _stamp(piece["stamp"]), piece["why"]) for piece in told["bad"]]
            self.shards.append(path.with_suffix(".tar"))
            self.generations.append(told["generation"])
        self.count, self._samples = len(samples), samples
        order = sorted(range(len(self.shards)), key=lambda shard: (self.generations[shard], self.shards[shard]))
        self._rank = np.empty(len(order), np.int64)
        self._rank[order] = np.arange(len(order))
        self._pieces = self._latest(pieces)
        self._bad = self._still_bad(bad)
        self._shape_list = list(self._shapes)

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
        first = self._pieces.view("first")
        order = np.argsort(first, kind="stable")
        place = np.searchsorted(first[order], samples, side="right") - 1
        return self._pieces.view("shard")[order[place]]


def _stamp(told: list[int] | None) -> Stamp:
    return None if told is None else (told[0], told[1] % 2**64)

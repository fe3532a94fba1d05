"""What the indexes of a track's shards say of its pieces, as the columns of one index (`vidchat.data.index`).

A piece's key ends in 64 bits of hash, written in hex (`TokenCache.key`); here that number stands for the key.
"""

from __future__ import annotations

import json
import os
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from vidchat.data.index import Columns, Index, IndexWriter, open_index
from vidchat.data.tokens.shards import Member, reading

Stamp = tuple[int, int] | None  # of a clip's bytes: what changes when they do; None where they are not there
Bad = tuple[int, Stamp, str, int]  # a piece that could not be encoded, its clip's stamp, why, and the shard
ABSENT = -1  # bytes of a clip that is not there
FORMAT = 1  # of the index; another number makes old ones void
# Pieces, sorted by key, and their samples, one piece's after the other's.
TABLES = {
    "pieces": {"piece": "u8", "shard": "i4", "first": "i8", "spans": "i4", "size": "i8", "time": "u8"},
    "samples": {"offset": "i8", "size": "i8", "check": "u8", "shape": "i4"},
}
BLOCK = 1 << 20  # pieces that are looked for at a time, which bounds the memory that this takes


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
        folder: The track's folder.
        keep: Whether the index is kept in a file; else it is made in memory.

    Raises:
        ShardError: The index of a shard is damaged.

    Attributes:
        shards: The tars.
        generations: The generation of each.
        count: Samples.
    """

    def __init__(self, folder: Path, keep: bool = False) -> None:
        names, stamp = _indexes(folder)
        build = partial(_build, folder, names, stamp)
        self._use(folder, open_index(index_of(folder), stamp, build, writable=keep and bool(names)))

    def _use(self, folder: Path, index: Index) -> None:
        self._state, more = (folder, index), index.more
        self._pieces, self._samples = index.tables["pieces"], index.tables["samples"]
        self.shards, self.generations = [folder / name for name in more["shards"]], more["generations"]
        self.count, self._shapes = len(self._samples["shape"]), [tuple(shape) for shape in more["shapes"]]
        self._bad = {segment: (_stamp(stamp), why, shard) for segment, stamp, why, shard in more["bad"]}

    def __getstate__(self) -> Any:
        return self._state  # another process maps the same file

    def __setstate__(self, state: Any) -> None:
        self._use(*state)

    def _row(self, key: str) -> int | None:
        known, wanted = self._pieces["piece"], number_of(key)
        row = int(known.searchsorted(np.uint64(wanted)))
        return row if row < len(known) and known[row] == wanted else None

    def rows(self, segments: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
        """(n,) int32 the rows of n pieces (uint64, the numbers that stand for their keys); -1 where there is none.

        Args:
            pieces: (n,) the pieces.
            order: (n,) what sorts them; neighbours are found faster one after the other.
        """
        known, rows = self._pieces["piece"], np.full(len(segments), -1, np.int32)
        order = np.argsort(segments) if order is None else order
        for first in range(0, len(order) if len(known) else 0, BLOCK):
            some = order[first : first + BLOCK]
            wanted = segments[some]
            place = np.minimum(known.searchsorted(wanted), len(known) - 1)
            rows[some] = np.where(known[place] == wanted, place, -1)
        return rows

    def good(self, rows: np.ndarray, stamps: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
        """(n,) whether n pieces are encoded, by their rows.

        Args:
            rows: (n,) their rows, as `rows` gives them.
            stamps: (n,) sizes (`ABSENT` of clips that are gone) and (n,) times of their clips; `None` where they may
                be of any.
        """
        if not len(self._pieces["piece"]):
            return np.zeros(len(rows), bool)
        found = rows >= 0
        if stamps is not None:
            sizes, times = stamps
            same = (self._pieces["size"][rows] == sizes) & (self._pieces["time"][rows] == times)
            found &= same | (sizes == ABSENT)
        if self._bad:
            found &= ~np.isin(self._pieces["piece"][rows], np.fromiter(self._bad, np.uint64, len(self._bad)))
        return found

    def spans(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) the first sample's number of n rows, and (n,) how many samples there are."""
        return self._pieces["first"][rows], self._pieces["spans"][rows]

    def shapes(self, samples: np.ndarray) -> np.ndarray:
        """(n, d) the shapes of n samples, by their numbers."""
        return np.array(self._shapes, np.int64)[self._samples["shape"][samples]]

    def entry(self, key: str) -> Entry | None:
        """An encoded piece, or `None`."""
        row = self._row(key)
        if row is None:
            return None
        _, shard, first, spans, size, time = (column[row].item() for column in self._pieces.values())
        samples = tuple(self._sample(number) for number in range(first, first + spans))
        return Entry(shard, samples, None if size == ABSENT else (size, time), first)

    def _sample(self, number: int) -> Sample:
        offset, size, check, shape = (column[number].item() for column in self._samples.values())
        return Sample(Member(offset, size, f"{check:016x}"), self._shapes[shape])

    def bad(self, key: str) -> tuple[Stamp, str, int] | None:
        """The stamp of a clip that could not be encoded, why, and the shard that tells of it."""
        return self._bad.get(number_of(key)) if self._bad else None

    def shards_of(self, samples: np.ndarray) -> np.ndarray:
        """(n,) the shards of n samples, by their numbers."""
        return self._pieces["shard"][self._rows_of(samples)]

    def segments_of(self, samples: np.ndarray) -> list[int]:
        """The numbers that stand for the keys of the pieces of some samples, each once."""
        found: list[int] = np.unique(self._pieces["piece"][self._rows_of(samples)]).tolist()
        return found

    def _rows_of(self, samples: np.ndarray) -> np.ndarray:
        first = self._pieces["first"]
        order = np.argsort(first, kind="stable")
        rows: np.ndarray = order[np.searchsorted(first[order], samples, side="right") - 1]
        return rows


def index_of(folder: Path) -> Path:
    """The file of a track's index: beside the manifest, as what lies in the folder itself is shards alone."""
    return folder.parent.parent / f"{folder.parent.name}-{folder.name}.index.arrow"


def _indexes(folder: Path) -> tuple[list[str], str]:
    """The names of the indexes of a folder's shards, and a stamp of them all."""
    found = []
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("shard-") and entry.name.endswith(".json"):
                    status = entry.stat()
                    found.append((entry.name, status.st_size, status.st_mtime_ns))
    found.sort()
    digest = xxhash.xxh3_128_hexdigest(json.dumps(found).encode())
    return [name for name, *_ in found], f"{FORMAT} {digest}"


def _build(folder: Path, names: list[str], stamp: str, sink: Any) -> None:
    """Writes the index of shards, whose own indexes bear these names; the memory is some 70 bytes a piece."""
    writer, generations, bad = IndexWriter(sink, stamp, TABLES), list[int](), list[Bad]()
    shapes: dict[tuple[int, ...], int] = {}
    for shard, path in enumerate(map(folder.joinpath, names)):
        with reading(path):
            told = json.loads(path.read_text())
            generations.append(index(told["generation"]))
            for segment in told["pieces"]:
                samples, (size, time) = segment["samples"], _stamp(segment["stamp"]) or (ABSENT, 0)
                if not samples:
                    raise ValueError("a piece without samples")
                first = writer.count("samples")
                writer.row("pieces", number_of(segment["key"]), shard, first, len(samples), size, time)
                for offset, length, check, shape in samples:
                    number = shapes.setdefault(tuple(map(index, shape)), len(shapes))
                    writer.row("samples", offset, length, int(check, 16), number)
            bad += [(number_of(one["key"]), _stamp(one["stamp"]), str(one["why"]), shard) for one in told["bad"]]
    rank = np.argsort(np.lexsort((np.arange(len(names)), np.array(generations, np.int64))))
    segments = writer.tables["pieces"] = _latest(writer.tables["pieces"], rank)
    more = {"shards": [name.removesuffix(".json") + ".tar" for name in names], "generations": generations}
    writer.finish(more | {"shapes": list(shapes), "bad": _still_bad(bad, segments, rank)})


def _latest(segments: Columns, rank: np.ndarray) -> dict[str, np.ndarray]:
    """Pieces sorted by key; of each key the entry that counts, whose shard has the highest rank."""
    segments = {name: np.array(column) for name, column in segments.items()}
    order = np.lexsort((rank[segments["shard"]], segments["piece"]))
    keys = segments["piece"][order]
    order = order[np.append(keys[1:] != keys[:-1], True)[: len(keys)]]
    return {name: column[order] for name, column in segments.items()}


def _still_bad(bad: list[Bad], segments: Columns, rank: np.ndarray) -> list[Bad]:
    """The pieces that could not be encoded and that no later shard holds."""
    keys, found = segments["piece"], dict[int, Bad]()
    for segment, stamp, why, shard in sorted(bad, key=lambda one: rank[one[3]]):
        row = int(keys.searchsorted(np.uint64(segment)))
        held = row < len(keys) and keys[row] == segment
        if not held or rank[segments["shard"][row]] <= rank[shard]:
            found[segment] = segment, stamp, why, shard
    return list(found.values())


def _stamp(told: list[int] | None) -> Stamp:
    return None if told is None else (told[0], told[1] % 2**64)

"""Which segments the shards of a track hold, and where, as the columns of one index (`vidchat.data.index`).

A segment's key ends in 64 bits of hash, written in hex (`TokenCache.key`); here that number stands for the key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from vidchat.data.index import Columns, Index, IndexWriter, open_index
from vidchat.data.tokens.shards import Member, reading

Stamp = tuple[int, int] | None  # size and time of a clip's bytes, which change when they do; None if they are not there
Bad = tuple[int, Stamp, str, int]  # a segment that could not be encoded, its clip's stamp, why, and the shard
ABSENT = -1  # size of a clip that is not there
FORMAT = 2  # of the index; another number makes old ones void
# Segments sorted by key, and their samples (one for each span), those of one segment after the other. Shards, and their
# names, each of which ends at `name_end`.
TABLES = {
    "segments": {"segment": "u8", "shard": "i4", "first": "i8", "spans": "i4", "size": "i8", "time": "u8"},
    "samples": {"offset": "i8", "size": "i8", "check": "u8", "shape": "i4"},
    "shards": {"generation": "i8", "name_end": "i8"},
    "names": {"byte": "u1"},
}
BLOCK = 1 << 20  # segments that are looked up at a time, which bounds the memory that this takes


class Span(NamedTuple):
    """One span's tokens: where they are, and their shape."""

    member: Member
    shape: tuple[int, ...]


class Entry(NamedTuple):
    """An encoded segment: its shard, its spans, the stamp of the clip it was made of, and its first sample's row."""

    shard: int
    spans: tuple[Span, ...]
    stamp: Stamp
    first: int


def number_of(key: str) -> int:
    """Returns the number that stands for a segment's key."""
    return int(key[-16:], 16)


def key_of(number: int) -> str:
    """Returns a key for the same segment."""
    return f"{number:016x}"


class TrackIndex:
    """The segments of a track by key. Of two entries of a segment the one in the shard of a later generation counts.

    Args:
        folder: The folder of the track.
        keep: Whether the index is kept in a file; else it is built in memory.

    Raises:
        ShardError: The index of a shard is damaged.

    Attributes:
        count: Samples.
    """

    def __init__(self, folder: Path, keep: bool = False) -> None:
        count, stamp = _stamp_of_shards(folder)
        build = partial(_build, folder, stamp)
        self._use(folder, open_index(index_of(folder), stamp, build, writable=keep and count > 0))

    def _use(self, folder: Path, index: Index) -> None:
        self.folder, self._index = folder, index
        self._segments, self._samples = index.tables["segments"], index.tables["samples"]
        self._shards, self._names = index.tables["shards"], index.tables["names"]["byte"]
        self.count, self._shapes = len(self._samples["shape"]), [tuple(shape) for shape in index.more["shapes"]]
        self._bad = {segment: (_stamp(stamp), why, shard) for segment, stamp, why, shard in index.more["bad"]}

    def __getstate__(self) -> Any:
        return self.folder, self._index  # another process maps the same file

    def __setstate__(self, state: Any) -> None:
        self._use(*state)

    def shard_path(self, shard: int) -> Path:
        """Returns the tar of a shard."""
        begin, end = self._shards["name_end"][shard - 1] if shard else 0, self._shards["name_end"][shard]
        return self.folder / os.fsdecode(self._names[begin:end].tobytes())

    def generation(self, shard: int) -> int:
        """Returns the generation of a shard."""
        return int(self._shards["generation"][shard])

    def _row(self, key: str) -> int | None:
        known, number = self._segments["segment"], number_of(key)
        row = int(known.searchsorted(np.uint64(number)))
        return row if row < len(known) and known[row] == number else None

    def rows(self, segments: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
        """Returns (n,) int32, the rows of n segments; -1 where there is none.

        Args:
            segments: (n,) uint64, the numbers that stand for their keys.
            order: (n,) the order that sorts them; neighbours are found faster one after the other.
        """
        known, rows = self._segments["segment"], np.full(len(segments), -1, np.int32)
        order = np.argsort(segments) if order is None else order
        for first in range(0, len(order) if len(known) else 0, BLOCK):
            some = order[first : first + BLOCK]
            wanted = segments[some]
            match = np.minimum(known.searchsorted(wanted), len(known) - 1)
            rows[some] = np.where(known[match] == wanted, match, -1)
        return rows

    def good(self, rows: np.ndarray, stamps: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
        """Returns (n,) whether n segments are encoded, by their rows.

        Args:
            rows: (n,) their rows, as `rows` gives them.
            stamps: (n,) sizes (`ABSENT` of clips that are gone) and (n,) times of their clips; `None` if any will do.
        """
        if not len(self._segments["segment"]):
            return np.zeros(len(rows), bool)
        good = rows >= 0
        if stamps is not None:
            sizes, times = stamps
            same = (self._segments["size"][rows] == sizes) & (self._segments["time"][rows] == times)
            good &= same | (sizes == ABSENT)
        if self._bad:
            good &= ~np.isin(self._segments["segment"][rows], np.fromiter(self._bad, np.uint64, len(self._bad)))
        return good

    def spans(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (n,) the first samples of n rows, and (n,) how many samples each has."""
        return self._segments["first"][rows], self._segments["spans"][rows]

    def shapes(self, samples: np.ndarray) -> np.ndarray:
        """Returns (n, d) the shapes of n samples."""
        return np.array(self._shapes or [(0, 0)], np.int64)[self._samples["shape"][samples]]

    def entry(self, key: str) -> Entry | None:
        """Returns an encoded segment, or `None`."""
        row = self._row(key)
        if row is None:
            return None
        _, shard, first, count, size, time = (column[row].item() for column in self._segments.values())
        spans = tuple(self._span(sample) for sample in range(first, first + count))
        return Entry(shard, spans, None if size == ABSENT else (size, time), first)

    def _span(self, sample: int) -> Span:
        offset, size, check, shape = (column[sample].item() for column in self._samples.values())
        return Span(Member(offset, size, f"{check:016x}"), self._shapes[shape])

    def bad(self, key: str) -> tuple[Stamp, str, int] | None:
        """Returns the stamp of a clip that could not be encoded, why, and the shard that says so."""
        return self._bad.get(number_of(key)) if self._bad else None

    def shards_of(self, samples: np.ndarray) -> np.ndarray:
        """Returns (n,) the shards of n samples."""
        return self._segments["shard"][self._rows_of(samples)]

    def segments_of(self, samples: np.ndarray) -> list[int]:
        """Returns the numbers that stand for the keys of some samples' segments, each once."""
        segments: list[int] = np.unique(self._segments["segment"][self._rows_of(samples)]).tolist()
        return segments

    def _rows_of(self, samples: np.ndarray) -> np.ndarray:
        first = self._segments["first"]
        order = np.argsort(first, kind="stable")
        rows: np.ndarray = order[np.searchsorted(first[order], samples, side="right") - 1]
        return rows


def index_of(folder: Path) -> Path:
    """Returns the file of a track's index: beside the manifest, as the track's folder holds shards alone."""
    return folder.parent.parent / f"{folder.parent.name}-{folder.name}.index.arrow"


def _indexes(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yields the JSON indexes of a folder's shards."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("shard-") and entry.name.endswith(".json"):
                    yield entry


def _stamp_of_shards(folder: Path) -> tuple[int, str]:
    """Returns how many shards there are, and a stamp of them all, whatever order the file system lists them in."""
    count = total = 0
    for entry in _indexes(folder):
        status = entry.stat()
        line = f"{entry.name} {status.st_size} {status.st_mtime_ns}"
        total += xxhash.xxh3_128_intdigest(os.fsencode(line))
        count += 1
    return count, f"{FORMAT} {count} {total % 2**128:032x}"


def _build(folder: Path, stamp: str, sink: Any) -> None:
    """Writes the index of a folder's shards; the memory is some 70 bytes a segment."""
    writer, bad = IndexWriter(sink, stamp, TABLES), list[Bad]()
    shapes: dict[tuple[int, ...], int] = {}
    for shard, name in enumerate(sorted(entry.name for entry in _indexes(folder))):
        with reading(folder / name):
            content = json.loads((folder / name).read_text())
            writer.tables["names"]["byte"].frombytes(os.fsencode(name.removesuffix(".json") + ".tar"))
            writer.row("shards", index(content["generation"]), writer.count("names"))
            for segment in content["pieces"]:
                samples, (size, time) = segment["samples"], _stamp(segment["stamp"]) or (ABSENT, 0)
                if not samples:
                    raise ValueError("a segment without samples")
                first = writer.count("samples")
                writer.row("segments", number_of(segment["key"]), shard, first, len(samples), size, time)
                for offset, length, check, shape in samples:
                    number = shapes.setdefault(tuple(map(index, shape)), len(shapes))
                    writer.row("samples", offset, length, int(check, 16), number)
            bad += [(number_of(s["key"]), _stamp(s["stamp"]), str(s["why"]), shard) for s in content["bad"]]
    generations = np.array(writer.tables["shards"]["generation"], np.int64)
    rank = np.argsort(np.argsort(generations, kind="stable"))
    segments = writer.tables["segments"] = _latest(writer.tables["segments"], rank)
    writer.finish({"shapes": list(shapes), "bad": _still_bad(bad, segments, rank)})


def _latest(segments: Columns, rank: np.ndarray) -> dict[str, np.ndarray]:
    """Sorts segments by key; keeps the entry of each key that counts, whose shard has the highest rank."""
    segments = {name: np.array(column) for name, column in segments.items()}
    order = np.lexsort((rank[segments["shard"]], segments["segment"]))
    keys = segments["segment"][order]
    order = order[np.append(keys[1:] != keys[:-1], True)[: len(keys)]]
    return {name: column[order] for name, column in segments.items()}


def _still_bad(bad: list[Bad], segments: Columns, rank: np.ndarray) -> list[Bad]:
    """Returns the segments that could not be encoded and that no later shard holds."""
    keys, left = segments["segment"], dict[int, Bad]()
    for segment, stamp, why, shard in sorted(bad, key=lambda entry: rank[entry[3]]):
        row = int(keys.searchsorted(np.uint64(segment)))
        held = row < len(keys) and keys[row] == segment
        if not held or rank[segments["shard"][row]] <= rank[shard]:
            left[segment] = segment, stamp, why, shard
    return list(left.values())


def _stamp(stored: list[int] | None) -> Stamp:
    return None if stored is None else (stored[0], stored[1] % 2**64)

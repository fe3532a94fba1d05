"""Indexes: Arrow files that are built once from other files, and then opened memory-mapped by all processes.

An index carries a stamp of the files it was built from. One that is missing, damaged or of another stamp is built
again. If its folder cannot be written, it lies in the user's cache folder; if that cannot be written either, in memory.

A file holds tables of numeric columns, and texts. Every record batch is one row whose lists are whole tables, so that
each column is contiguous in the file: NumPy views of it cost nothing, and all processes share its pages.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from vidchat.data.atomic_path import atomic_path, remove_orphans

log = logging.getLogger(__name__)
TEXTS = 8192  # texts of a record batch
DAMAGE = (OSError, pa.ArrowException, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)
Columns = Mapping[str, np.ndarray]


class StaleIndexError(ValueError):
    """An index that is damaged, or was built from other files."""


class IndexWriter:
    """Writes an index: texts go to the file at once, tables when it is finished.

    Args:
        sink: The file, by name or open.
        stamp: The stamp of the files that the index is built from.
        tables: The type of each column of each table, as `np.dtype` takes it.

    Attributes:
        tables: The columns of each table so far.
    """

    def __init__(self, sink: Any, stamp: str, tables: Mapping[str, Mapping[str, str]]) -> None:
        types = {table: {name: np.dtype(kind) for name, kind in columns.items()} for table, columns in tables.items()}
        self._stamp, self._texts = stamp, list[bytes]()
        self.tables: dict[str, dict[str, Any]] = {
            table: {name: array(kind.char) for name, kind in columns.items()} for table, columns in types.items()
        }
        lists = {
            table: pa.struct([(name, pa.from_numpy_dtype(kind)) for name, kind in columns.items()])
            for table, columns in types.items()
        }
        lists |= {"texts": pa.large_binary(), "seal": pa.large_binary()}
        self._schema = pa.schema([(name, pa.large_list(kind)) for name, kind in lists.items()])
        self._writer = pa.ipc.new_file(sink, self._schema)

    def text(self, text: bytes) -> None:
        """Appends a text."""
        self._texts.append(text)
        if len(self._texts) == TEXTS:
            self._flush()

    def row(self, table: str, *values: float) -> None:
        """Appends a row to a table."""
        for column, value in zip(self.tables[table].values(), values, strict=True):
            column.append(value)

    def count(self, table: str) -> int:
        """Returns how many rows a table has."""
        return len(next(iter(self.tables[table].values())))

    def finish(self, more: Mapping[str, Any]) -> None:
        """Writes the tables, and more values as JSON."""
        self._flush()
        tables = {
            table: {name: np.ascontiguousarray(column) for name, column in columns.items()}
            for table, columns in self.tables.items()
        }
        self._batch(
            **{table: pa.StructArray.from_arrays(list(map(pa.array, columns.values())), list(columns))
               for table, columns in tables.items()}
        )  # fmt: skip
        seal = json.dumps({"stamp": self._stamp, "more": more}).encode()
        self._batch(seal=pa.array([seal, _check(seal, tables)], pa.large_binary()))
        self._writer.close()

    def _flush(self) -> None:
        if self._texts:
            self._batch(texts=pa.array(self._texts, pa.large_binary()))
            self._texts = []

    def _batch(self, **lists: pa.Array) -> None:
        row = [
            pa.LargeListArray.from_arrays([0, len(lists[field.name])], lists[field.name])
            if field.name in lists
            else pa.nulls(1, field.type)
            for field in self._schema
        ]
        self._writer.write_batch(pa.record_batch(row, schema=self._schema))


class Index:
    """An open index.

    Args:
        buffer: The bytes of the file.
        stamp: The stamp that it must carry.
        path: The file, or `None` for one in memory.

    Raises:
        StaleIndexError: It is damaged, or carries another stamp.

    Attributes:
        tables: The columns of each table, (n,) each, views of the file.
        more: The values that were stored as JSON.
    """

    def __init__(self, buffer: pa.Buffer, stamp: str, path: Path | None = None) -> None:
        self.stamp, self.path, self._buffer = stamp, path, buffer
        self._texts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        try:
            self._file = pa.ipc.open_file(buffer)
            count = self._file.num_record_batches
            seal, check = self._list(count - 1, "seal").to_pylist()
            content = json.loads(seal)
            if content["stamp"] != stamp:
                raise StaleIndexError(f"{path}: was built from other files")
            names = set(self._file.schema.names) - {"texts", "seal"}
            self.tables: dict[str, Columns] = {name: _columns(self._list(count - 2, name)) for name in names}
            self.more: dict[str, Any] = content["more"]
            damaged = check != _check(seal, self.tables)
        except StaleIndexError:
            raise
        except DAMAGE as error:
            raise StaleIndexError(f"{path}: is damaged ({error})") from error
        if damaged:
            raise StaleIndexError(f"{path}: is damaged")

    def text(self, row: int) -> bytes:
        """Returns a text; any bytes, or raises `StaleIndexError`, where the file is damaged."""
        batch, within = divmod(row, TEXTS)
        if batch not in self._texts:
            try:
                _, ends, data = self._list(batch, "texts").buffers()
                self._texts[batch] = np.frombuffer(ends, np.int64), np.frombuffer(data, np.uint8)
            except DAMAGE as error:
                raise StaleIndexError(f"{self.path}: is damaged ({error})") from error
        ends, data = self._texts[batch]
        begin, end = ends[within : within + 2].tolist()
        return data[begin:end].tobytes()

    def _list(self, number: int, name: str) -> Any:
        """Returns a list of a record batch; Arrow checks that its buffers are as long as they must be."""
        batch = self._file.get_batch(number)
        batch.validate()
        return batch.column(name).values

    def __reduce__(self) -> Any:
        return (_opened, (self.path, self.stamp)) if self.path is not None else (Index, (self._buffer, self.stamp))


def open_index(path: Path, stamp: str, build: Callable[[Any], None], writable: bool = True) -> Index:
    """Opens an index, and builds it first if need be.

    Args:
        path: The file.
        stamp: The stamp of the files it is built from, as they are now.
        build: Writes the index into a file, given by name or open.
        writable: Whether a file may be written; else the index is built in memory.
    """
    paths = [path, *_cache(path)] if writable else []
    for target in paths:
        with suppress(StaleIndexError, OSError):
            return _opened(target, stamp)
    with _lock(path.parent):
        for target in paths:
            with suppress(StaleIndexError, OSError):  # another process has built it meanwhile
                return _opened(target, stamp)
            with suppress(OSError):
                if target != path:
                    target.parent.mkdir(parents=True, exist_ok=True)
                remove_orphans(target)
                with atomic_path(target) as partial:
                    build(str(partial))
                return _opened(target, stamp)
    if paths:
        log.warning("%s cannot be written, nor can %s: every process builds it in memory", *paths)
    sink = pa.BufferOutputStream()
    build(sink)
    return Index(sink.getvalue(), stamp)


def _opened(path: Path, stamp: str) -> Index:
    with pa.memory_map(str(path)) as file:
        return Index(file.read_buffer(), stamp, path)


def _cache(path: Path) -> list[Path]:
    """Returns where an index lies whose own folder cannot be written."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # this user has no home folder
        return []
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return [base / "vidchat" / f"{digest}-{path.name}"]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lets one process in at a time, where the file system can lock: two would do the same work, and no harm."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _columns(table: pa.StructArray) -> Columns:
    return {field.name: table.field(k).to_numpy(zero_copy_only=True) for k, field in enumerate(table.type)}


def _check(seal: bytes, tables: Mapping[str, Columns]) -> bytes:
    digest = xxhash.xxh3_64(seal)
    for name, columns in sorted(tables.items()):
        for key, column in sorted(columns.items()):
            digest.update(f"{name} {key} {len(column)}".encode())
            digest.update(column.data)
    return digest.digest()

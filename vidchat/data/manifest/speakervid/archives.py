"""Tar archives read in place, as a stream: every readable member, and the reason for each that cannot be read.

Python's `tarfile` ends silently at a damaged header and keeps every header it has seen; `gzip` discards the last data
before a truncation. Here, reading continues at the next valid header, a truncated archive yields everything before the
end, and memory does not grow.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK = 512
READ = 1 << 18
LARGEST = 64 << 20  # largest number of bytes of a member; an annotation has a few kilobytes
ZEROS = bytes(BLOCK)
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Member:
    """A file of an archive or folder.

    Attributes:
        name: Path in the archive or folder; empty where the archive itself is damaged.
        data: Content, `None` if damaged.
        reason: Kind of damage, else empty.
    """

    name: str
    data: bytes | None
    reason: str = ""


def read_archive(path: Path, suffix: str = "") -> Iterator[Member]:
    """Yields the plain files of a tar, gzipped or not; folders and files with other suffixes are skipped."""
    if not path.is_file():  # reading a pipe would wait for ever
        yield Member("", None, "not a plain file")
        return
    try:
        with path.open("rb") as file:
            source = _Source(file)
            yield from _members(source, suffix)
            if source.damage:
                yield Member("", None, source.damage)
    except OSError as error:
        yield Member("", None, f"cannot be read ({error.strerror})")


def read_folder_part(folder: Path, part: int, parts: int) -> Iterator[Member]:
    """Yields the files of one of the `parts` parts of a folder, in the order of their names."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if zlib.crc32(os.fsencode(e.name)) % parts == part)
    for name in names:
        path = folder / name
        shown_name = name.encode("utf-8", "backslashreplace").decode()
        try:
            if path.is_dir():
                continue
            if not path.is_file() or path.is_symlink():
                yield Member(shown_name, None, "not a plain file")
            elif path.stat().st_size > LARGEST:
                yield Member(shown_name, None, f"larger than {LARGEST >> 20} MB")
            else:
                yield Member(shown_name, path.read_bytes())
        except OSError as error:
            yield Member(shown_name, None, f"cannot be read ({error.strerror})")


class _Source:
    """Bytes of a file, decompressed if gzipped; they end at data that cannot be decompressed, as `damage` says."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.damage = ""
        self.ready = bytearray()
        self.length = os.fstat(file.fileno()).st_size
        first = file.read(READ)
        if not first:
            self.damage = "archive is empty"
        self.inflater = zlib.decompressobj(wbits=31) if first.startswith(GZIP) else None
        self.ended = not first
        self._take(first)

    def read(self, size: int) -> bytes:
        """Returns `size` bytes, or fewer at the end."""
        while len(self.ready) < size and not self.ended:
            packed = self.file.read(READ)
            if packed:
                self._take(packed)
            else:
                self.ended = True
                if self.inflater is not None and not self.inflater.eof and not self.damage:
                    self.damage = "archive is cut off"
        taken = bytes(self.ready[:size])
        del self.ready[:size]
        return taken

    def skip(self, size: int) -> bool:
        """Skips `size` bytes, in a plain tar without reading; returns whether there were as many."""
        if self.inflater is None:
            rest = size - len(self.ready)
            if rest > 0 and self.file.tell() + rest <= self.length:
                self.ready.clear()
                self.file.seek(rest, os.SEEK_CUR)
                return True
        while size > 0:
            count = len(self.read(min(size, READ)))
            if not count:
                return False
            size -= count
        return True

    def _take(self, packed: bytes) -> None:
        if self.inflater is None:
            self.ready += packed
            return
        while packed and not self.ended:
            if self.inflater.eof:  # another gzip stream or padding may follow
                packed = packed.lstrip(b"\0")
                if not packed.startswith(GZIP[: len(packed)]):
                    return
                self.inflater = zlib.decompressobj(wbits=31)
            before = self.inflater.copy()
            try:
                self.ready += self.inflater.decompress(packed)
            except zlib.error:
                self._take_until_error(before, packed)
                return
            packed = self.inflater.unused_data

    def _take_until_error(self, inflater: zlib._Decompress, packed: bytes) -> None:
        self.damage, self.ended = "compressed data is damaged", True
        try:
            for k in range(len(packed)):
                self.ready += inflater.decompress(packed[k : k + 1])
        except zlib.error:
            return


def _members(source: _Source, suffix: str) -> Iterator[Member]:
    long_name, lost, finished = None, False, False
    while header := source.read(BLOCK):
        if header == ZEROS:
            finished = True
            continue
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
            if info.size < 0:
                raise tarfile.HeaderError("negative size")
        except tarfile.HeaderError:
            if not lost and len(header) == BLOCK:
                yield Member("", None, "tar header is damaged")
            lost, long_name = True, None
            continue
        lost = finished = False
        name, long_name = long_name or info.name, None
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE) and info.size <= LARGEST:
            long_name = _long_name(info.type, source.read(_padded(info.size))[: info.size])
        elif info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            if name.endswith(suffix):
                yield from _member(source, name, info.size)
            elif not source.skip(_padded(info.size)):
                yield Member(name, None, "archive is cut off inside it")
        else:
            if info.type not in (tarfile.DIRTYPE, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
                yield Member(name, None, "not a plain file")
            source.skip(0 if info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE) else _padded(info.size))
    if not finished and not source.damage:
        source.damage = "archive is cut off"


def _member(source: _Source, name: str, size: int) -> Iterator[Member]:
    if size > LARGEST:
        complete = source.skip(_padded(size))
        yield Member(name, None, f"larger than {LARGEST >> 20} MB" if complete else "archive is cut off inside it")
        return
    data = source.read(_padded(size))
    if len(data) < size:
        yield Member(name, None, "archive is cut off inside it")
        return
    yield Member(name, data[:size])


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _long_name(kind: bytes, data: bytes) -> str | None:
    """Returns the name of the next member, from a GNU or pax header."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("utf-8", "backslashreplace")
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            return None
        record, data = data[len(length) + 1 : int(length) - 1], data[int(length) :]
        key, _, value = record.partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "backslashreplace")
    return None

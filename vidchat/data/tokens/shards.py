"""Shards: tars as WebDataset reads them, written by appending and read by position.

The content of a tar never changes, so a writer that was killed continues after the last member known to be good. The
resulting file is, byte for byte, that of an undisturbed writer: members carry no time, owner or host.
A shard is `NAME.tar` with its index `NAME.json` beside it; it exists once the index does.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import xxhash
from safetensors.torch import save
from torch import Tensor

from vidchat.runtime.atomic import naming, write_text

BLOCK = 512  # bytes of a tar block
END = bytes(2 * BLOCK)
OPEN_FILES = 64  # files that a reader keeps open
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}  # of safetensors


class ShardError(ValueError):
    """A sample, or a whole shard, that is not what its index says."""


@contextmanager
def reading(index: Path) -> Iterator[None]:
    """Turns errors of a block that reads an index into a `ShardError` that names the index."""
    try:
        yield
    except ShardError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ShardError(f"{index}: is damaged ({why}); copy it again, or delete it to make it anew") from error


class Member(NamedTuple):
    """The position of a member's bytes in a tar, and their 64-bit XXH3, which is as fast as reading them."""

    offset: int
    size: int
    check: str


class ShardWriter:
    """Appends members to a tar, which has a partial name until `publish`.

    Args:
        path: The tar's final name.
        size: Bytes of an earlier writer's partial tar that are known to be good; the rest is cut off.

    Attributes:
        size: Bytes written, without the end mark.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path, self.size = path, size
        self.partial = partial(path)
        if size and (not self.partial.is_file() or self.partial.stat().st_size < size):
            raise ShardError(f"{self.partial}: its first {size} bytes are gone; delete {path.parent} to encode again")
        self._file = self.partial.open("r+b" if size else "wb")
        self._file.truncate(size)
        self._file.seek(size)

    def add(self, name: str, data: bytes) -> Member:
        """Appends a member."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        header = info.tobuf(tarfile.USTAR_FORMAT)
        with naming(self.path, self.partial):
            self._file.write(header + data + bytes(-len(data) % BLOCK))
        member = Member(self.size + len(header), len(data), xxhash.xxh3_64_hexdigest(data))
        self.size += BLOCK + len(data) + -len(data) % BLOCK
        return member

    def finished_size(self, sizes: Iterable[int]) -> int:
        """Returns the bytes of the finished tar, if members of these sizes were added before."""
        return self.size + sum(BLOCK + size + -size % BLOCK for size in sizes) + len(END)

    def flush(self) -> int:
        """Writes everything to the disk; returns the bytes that a later writer may rely on."""
        with naming(self.path, self.partial):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self.size

    def finish(self) -> tuple[int, str]:
        """Finishes the tar; returns its bytes and their SHA-256. Removes a tar without members: (0, "")."""
        if self.size:
            with naming(self.path, self.partial):
                self._file.write(END)
            self.flush()
        self._file.close()
        if not self.size:
            self.partial.unlink()
            return 0, ""
        with self.partial.open("rb") as file:
            return self.size + len(END), hashlib.file_digest(file, "sha256").hexdigest()

    def close(self) -> None:
        """Leaves the tar as it is, for a later writer."""
        self._file.close()

    def discard(self) -> None:
        """Removes the unfinished tar."""
        self._file.close()
        self.partial.unlink(missing_ok=True)


def partial(path: Path) -> Path:
    """Returns the name of a file while it is unfinished."""
    return path.with_name(f".{path.name}.partial")


def publish(path: Path, index: dict[str, Any]) -> None:
    """Gives a finished tar its final name and its index; twice does no harm."""
    if partial(path).is_file():
        os.replace(partial(path), path)
    write_text(path.with_suffix(".json"), dumps(index))


def summarise(folder: Path) -> dict[str, Any]:
    """Writes `index.json`: the folder's shards by name, each with samples, bytes and SHA-256, and the sums."""
    shards = {}
    for path in indexes(folder):
        with reading(path):
            index = json.loads(path.read_text())
            if index["bytes"]:
                shards[path.with_suffix(".tar").name] = {key: index[key] for key in ("samples", "bytes", "sha256")}
    total = {key: sum(shard[key] for shard in shards.values()) for key in ("samples", "bytes")}
    summary = {"shards": len(shards), **total, "files": shards}
    write_text(folder / "index.json", json.dumps(summary, indent=1) + "\n")
    return summary


def is_summarised(folder: Path, samples: int) -> bool:
    """Returns whether `index.json` counts so many samples, by its beginning: it may be of 100,000s of shards."""
    try:
        with (folder / "index.json").open("rb") as file:
            return f'"samples": {samples},'.encode() in file.read(BLOCK).partition(b'"files"')[0]
    except OSError:
        return False


def _summary(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the files that `index.json` lists; raises `ShardError`."""
    path = folder / "index.json"
    with reading(path):
        files: dict[str, dict[str, Any]] = json.loads(path.read_text())["files"]
        for name, entry in files.items():
            if "/" in name or not {"bytes", "sha256"} <= entry.keys():
                raise ValueError(f"{name} is no shard with 'bytes' and 'sha256'")
        return files


def problems(folder: Path) -> Iterator[str]:
    """Reads all shards of a folder and yields what is wrong; raises `ShardError` without a readable `index.json`."""
    for name, entry in _summary(folder).items():
        path = folder / name
        if not path.is_file():
            yield f"{path}: is missing; copy it again"
            continue
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if path.stat().st_size != entry["bytes"] or sha256 != entry["sha256"]:
            yield f"{path}: is not what its index says ({path.stat().st_size} bytes, {entry['bytes']} expected)"


def indexes(folder: Path) -> list[Path]:
    """Returns the indexes of a folder's shards, sorted by name."""
    return sorted(folder.glob("shard-*.json"))


_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))  # json.dumps would make it anew for every value


def dumps(value: Any) -> str:
    """Returns JSON, the same text for the same value."""
    return _JSON.encode(value)


def pack(name: str, tensor: Tensor) -> bytes:
    """Returns one tensor as a safetensors file."""
    return save({name: tensor.contiguous()})


def unpack(name: str, data: Tensor) -> Tensor:
    """Returns what `pack` packed: a view of `data` (n,) uint8, where the library would make a copy.

    Raises:
        ShardError: It is no such file.
    """
    try:
        size = int.from_bytes(data[:8].numpy().tobytes(), "little")
        header = json.loads(data[8 : 8 + size].numpy().tobytes())[name]
        begin, end = header["data_offsets"]
        return data[8 + size + begin : 8 + size + end].view(DTYPES[header["dtype"]]).view(header["shape"])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ShardError(f"holds no readable {name} ({error})") from error


class ShardReader:
    """Reads members of tars at known offsets, in any order, from any process; keeps a few files open.

    Buffers are reused once `borrowing` ends: touching fresh memory costs more than reading a shard into it.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._spare: list[Tensor] = []
        self._lent: list[Tensor] | None = None

    @contextmanager
    def borrowing(self) -> Iterator[None]:
        """Makes what is read in the block be overwritten after it."""
        self._lent = []
        try:
            yield
        finally:
            self._spare += self._lent
            self._lent = None

    def _buffer(self, size: int) -> Tensor:
        """Returns (size,) uint8, uninitialised."""
        if self._lent is None:
            return torch.empty(size, dtype=torch.uint8)
        large = [number for number, spare in enumerate(self._spare) if len(spare) >= size]
        buffer = self._spare.pop(large[0]) if large else torch.empty(size, dtype=torch.uint8)
        if not large and self._spare:
            self._spare.pop(0)  # one that was too small makes room
        self._lent.append(buffer)
        return buffer[:size]

    def prefetch(self, path: Path, member: Member) -> None:
        """Tells the system that a member will be read, so that several are fetched at the same time."""
        with suppress(OSError, AttributeError):  # reading will raise them, and not every system takes advice
            os.posix_fadvise(self._descriptor(path), member.offset, member.size, os.POSIX_FADV_WILLNEED)

    def read(self, path: Path, member: Member) -> Tensor:
        """Returns the bytes of a member, (size,) uint8.

        Raises:
            ShardError: The tar is missing or shorter than its index says, or the bytes have changed.
        """
        end = member.offset + member.size
        try:
            descriptor = self._descriptor(path)
            if not 0 <= member.offset <= end <= os.fstat(descriptor).st_size:  # before memory is taken for it
                raise ShardError(f"{path}: ends before byte {end}; copy the shard again")
            data = self._buffer(member.size)
            bytes_: memoryview = data.numpy().data
            read = os.preadv(descriptor, [bytes_], member.offset)
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror}); copy the shard again") from error
        if read != member.size:
            raise ShardError(f"{path}: ends before byte {end}; copy the shard again")
        if xxhash.xxh3_64_hexdigest(bytes_) != member.check:
            raise ShardError(f"{path}: the {member.size} bytes at {member.offset} have changed; copy the shard again")
        return data

    def tensor(self, path: Path, member: Member, name: str) -> Tensor:
        """Returns the tensor of a member that `pack` made; raises `ShardError`."""
        data = self.read(path, member)
        try:
            return unpack(name, data)
        except ShardError as error:
            raise ShardError(f"{path}: {error}; encode again") from error

    def _descriptor(self, path: Path) -> int:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            self._open[path] = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would block
            if len(self._open) > OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        return self._open[path]

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": OrderedDict(), "_spare": [], "_lent": None}  # another process opens files of its own

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])


def zeros_shared(count: int) -> Tensor:
    """Returns (count,) uint8 zeros that forked and spawned processes share; a page takes memory once it is written."""
    storage = torch.UntypedStorage._new_shared(max(1, count))
    return torch.empty(0, dtype=torch.uint8).set_(storage)

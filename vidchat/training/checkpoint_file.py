"""A checkpoint file: written atomically as a stream, with a hash at its end that is verified at load.

The file is a zip archive as `torch.save` writes it, with the hash of all bytes before it as the archive's comment, so
`torch.load` can read it. It holds tensors and plain types only and is read with `weights_only=True`.
"""

from __future__ import annotations

import copy
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import IO, Any, BinaryIO, cast

import torch
import xxhash
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from vidchat.runtime.atomic import atomic_file

_COMMENT = re.compile(rb"xxh3_128:([0-9a-f]{32})")
_COMMENT_SIZE = len("xxh3_128:") + 32
_BLOCK = 1 << 24


class CheckpointError(ValueError):
    """A checkpoint that is absent, damaged, or of another network than expected."""


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint atomically and reads it back before it gets its name.

    Raises:
        CheckpointError: the bytes read back differ from those written.
        OSError: the file cannot be written, e.g. because the disk is full; the error names `path`.
    """
    with atomic_file(path) as file:
        stream = _HashedStream(file)
        try:
            torch.save(checkpoint, cast(IO[bytes], stream))
        except Exception:
            if stream.error is not None:  # torch hides it behind an error of its own
                raise stream.error from None
            raise
        comment = b"xxh3_128:" + stream.hash.hexdigest().encode()
        file.seek(-2, os.SEEK_END)  # the length of the archive's comment, 0 so far
        file.write(struct.pack("<H", len(comment)) + comment)
        file.flush()
        os.fsync(file.fileno())
        damage = _damage_in(file)
        if damage is not None:
            raise CheckpointError(f"{path}: the disk gives back something else than was written ({damage})")


def damage_of(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint's bytes, in words; `None` if they are those that were written."""
    try:
        with path.open("rb") as file:
            return _damage_in(file)
    except OSError as error:
        return error.strerror or str(error)


def load_checkpoint(path: Path, mmap: bool = True) -> dict[str, Any]:
    """Reads a checkpoint to the CPU without verifying its hash.

    Args:
        path: Checkpoint file.
        mmap: Whether tensors stay in the file until they are used; the ranks of a machine then share one copy.

    Raises:
        CheckpointError: the file cannot be read, or is not a checkpoint of train.py.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({_first_line(error)}); give a step_*.ckpt that train.py wrote"
        ) from error
    if not isinstance(checkpoint, dict) or "ema" not in checkpoint or "config" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of train.py (it holds no EMA or config); give a step_*.ckpt")
    return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Verifies a checkpoint's hash and reads it to the CPU.

    Raises:
        CheckpointError: the file is damaged, or is not a checkpoint of train.py.
    """
    damage = damage_of(path)
    if damage is not None:
        raise CheckpointError(f"{path} is not a readable checkpoint ({damage}); give a step_*.ckpt that train.py wrote")
    return load_checkpoint(path)


class CheckpointFiles(CheckpointIO):
    """Writes checkpoints in the background, from a copy in the host's memory, one at a time.

    Training continues as soon as the copy is made. Writing the next checkpoint waits for the one before, so there is
    never more than one copy.

    Args:
        directory: Folder to which it writes in the background; files in other folders are written at once.
        written: Function called with the path of each checkpoint that is on the disk and verified.

    Attributes:
        mmap: Whether loaded tensors stay in the file, see `load_checkpoint`.
    """

    def __init__(self, directory: Path, written: Callable[[Path], None]) -> None:
        self.directory, self.written = directory, written
        self.mmap = False
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Copies a checkpoint and begins to write it; raises the error of the one before."""
        self.wait()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._thread = Thread(target=self._write, args=(_copy(checkpoint), Path(path)), name="checkpoint")
        self._thread.start()
        if Path(path).parent != self.directory:
            self.wait()

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return load_checkpoint(Path(path), self.mmap)

    def remove_checkpoint(self, path: Any) -> None:
        self.wait()
        Path(path).unlink(missing_ok=True)

    def wait(self) -> None:
        """Waits until the checkpoint being written is on the disk; raises its error."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises the error of a checkpoint written in the background, without waiting."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        try:
            write_checkpoint(checkpoint, path)
            self.written(path)
        except BaseException as error:
            self._error = error


class _HashedStream:
    """A stream for `torch.save` that passes bytes on to a file and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, xxhash.xxh3_128()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.hash.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _damage_in(file: BinaryIO) -> str | None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _COMMENT_SIZE))
    comment = _COMMENT.fullmatch(file.read())
    if comment is None and _is_archive(file):  # complete, as torch.save leaves it
        return (
            "it carries no hash: an earlier version of train.py wrote it, which can resume from it, and whose release "
            "init_from takes"
        )
    if comment is None:
        return "it is cut off, or something else than train.py wrote it: it carries no hash"
    digest = xxhash.xxh3_128()
    file.seek(0)
    remaining = size - _COMMENT_SIZE - 2
    while remaining > 0:
        block = file.read(min(remaining, _BLOCK))
        digest.update(block)
        remaining -= len(block)
        if not block:
            return "it became shorter while it was read"
    digest.update(b"\0\0")
    same = digest.hexdigest().encode() == comment[1] and _length_is_right(file)
    return None if same else "its bytes are not those that were written: the hash differs"


def _is_archive(file: BinaryIO) -> bool:
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # its end describes an impossible archive
        return False


def _length_is_right(file: BinaryIO) -> bool:
    return file.read(2) == struct.pack("<H", _COMMENT_SIZE)


def _copy(node: Any) -> Any:
    """Returns the same containers with every tensor copied to the host's memory."""
    if isinstance(node, torch.Tensor):
        return node.detach().to("cpu", copy=True)
    if isinstance(node, dict):
        same = copy.copy(node)  # of its own type, and with the attributes that a state_dict has
        same.update((key, _copy(value)) for key, value in node.items())
        return same
    if type(node) in (list, tuple):
        return type(node)(_copy(value) for value in node)
    return node


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__

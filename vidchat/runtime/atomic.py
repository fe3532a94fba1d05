"""Atomic writes: files and folders that appear complete or not at all, even if the process dies or the disk is full.

Content is written beside its target under a hidden name, on the same file system, and is renamed to the target when it
is complete and on the disk. What a killed process left under such a name is removed by the next write.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux
_HERE = -100  # AT_FDCWD
_REPLACED = ".replaced"  # marks a folder as the old one, whatever its name is when a kill comes
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FolderError(ValueError):
    """A folder that cannot be replaced as a whole."""


def check_target(path: Path) -> None:
    """Refuses a target that is not a file: a rename to the name of a device, e.g. /dev/null, would replace it.

    Raises:
        ValueError: the path is a folder, a pipe or a device.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path}: is a folder, a pipe or a device; give the name of a file to write")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yields a file to write; it replaces `path` when the block ends without an error.

    Raises:
        ValueError: the path is a folder, a pipe or a device.
        OSError: the file cannot be written; `filename` of the error is `path`.
    """
    path = Path(path)
    check_target(path)
    unfinished = path.with_name(f".{path.name}.tmp")
    with naming(path, unfinished):
        try:
            with unfinished.open("w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        _sync(path.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder to fill; when the block ends without an error, it takes the place of `path`.

    At every moment `path` is either the old folder or the new. Entries of the old folder whose names the new one lacks
    are kept.

    Raises:
        OSError: the folder cannot be written or replaced; `filename` of the error is `path`.
        FolderError: `path` is the working folder, one of its parents, or a mount point.
    """
    path = Path(path).resolve()
    unfinished = path.with_name(f".{path.name}.tmp")
    with naming(path, unfinished):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        settle_folder(path)
        unfinished.mkdir()
        try:
            yield unfinished
            _sync_all(unfinished)
            _replace_folder(path, unfinished)
        finally:
            settle_folder(path)
        _sync(path.parent)


def settle_folder(path: Path) -> None:
    """Completes a replacement that `atomic_folder(path)` began, and removes its other leftovers.

    Raises:
        FolderError: `path` cannot be replaced as a whole.
    """
    if Path.cwd().is_relative_to(path) or os.path.ismount(path):
        kind = "a mount point" if os.path.ismount(path) else "the working folder, or holds it"
        raise FolderError(f"{path} is {kind}, so it cannot be replaced as a whole; give a folder in it")
    unfinished, old = (path.with_name(f".{path.name}.{end}") for end in ("tmp", "old"))
    if old.is_dir() and not path.exists():
        os.rename(old, path)
    for leftover in (old, unfinished):
        if (leftover / _REPLACED).exists():
            _keep_others(leftover, path)
        if leftover.exists():
            shutil.rmtree(leftover)
    (path / _REPLACED).unlink(missing_ok=True)


def _replace_folder(path: Path, unfinished: Path) -> None:
    """Renames `unfinished` to `path`; an old folder of that name is marked as replaced and moved beside it."""
    if path.exists():
        (path / _REPLACED).touch()
        if _exchange(unfinished, path):
            return
        # No such system call: for a moment `path` does not exist; `settle_folder` repairs this after a kill.
        os.rename(path, path.with_name(f".{path.name}.old"))
    os.rename(unfinished, path)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two names in one step; returns False if the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0


def _keep_others(old: Path, path: Path) -> None:
    """Moves entries that only the old folder holds into the new one."""
    for entry in old.iterdir():
        if entry.name != _REPLACED and not (path / entry.name).exists():
            os.rename(entry, path / entry.name)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically; raises the errors of `atomic_file`."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def naming(path: Path, unfinished: Path) -> Iterator[None]:
    """Makes errors of writing name the target, not the hidden file beside it; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        ours = error.filename is None or str(error.filename).startswith(str(unfinished))
        if error.errno is None or not (ours or error.errno in _FULL):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def _sync_all(folder: Path) -> None:
    for entry in folder.rglob("*"):
        _sync(entry)
    _sync(folder)


def _sync(path: Path) -> None:
    """Waits until a file or the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that appear whole or not at all, written by name rather than through an open file (see `runtime/atomic.py`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidchat.runtime.atomic import check_target, naming


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives the name under which to write a file; it gets its own name when the block ends well, else it is removed.

    Raises:
        ValueError: There is a folder, a pipe or a device of this name.
        OSError: It cannot be written; names `path`.
    """
    check_target(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path, partial):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_orphans(path: Path) -> None:
    """Removes what killed processes of this machine left of a file; others may be writing it."""
    for leftover in path.parent.glob(f".{_escaped(path.name)}.*.partial"):
        number = leftover.name.split(".")[-2]
        if number.isdigit() and not os.path.exists(f"/proc/{number}") and os.path.isdir("/proc/self"):
            leftover.unlink(missing_ok=True)


def forget(path: Path) -> None:
    """Removes what killed processes left of a file; nobody else may be writing it."""
    for leftover in path.parent.glob(f".{_escaped(path.name)}.*.partial"):
        leftover.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    """A name as a pattern that no other name fits."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)

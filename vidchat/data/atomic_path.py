"""Atomic writes for libraries that take a path rather than an open file (see `runtime/atomic.py`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidchat.runtime.atomic import check_target, naming


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; it is renamed to `path` when the block succeeds, else removed.

    Raises:
        ValueError: `path` is a folder, a pipe or a device.
        OSError: The file cannot be written; the error names `path`.
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
    """Removes partial files that killed processes of this machine left; live processes may be writing others."""
    for leftover in path.parent.glob(f".{_escaped(path.name)}.*.partial"):
        process = leftover.name.split(".")[-2]
        if process.isdigit() and not os.path.exists(f"/proc/{process}") and os.path.isdir("/proc/self"):
            leftover.unlink(missing_ok=True)


def remove_partials(path: Path) -> None:
    """Removes all partial files of a path; no other process may be writing it."""
    for leftover in path.parent.glob(f".{_escaped(path.name)}.*.partial"):
        leftover.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    """Returns a glob pattern that matches exactly this name."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)

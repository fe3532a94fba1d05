"""Runs work on several processes; if one dies, only its item is lost."""

from __future__ import annotations

import errno
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import TypeVar

from vidchat.bench.metric import BackendError
from vidchat.runtime.errors import user_message

Item = TypeVar("Item")
Output = TypeVar("Output")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_fatal(error: Exception) -> bool:
    """Returns whether an error comes from the weights or the disk, so that it would affect every pair."""
    return isinstance(error, BackendError) or (isinstance(error, OSError) and error.errno in DISK_ERRORS)


def error_note(error: Exception, *paths: Path) -> str:
    """Describes an error for a report: by its message if that is a sentence, else with the name of its class.

    Args:
        error: Error to describe.
        paths: Files that the message may name; their folders are left out, since reports are sent to others.
    """
    note = _sentence(error)
    for path in paths:
        note = note.replace(str(path), path.name)
    return note


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{Path(str(error.filename)).name}: {error.strerror}"
    return user_message(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"


def call_or_recover(work: Callable[[], Output], failed: Callable[[Exception], Output]) -> Output:
    """Returns the result of `work`, or of `failed` for an error that is not fatal."""
    try:
        return work()
    except Exception as error:
        if is_fatal(error):
            raise
        return failed(error)


def in_processes(
    work: Callable[[Item], Output], items: Sequence[Item], workers: int, start: Callable[..., None], arguments: tuple
) -> Iterator[tuple[Item, Callable[[], Output]]]:
    """Applies a function to all items, in order, on several processes.

    If a process dies, the items that were in progress are repeated, each in a process of its own.

    Args:
        work: Importable function of an item.
        items: Items.
        workers: Number of processes.
        start: Importable function that each process calls first.
        arguments: Arguments of `start`.

    Yields:
        Each item, and a function that returns its result or raises its error: `BrokenProcessPool` if its process died.
    """
    # Processes are spawned, since a fork of a process that has used PyAV or torch's threads can hang.
    pool_of = partial(
        ProcessPoolExecutor, mp_context=multiprocessing.get_context("spawn"), initializer=start, initargs=arguments
    )
    while items:
        done = 0
        with pool_of(workers) as pool:
            for item, future in zip(items, [pool.submit(work, item) for item in items], strict=True):
                if isinstance(future.exception(), BrokenProcessPool):
                    break
                yield item, future.result
                done += 1
        suspects, items = items[done : done + workers], items[done + workers :]
        for item in suspects:
            with pool_of(1) as pool:
                future = pool.submit(work, item)
                future.exception()  # waits
            yield item, future.result

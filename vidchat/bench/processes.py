"""Work on several processes, of which one may die without the others' work being lost."""

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

Given = TypeVar("Given")
Made = TypeVar("Made")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_general(error: Exception) -> bool:
    """Whether an error is of the weights or of the disk, so that the next pair would meet it, too."""
    return isinstance(error, BackendError) or (isinstance(error, OSError) and error.errno in NO_ROOM)


def as_note(error: Exception, *paths: Path) -> str:
    """An error in a report, which is sent to others: a sentence as it is, what is none with its kind.

    Args:
        error: What went wrong.
        paths: Files that it may name; only their names stay.
    """
    note = _sentence(error)
    for path in paths:
        note = note.replace(str(path), path.name)
    return note


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{Path(str(error.filename)).name}: {error.strerror}"
    return user_message(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"


def guarded(work: Callable[[], Made], failed: Callable[[Exception], Made]) -> Made:
    """What `work` gives, or `failed` of the error; one that `is_general` is raised."""
    try:
        return work()
    except Exception as error:
        if is_general(error):
            raise
        return failed(error)


def in_processes(
    work: Callable[[Given], Made], things: Sequence[Given], workers: int, start: Callable[..., None], given: tuple
) -> Iterator[tuple[Given, Callable[[], Made]]]:
    """Works on all things, in order; where a process dies, what was at work is done again, each in its own process.

    Args:
        work: Importable.
        things: What it is done to.
        workers: Processes.
        start: Called in each process first; importable.
        given: Its arguments.

    Yields:
        Each thing, and what returns its result or raises its error, `BrokenProcessPool` if its process died.
    """
    # Spawned, not forked: a fork of a process that has used PyAV or torch's threads can hang.
    pool_of = partial(
        ProcessPoolExecutor, mp_context=multiprocessing.get_context("spawn"), initializer=start, initargs=given
    )
    while things:
        done = 0
        with pool_of(workers) as pool:
            for thing, future in zip(things, [pool.submit(work, thing) for thing in things], strict=True):
                if isinstance(future.exception(), BrokenProcessPool):
                    break
                yield thing, future.result
                done += 1
        suspects, things = things[done : done + workers], things[done + workers :]
        for thing in suspects:
            with pool_of(1) as pool:
                future = pool.submit(work, thing)
                future.exception()  # waits
            yield thing, future.result

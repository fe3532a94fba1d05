"""Work on many cores that may be killed at any moment."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def each(job: Callable[[T], R], items: Iterable[T], workers: int | None = None) -> Iterator[R]:
    """The results of a job on every item, as they come; with one worker in this process and in order.

    Processes are spawned, for a fork of one that has used PyAV or Arrow's threads can hang, and they end with this
    process even if it is killed. At most four items per worker are held, so `items` may be a long iterator.

    Args:
        job: A function of a module, or a `partial` of one.
        items: What to call it with.
        workers: Processes; `None` is one for each CPU that this process may use.
    """
    workers = workers or len(os.sched_getaffinity(0))
    todo = iter(items)
    if workers == 1:
        yield from map(job, todo)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        running: set[Future[R]] = {pool.submit(job, item) for item in islice(todo, 4 * workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            running |= {pool.submit(job, item) for item in islice(todo, len(done))}


def _end_with_parent() -> None:
    """A killed parent would leave its workers waiting for ever, or writing beside the next run."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

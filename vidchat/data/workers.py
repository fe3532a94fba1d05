"""A parallel map over processes that end with their parent."""

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


def parallel_map(job: Callable[[T], R], items: Iterable[T], workers: int | None = None) -> Iterator[R]:
    """Yields the results of a job on every item, as they complete; one worker runs in this process, in order.

    Processes are spawned, because a fork of a process that has used PyAV's or Arrow's threads can hang. They end with
    this process even if it is killed. At most four items per worker are in flight, so `items` may be a long iterator.

    Args:
        job: Function of a module, or a `partial` of one.
        items: Arguments of the job.
        workers: Number of processes; `None` is one per CPU that this process may use.
    """
    workers = workers or len(os.sched_getaffinity(0))
    pending = iter(items)
    if workers == 1:
        yield from map(job, pending)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        running: set[Future[R]] = {pool.submit(job, item) for item in islice(pending, 4 * workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            running |= {pool.submit(job, item) for item in islice(pending, len(done))}


def _end_with_parent() -> None:
    """Ends this worker when its parent dies, which would else leave it waiting, or writing beside the next run."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

"""Kills a function at each of its file operations in turn: before each that changes what is on the disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "ctypes.dlsym"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def deaths(work: Callable[[], Any], limit: int = 300) -> Iterator[int]:
    """Runs `work` in forks that die, like by SIGKILL, before their first, second, ... file operation.

    Yields after each death, until a fork lives to the end of `work`; `work` must begin from what is there.
    """
    for last in range(1, limit):
        child = os.fork()
        if not child:
            _die_at(last, work)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, 9), f"the fork failed before file operation {last}"
        yield last
        if code == 0:
            return
    raise AssertionError(f"more than {limit} file operations")


def _die_at(last: int, work: Callable[[], Any]) -> None:
    left = [last]

    def hook(event: str, arguments: Any) -> None:
        if event in _CHANGES or (event == "open" and arguments[2] & _WRITING):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)

    status = 1
    try:
        sys.addaudithook(hook)
        work()
        status = 0
    finally:
        left[0] = -1
        os._exit(status)

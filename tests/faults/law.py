"""The law that every hostile input is judged by, and the judge.

A command either works, or raises one error that `vidchat.runtime.errors` puts in one sentence, which names the file or
the key; within bounded time and memory; without running a program, opening a connection, or writing outside its folder.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from tests.faults.children import context, place_of, prepare, sentence_of

CPU_SECONDS = 5  # of one input
SILENT_SECONDS = 30  # of one input on the clock, which only an endless wait reaches
MEGABYTES = 400  # by which one input may grow the process at its peak
ADDRESS_SPACE = 12 << 30  # more is refused by the system, so that this machine survives a failing test
PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "pty.spawn")


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        name: Description by which it can be made again.
        act: Call that reads the input.
        names: Text that the error's sentence must hold: the file, the key, the id.
        kinds: Exception types that are allowed; any that is told in a sentence by default.
        must: `work` if no error is right, `fail` if working would be wrong.
        after: Check of what must still hold, an `AssertionError` if it does not.
    """

    name: str
    act: Callable[[], object]
    names: str = ""
    kinds: tuple[type[BaseException], ...] = ()
    must: Literal["either", "work", "fail"] = "either"
    after: Callable[[], object] = lambda: None


Cases = Callable[..., Iterator[Case]]  # a function of a module: (folder, *arguments) to cases


def judge(cases: Cases, folder: Path, *arguments: Any) -> None:
    """Tries every case in a child, and reports all that break the law at once.

    Args:
        cases: Maker of the cases, called in the child; deterministic.
        folder: The only folder that may be written to.
        arguments: Further arguments of `cases`.

    Raises:
        AssertionError: with `name: what happened` of each broken case.
    """
    __tracebackhide__ = True
    broken = _failures(cases, folder, *arguments)
    if broken:
        more = f"\n... and {len(broken) - 30} more" if len(broken) > 30 else ""
        raise AssertionError(f"{len(broken)} cases:\n" + "\n".join(broken[:30]) + more)


def some(folder: Path, cases: Callable[..., list[Case]], count: int, *arguments: Any) -> Iterator[Case]:
    """So many of a list of cases, always the same; to be judged where each takes long."""
    every = cases(folder, *arguments)
    yield from random.Random(0).sample(every, min(count, len(every)))


def _failures(cases: Cases, folder: Path, *arguments: Any) -> list[str]:
    """The broken cases. A child that dies or hangs costs one case."""
    broken, number = [], 0
    while True:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_judge_all, args=(theirs, number, cases, folder, *arguments))
        child.start()
        theirs.close()
        begun = ""
        try:
            while ours.poll(SILENT_SECONDS):
                what, number, text = ours.recv()
                if what == "done":
                    child.join()
                    return broken
                assert what != "mistaken", text
                begun = text if what == "begin" else ""
                if what == "broken":
                    broken.append(text)
            why = f"did nothing for {SILENT_SECONDS} s"
        except EOFError:
            child.join()
            why = f"ended its process ({child.exitcode})"
        child.kill()
        child.join()
        assert begun, f"the cases themselves failed: {why}"
        broken.append(f"{begun}: {why}")
        number += 1


def _judge_all(pipe: Connection, skip: int, cases: Cases, folder: Path, *arguments: Any) -> None:
    prepare(folder)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    strange = _watch_all(folder)
    signal.signal(signal.SIGPROF, _too_long)
    try:
        for number, case in enumerate(cases(folder, *arguments)):
            if number < skip:
                continue
            pipe.send(("begin", number, case.name))
            strange.clear()
            verdict = _judge(case) or "; ".join(strange)
            pipe.send(("broken", number, f"{case.name}: {verdict}") if verdict else ("end", number, ""))
        pipe.send(("done", 0, ""))
    except Exception:  # of `cases`, which is a mistake of the suite
        pipe.send(("mistaken", 0, traceback.format_exc()))


class TooLong(BaseException):
    """An input took more time than any may take."""


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TooLong


def _watch_all(folder: Path) -> list[str]:
    """A list to which everything is added that no input may cause."""
    strange: list[str] = []
    allowed = (str(folder), "/dev/", "/proc/self/")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in PROGRAMS:
            strange.append(f"it caused {event}{arguments[:2]}")
        elif event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and arguments[0].startswith("/") and not arguments[0].startswith(allowed):
                strange.append(f"it wrote to {arguments[0]}")

    sys.addaudithook(hook)
    return strange


def _judge(case: Case) -> str:
    """What is wrong with how the case went; empty if nothing is."""
    before = _peak_reset()
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        case.act()
        verdict = "was accepted" if case.must == "fail" else ""
    except TooLong:
        verdict = f"took more than {CPU_SECONDS} s"
    except BaseException as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        verdict = _verdict(error, case)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    grown = (_status("VmHWM") - before) // 1024
    if not verdict and grown > MEGABYTES:
        verdict = f"took {grown} MB"
    try:
        case.after()
    except AssertionError as error:
        verdict = verdict or f"afterwards: {error}"
    return verdict


def _verdict(error: BaseException, case: Case) -> str:
    sentence = sentence_of(error)
    if sentence is None:
        return place_of(error)
    if case.must == "work":
        return f"raised {type(error).__name__}: {sentence[:200]}"
    if case.kinds and not isinstance(error, case.kinds):
        return f"raised {type(error).__name__}, not {case.kinds[0].__name__}: {sentence[:100]}"
    if case.names not in sentence:
        return f"does not name {case.names}: {sentence[:200]}"
    if "\n" in sentence.strip() or len(sentence) > 10_000:
        return f"is not one sentence: {sentence[:200]!r}"
    return ""


def _peak_reset() -> int:
    """Forgets the peak of memory so far; returns the memory now, in kB."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next((int(line.split()[1]) for line in file if line.startswith(key)), 0)

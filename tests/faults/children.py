"""Processes that each test gives a piece of work to: forked, watched, and perhaps killed.

They are forked from a server that has imported everything and started no threads.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.faults.imports"])


def run(
    function: Callable[..., object],
    *arguments: Any,
    folder: Path,
    moment: Moment | None = None,
    limit: int | None = None,
) -> str:
    """Runs a function in a child; returns `""`, the sentence it ended with, or `"killed"`.

    Args:
        function: A function of a module.
        arguments: Its arguments.
        folder: Working directory; its `tmp` is the directory of temporary files.
        moment: When the child ends, by what it does.
        limit: Bytes of the longest file that can be written, as on a full disk.

    Raises:
        AssertionError: it raised something that is not told in a sentence.
    """
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(theirs, moment, limit, folder, function, *arguments))
    child.start()
    theirs.close()
    try:
        ended, text = ours.recv()
    except EOFError:
        child.join()
        assert child.exitcode in (-signal.SIGKILL, -signal.SIGXFSZ), child.exitcode
        return "killed"
    child.join()
    assert ended, text
    return str(text)


@dataclass(frozen=True)
class Moment:
    """A moment at which a child ends, without a chance to clean up.

    Attributes:
        folder: Whose events count: files below it opened for writing, renamed, removed, made.
        event: Number of the event before which the child kills itself.
        byte: If given, it dies later than the event: when a file reaches this length, in the middle of that write.
    """

    folder: Path
    event: int
    byte: int | None = None

    def arm(self) -> None:
        """Makes this process end at the moment."""
        left = [self.event]
        if self.byte is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and would go on with an error

        def count() -> None:
            left[0] -= 1
            if left[0] >= 0:
                return
            if self.byte is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                limit_files(self.byte)

        _watch_files(self.folder, count)


def limit_files(length: int) -> None:
    """Lets no file of this process grow beyond a length, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, resource.RLIM_INFINITY))


def events_of(function: Callable[..., object], *arguments: Any, folder: Path, below: Path) -> int:
    """How many events on files below a folder a function's whole run consists of."""
    count = folder / "events"
    run(_counting, count, below, function, *arguments, folder=folder)
    return int(count.read_text())


def _counting(count: Path, below: Path, function: Callable[..., object], *arguments: Any) -> None:
    seen = [0]

    def note() -> None:
        seen[0] += 1

    _watch_files(below, note)
    function(*arguments)
    count.write_text(str(seen[0]))


def _run(
    pipe: Connection, moment: Moment | None, limit: int | None, folder: Path, function: Any, *arguments: Any
) -> None:
    prepare(folder)
    if moment is not None:
        moment.arm()
    if limit is not None:
        limit_files(limit)
    try:
        function(*arguments)
        pipe.send((True, ""))
    except BaseException as error:
        sentence = sentence_of(error)
        pipe.send((sentence is not None, sentence or place_of(error)))


def _watch_files(folder: Path, then: Callable[[], None]) -> None:
    """Calls `then` before each event on a file below the folder."""
    place = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"):
            path = arguments[1] if event == "os.rename" else arguments[0]
        else:
            return
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(place):
            then()

    sys.addaudithook(hook)


def prepare(folder: Path) -> None:
    """One thread, no output, no core file, the folder's own place for temporary files."""
    import tempfile

    import torch

    (folder / "tmp").mkdir(exist_ok=True)
    os.environ["TMPDIR"], tempfile.tempdir = str(folder / "tmp"), str(folder / "tmp")
    os.chdir(folder)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout = sys.stderr = io.StringIO()
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)


def sentence_of(error: BaseException) -> str | None:
    """What a person is told of an error, `None` for a traceback."""
    from vidchat.runtime.errors import user_message

    if isinstance(error, SystemExit) and isinstance(error.code, str):
        return error.code.removeprefix("error: ")
    return user_message(error)


def place_of(error: BaseException) -> str:
    """An error, and the last places in this package and in all that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/vidchat/" in frame.filename][-1:]
    places = dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*ours, *frames[-1:]))
    return f"{type(error).__name__}: {str(error)[:100]!r} from {', '.join(places)}"

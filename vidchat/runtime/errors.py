"""Which errors are told in one sentence, and which with a traceback; and the telling."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

FULL_ERROR = "HYDRA_FULL_ERROR"  # 1 in the environment: every error with its traceback
_lent = False  # the variable above is there for Hydra alone


@contextmanager
def hydra_errors() -> Iterator[None]:
    """Has Hydra raise what goes wrong before the task begins, which it would print in its own way otherwise."""
    global _lent
    os.environ[FULL_ERROR], _lent = "1", True
    try:
        yield
    finally:
        _take_back()


def _take_back() -> None:
    """Clears the variable, so that neither the task nor the processes that it starts see it."""
    global _lent
    if _lent:
        os.environ.pop(FULL_ERROR, None)
    _lent = False


@contextmanager
def user_errors() -> Iterator[None]:
    """Ends a command with code 1 and `error: ...` on stderr where a person can put the error right.

    A bug keeps its traceback; with HYDRA_FULL_ERROR=1 in the environment every error does. `SystemExit` is what both
    Hydra and Typer let pass: they have their own way with other exceptions.
    """
    _take_back()
    try:
        yield
    except Exception as error:
        message = user_message(error)
        if message is None or os.environ.get(FULL_ERROR) == "1":
            raise
        sys.exit(f"error: {message}")


def user_message(error: BaseException) -> str | None:
    """What to tell a person about an error that they can put right; `None` for one that is a bug.

    By house rule an error of this package's own kinds, and a `ValueError` raised by its own code (not by a library that
    it calls), is a sentence that says what is wrong, where, and what to do. What the system says of a path (there is no
    such folder, it may not be written) is one, too. What an object raises while Hydra builds it counts as raised by the
    object. What torch.distributed raises where another rank has died is one as well.
    """
    built = False
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error, built = error.__cause__, True
    if built and isinstance(error, TypeError) and " argument" in str(error):
        return f"a key of the config is wrong or lacking: {error}"
    if type(error).__module__.startswith("vidchat."):
        return str(error)
    if type(error).__name__ == "InstantiationException":  # Hydra's own refusal to build something
        return f"the config cannot be built: {' '.join(str(error).split())[:300]}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, RuntimeError) and ("gloo" in str(error) or type(error).__name__.startswith("Dist")):
        return (
            "another rank has ended, or cannot be reached: what it wrote last says why; the same command goes on from "
            "the last checkpoint (HYDRA_FULL_ERROR=1 shows what torch.distributed said)"
        )
    frames = list(_frames(error.__traceback__))
    raised_here = bool(frames) and str(frames[-1].tb_frame.f_globals.get("__name__", "")).startswith("vidchat.")
    return str(error) if isinstance(error, ValueError) and raised_here else None


def _frames(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next

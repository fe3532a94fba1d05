"""Errors that a user can correct end a command with one sentence; bugs keep their traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

FULL_ERROR = "HYDRA_FULL_ERROR"  # 1 in the environment: every error with its traceback
_set_here = False  # whether `hydra_errors` set the variable, for Hydra alone


@contextmanager
def hydra_errors() -> Iterator[None]:
    """Makes Hydra raise errors that occur before the task begins; otherwise it prints them in its own way."""
    global _set_here
    os.environ[FULL_ERROR], _set_here = "1", True
    try:
        yield
    finally:
        _unset()


def _unset() -> None:
    """Clears the variable, so that neither the task nor the processes that it starts see it."""
    global _set_here
    if _set_here:
        os.environ.pop(FULL_ERROR, None)
    _set_here = False


@contextmanager
def user_errors() -> Iterator[None]:
    """Ends a command with code 1 and `error: ...` on stderr if a user can correct the error.

    A bug keeps its traceback; with HYDRA_FULL_ERROR=1 in the environment every error does. Raises `SystemExit`, which
    Hydra and Typer both let pass; they handle other exceptions in their own ways.
    """
    _unset()
    try:
        yield
    except Exception as error:
        message = user_message(error)
        if message is None or os.environ.get(FULL_ERROR) == "1":
            raise
        sys.exit(f"error: {message}")


def user_message(error: BaseException) -> str | None:
    """Returns the message of an error that a user can correct; `None` if it is a bug.

    These are: errors of this package's own classes and `ValueError`s raised by its own code (not by a library that it
    calls), which are by rule one sentence that says what is wrong, where, and what to do; errors of the operating
    system that name a path; and errors of torch.distributed after another rank has died. Errors that an object raises
    while Hydra builds it count as the object's.
    """
    built = False
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error, built = error.__cause__, True
    if built and isinstance(error, TypeError) and " argument" in str(error):
        return f"a key of the config is wrong or missing: {error}"
    if type(error).__module__.startswith("vidchat."):
        return str(error)
    if type(error).__name__ == "InstantiationException":  # Hydra's own refusal to build something
        return f"the config cannot be built: {' '.join(str(error).split())[:300]}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, RuntimeError) and ("gloo" in str(error) or type(error).__name__.startswith("Dist")):
        return (
            "another rank has ended, or cannot be reached: its last lines of output say why; the same command resumes "
            "from the last checkpoint (HYDRA_FULL_ERROR=1 shows the error of torch.distributed)"
        )
    frames = list(_frames(error.__traceback__))
    raised_here = bool(frames) and str(frames[-1].tb_frame.f_globals.get("__name__", "")).startswith("vidchat.")
    return str(error) if isinstance(error, ValueError) and raised_here else None


def _frames(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next

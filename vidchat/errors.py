"""Which errors are told in one sentence, and which with a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType


def plain_message(error: BaseException) -> str | None:
    """What to tell a person about an error that they can put right; `None` for one that is a bug.

    By house rule an error of this package's own kinds, and a `ValueError` raised by its own code (not by a library that
    it calls), is a sentence that says what is wrong, where, and what to do. What an object raises while Hydra builds it
    counts as raised by the object.
    """
    built = False
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error, built = error.__cause__, True
    if built and isinstance(error, TypeError) and " argument" in str(error):
        return f"a key of the config is wrong or lacking: {error}"
    if type(error).__module__.startswith("vidchat."):
        return str(error)
    frames = list(_frames(error.__traceback__))
    raised_here = bool(frames) and str(frames[-1].tb_frame.f_globals.get("__name__", "")).startswith("vidchat.")
    return str(error) if isinstance(error, ValueError) and raised_here else None


def _frames(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next

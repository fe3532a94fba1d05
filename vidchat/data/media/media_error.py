"""The error that reading a media file raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MediaError(ValueError):
    """A media file that cannot be used; the message names the file and says what to do."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns every exception while a file is read into a `MediaError` that names the file.

    On a damaged file PyAV, FFmpeg and Pillow may raise anything: their own errors, `UnicodeDecodeError` for a tag,
    `AttributeError` for an unknown codec, `OverflowError`, `MemoryError`. None of these may end a command.
    """
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        message = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        why = " ".join(str(message).split())[:200]
        raise MediaError(f"{path}: cannot be decoded ({why}); check that it plays, re-encode or replace it") from error

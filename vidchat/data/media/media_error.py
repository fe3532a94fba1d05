"""The one kind of error that reading a media file raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MediaError(ValueError):
    """A file that cannot be used, and what to do about it, in one sentence."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns whatever the libraries raise while they read a file into a `MediaError` that names the file.

    A damaged file makes PyAV, FFmpeg and Pillow raise almost anything: their own errors, `UnicodeDecodeError` of a tag,
    `AttributeError` of a codec that does not exist, `OverflowError`, `MemoryError`. None of them may end a command.
    """
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        told = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        why = " ".join(str(told).split())[:200]
        raise MediaError(f"{path}: cannot be decoded ({why}); check that it plays, re-encode or replace it") from error

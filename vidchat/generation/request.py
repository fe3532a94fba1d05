"""What is wrong with a request for an answer that its files do not show: found before any work."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

from vidchat.generation.answer import QuestionError

MOST_SECONDS = 3600  # of an answer


def check_seconds(seconds: float | None) -> None:
    """Raises `QuestionError` unless an answer can last so long; `None` is as long as the initiator's clip."""
    if seconds is None:
        return
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds)
    if not number or not 0 < seconds <= MOST_SECONDS:
        raise QuestionError(f"seconds={seconds}: an answer lasts more than 0 s and at most {MOST_SECONDS}")


def check_output(output: Path, inputs: Iterable[Path]) -> None:
    """Whether an answer can be written there, which is found out before it is made.

    Args:
        output: The mp4 to write.
        inputs: Files that the answer is made from; none of them may be replaced by it.

    Raises:
        QuestionError: it is a folder, of another kind than mp4, one of the inputs, or in no place that can be written.
    """
    if output.is_dir():
        raise QuestionError(f"output={output} is a folder; give the file to write, e.g. output={output / 'answer.mp4'}")
    if output.suffix.lower() != ".mp4":
        raise QuestionError(f"output={output}: answers are written as mp4; let the name end in .mp4")
    for path in inputs:
        if output.resolve() == path.resolve() or (output.exists() and path.exists() and output.samefile(path)):
            raise QuestionError(f"output={output} is {path} itself, which would be lost; give another name")
    if output.exists() and not output.is_file():
        raise QuestionError(f"output={output} is no ordinary file; give another name")
    check_folder(output.parent)


def check_folder(folder: Path) -> None:
    """Raises `QuestionError` unless a folder is there, or can be made, and can be written to."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise QuestionError(f"{folder}: {there} is a file, so nothing can be written into it; give another output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise QuestionError(f"{there} may not be written to; give another output")

"""What is wrong with a request for an answer that its files do not show: found before any work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vidchat.generation.answer import QuestionError

MOST_SECONDS = 3600  # of an answer
LONGEST_NAME = 230  # bytes: a file's name has 255, and while it is written a suffix follows


def check_seconds(seconds: float | None) -> None:
    """Raises `QuestionError` unless an answer can last so long; `None` is as long as the initiator's clip."""
    if seconds is None:
        return
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 < seconds <= MOST_SECONDS:
        raise QuestionError(f"seconds={seconds}: an answer lasts more than 0 s and at most {MOST_SECONDS}")


def check_groups(settings: Any) -> None:
    """Raises `QuestionError` unless `settings` of configs/infer.yaml and the groups in it hold values by name."""
    for path in ((), ("sampling",), ("sampling", "codes")):
        node = settings
        for key in path:
            node = node[key]
        if not isinstance(node, Mapping):
            group = ".".join(("settings", *path))
            raise QuestionError(f"{group}={node}: it holds several values; give them by name, e.g. {group}.NAME=VALUE")


def check_output(output: Path, inputs: Iterable[Path]) -> None:
    """Whether an answer can be written there, which is found out before it is made.

    Args:
        output: The mp4 to write.
        inputs: Files that the answer is made from; none of them may be replaced by it.

    Raises:
        QuestionError: it is a folder, of another kind than mp4, one of the inputs, or in no place that can be written.
    """
    if "\0" in str(output) or len(os.fsencode(output.name)) > LONGEST_NAME:
        raise QuestionError(f"output={str(output)[:80]!r}...: no file can have that name; give a shorter one")
    if output.is_dir():
        raise QuestionError(f"output={output} is a folder; give the file to write, e.g. output={output / 'answer.mp4'}")
    if output.suffix.lower() != ".mp4":
        raise QuestionError(f"output={output}: answers are written as mp4; let the name end in .mp4")
    for path in inputs:
        if _same(output, path):
            raise QuestionError(f"output={output} is {path} itself, which would be lost; give another name")
    if output.exists() and not output.is_file():
        raise QuestionError(f"output={output} is no ordinary file; give another name")
    check_folder(output.parent)


def check_answers(answers: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises `QuestionError` if any of the files to write is one of those that are read, by whatever links."""
    read = {(status.st_dev, status.st_ino) for path in inputs if path.exists() for status in (path.stat(),)}
    for answer in answers:
        if answer.exists() and (answer.stat().st_dev, answer.stat().st_ino) in read:
            raise QuestionError(f"{answer} belongs to the benchmark, and would be lost; give output= another folder")


def _same(output: Path, path: Path) -> bool:
    """Whether both are the same file, by whatever links; a path that cannot be followed is itself."""
    if os.path.realpath(output) == os.path.realpath(str(path).replace("\0", "")):
        return True
    return os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path)


def check_folder(folder: Path) -> None:
    """Raises `QuestionError` unless a folder is there, or can be made, and can be written to."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise QuestionError(f"{folder}: {there} is a file, so nothing can be written into it; give another output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise QuestionError(f"{there} may not be written to; give another output")

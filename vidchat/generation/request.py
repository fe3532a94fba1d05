"""Checks of a request for an answer that need no media file and no model; they run before any other work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vidchat.generation.answer import QuestionError

MAX_SECONDS = 3600  # longest answer
MAX_NAME_BYTES = 230  # a file name has at most 255 bytes, and a suffix is added while the file is written


def check_seconds(seconds: float | None) -> None:
    """Raises `QuestionError` unless `seconds` is a possible length of an answer, or `None`."""
    if seconds is None:
        return
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds <= MAX_SECONDS:
        raise QuestionError(f"seconds={seconds} must be a number of more than 0 and at most {MAX_SECONDS}")


def check_groups(settings: Any) -> None:
    """Raises `QuestionError` unless `settings` of configs/infer.yaml and the groups in it are mappings."""
    for path in ((), ("sampling",), ("sampling", "codes")):
        node = settings
        for key in path:
            node = node[key]
        if not isinstance(node, Mapping):
            group = ".".join(("settings", *path))
            raise QuestionError(f"{group}={node} must be a group of values; give them by name, e.g. {group}.NAME=VALUE")


def check_output(output: Path, inputs: Iterable[Path], name: str = "output") -> None:
    """Checks, before an answer is generated, that it can be written.

    Args:
        output: The mp4 to write.
        inputs: Files that must not be overwritten.
        name: Name of `output` in messages.

    Raises:
        QuestionError: `output` is a folder, is not an mp4, is one of the inputs, or cannot be written.
    """
    if "\0" in str(output) or len(os.fsencode(output.name)) > MAX_NAME_BYTES:
        raise QuestionError(f"{name}={str(output)[:80]!r}... is not a possible file name; give a shorter one")
    if output.is_dir():
        raise QuestionError(f"{name}={output} is a folder; give the file to write, e.g. {name}={output / 'answer.mp4'}")
    if output.suffix.lower() != ".mp4":
        raise QuestionError(f"{name}={output} must end in .mp4, since answers are mp4 files; give another name")
    for path in inputs:
        if _same(output, path):
            raise QuestionError(f"{name}={output} is {path} itself, which would be overwritten; give another name")
    if output.exists() and not output.is_file():
        raise QuestionError(f"{name}={output} is not a regular file; give another name")
    check_folder(output.parent)


def check_answers(answers: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises `QuestionError` if a file to write is a file of the benchmark, also through links."""
    input_ids = {(status.st_dev, status.st_ino) for path in inputs if path.exists() for status in (path.stat(),)}
    for answer in answers:
        if answer.exists() and (answer.stat().st_dev, answer.stat().st_ino) in input_ids:
            raise QuestionError(
                f"{answer} belongs to the benchmark and would be overwritten; give output= another folder"
            )


def _same(output: Path, path: Path) -> bool:
    """Returns whether both paths are the same file, also through links."""
    if os.path.realpath(output) == os.path.realpath(str(path).replace("\0", "")):
        return True
    return os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path)


def check_folder(folder: Path) -> None:
    """Raises `QuestionError` unless a folder exists or can be created, and can be written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise QuestionError(f"{folder} cannot be created because {existing} is a file; give another output")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise QuestionError(f"{existing} is not writable; give another output")

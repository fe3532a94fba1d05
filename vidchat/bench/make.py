"""Test pairs into a folder of their own, with every file that they need: what a system is given, and what is true."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from vidchat.bench.pairs import PAIRS, check_id, header, longest_answer, shortened, write_lines
from vidchat.bench.processes import as_note, is_general
from vidchat.bench.sizes import commonest_size
from vidchat.data.atomic_path import atomic_path
from vidchat.data.folder import read_folder
from vidchat.data.media.read import frame_size, read_clip
from vidchat.data.report import Report
from vidchat.dialogue import Clip, Dialogue

FPS = 25


class MakeError(ValueError):
    """Pairs that cannot be made, and what to do about it, in one sentence."""


def make_from_folder(
    data: Path,
    output: Path,
    split: str = "test",
    limit: int | None = None,
    seconds: float | None = None,
    size: tuple[int, int] | None = None,
) -> Report:
    """Makes pairs of a folder data set's split, of speakers who are in no other split.

    Args:
        data: A folder with `dialogues.jsonl`.
        output: Where the pairs go; must not hold any.
        split: Which dialogues.
        limit: At most so many pairs.
        seconds: The length of every answer; else that of the longest true one.
        size: (height, width) at which clips are scored; else the true answers' commonest.

    Raises:
        MakeError: No pair is left, or the output holds pairs already.
        FolderError: The data cannot be read.
    """
    dialogues, read = read_folder(data)
    chosen = [dialogue for dialogue in dialogues if dialogue.split == split]
    if not chosen:
        there = ", ".join(f"{count} {name}" for name, count in Counter(one.split for one in dialogues).items())
        raise MakeError(
            f'{data}: no dialogue has the split \'{split}\' (there are: {there}); write "split": "{split}" into '
            f"dialogues of speakers who are in no other split, or choose another by split=NAME"
        )
    seen = {turn.clip.speaker for dialogue in dialogues if dialogue.split != split for turn in dialogue.turns}
    report = Report("pairs", skipped=list(read.skipped))
    fit = []
    for dialogue in chosen:
        known = sorted({turn.clip.speaker for turn in dialogue.turns} & seen)
        if dialogue.question is None:
            report.skipped.append((dialogue.id, "nobody asks in it, so there is nothing to answer"))
        elif known:
            report.skipped.append(
                (dialogue.id, f"speaker {known[0]} is in another split too, so a model may know them")
            )
        else:
            fit.append(dialogue)
    return write_bench(fit[:limit], output, report, seconds, size)


def write_bench(
    dialogues: Iterable[Dialogue],
    output: Path,
    report: Report,
    seconds: float | None = None,
    size: tuple[int, int] | None = None,
) -> Report:
    """Writes dialogues as pairs: `clips/`, `references/` and `pairs.jsonl`, whose first line states the rules.

    The reference is the first frame of the true answer; what is scored begins with the second. Clips are hard links
    where the file system allows, else copies.

    Args:
        dialogues: What is asked and answered.
        output: Where the pairs go; must not hold any.
        report: Where dialogues that cannot be pairs are named.
        seconds: The length of every answer; else that of the longest true one.
        size: (height, width) at which clips are scored; else the true answers' commonest.

    Raises:
        MakeError: No pair is left, or the output holds pairs already.
    """
    output = Path(output)
    if (output / PAIRS).exists():
        raise MakeError(f"{output} holds pairs already; choose another folder, or delete it")
    for name in ("clips", "references"):
        (output / name).mkdir(parents=True, exist_ok=True)
    entries: dict[str, Mapping[str, Any]] = {}
    truths: list[Clip] = []
    for dialogue in track(list(dialogues), "pairs"):
        try:
            if dialogue.id in entries:
                raise ValueError("its id was used before")
            entries[dialogue.id] = _entry(dialogue, output)
            truths.append(dialogue.answer)
        except Exception as error:
            if is_general(error):
                raise
            report.skipped.append((shortened(dialogue.id).strip("'"), as_note(error)))
    if not entries:
        left = [f"{where}: {why}" for where, why in report.skipped[:3]]
        why = f"; of {len(report.skipped)} that were left out, the first: {'; '.join(left)}" if left else ""
        raise MakeError(f"no pair could be made{why}")
    length = seconds or longest_answer([_later(truth) for truth in truths])
    write_lines(output / PAIRS, [header(length, size or commonest_size(truths)), *entries.values()])
    report.read = len(entries)
    return report


def _entry(dialogue: Dialogue, output: Path) -> Mapping[str, Any]:
    name, question, answer = check_id(dialogue.id), dialogue.question, dialogue.answer
    assert question is not None, "dialogues without a question are left out before"
    frame_size(question.path)  # what cannot be opened now can be answered by nobody
    _write_reference(answer, output / "references" / f"{name}.png")
    return {
        "id": name,
        "initiator": _placed(question, output, f"{name}_initiator"),
        "truth": _placed(_later(answer), output, f"{name}_truth"),
        "reference": f"references/{name}.png",
        "branch": dialogue.branch,
    }


def _later(answer: Clip) -> Clip:
    """The true answer from its second frame on."""
    return Clip(answer.path, answer.speaker, answer.text, answer.start + 1 / FPS, answer.end, truth=answer.truth)


def _write_reference(answer: Clip, path: Path) -> None:
    one = Clip(answer.path, answer.speaker, start=answer.start, end=answer.end)
    media = read_clip(one, fps=FPS, size=frame_size(answer.path), sample_rate=16000, audio=False, max_seconds=1 / FPS)
    with atomic_path(path) as partial:
        Image.fromarray(media.frames[0].permute(1, 2, 0).numpy()).save(partial, format="PNG")


def _placed(clip: Clip, output: Path, name: str) -> dict[str, Any]:
    target = output / "clips" / f"{name}{clip.path.suffix.lower()}"
    target.unlink(missing_ok=True)
    try:
        os.link(clip.path.resolve(), target)
    except OSError:
        shutil.copyfile(clip.path, target)
    known = {"text": clip.text, "start": round(clip.start, 6), "end": clip.end, "truth": dict(clip.truth)}
    told = {key: value for key, value in known.items() if value}
    return {"clip": f"clips/{target.name}", "speaker": clip.speaker, **told}

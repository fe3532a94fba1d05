"""Test pairs into a folder of their own, with every file that they need: what a system is given, and what is true."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from vidchat.bench.pairs import PAIRS, check_id, write_lines
from vidchat.data.folder import read_folder
from vidchat.data.media.read import MediaError, picture_size, read_clip
from vidchat.data.report import Report
from vidchat.dialogue import Clip, Dialogue

FPS = 25


class MakeError(ValueError):
    """Pairs that cannot be made, and what to do about it, in one sentence."""


def make_from_folder(data: Path, output: Path, split: str = "test", limit: int | None = None) -> Report:
    """Makes pairs of a folder data set's split, of speakers who are in no other split.

    Args:
        data: A folder with `dialogues.jsonl`.
        output: Where the pairs go; must not hold any.
        split: Which dialogues.
        limit: At most so many pairs.

    Raises:
        MakeError: No pair is left, or the output holds pairs already.
        FolderError: The data cannot be read.
    """
    dialogues, read = read_folder(data)
    chosen = [dialogue for dialogue in dialogues if dialogue.split == split]
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
    return write_bench(fit[:limit], output, report)


def write_bench(dialogues: Iterable[Dialogue], output: Path, report: Report) -> Report:
    """Writes dialogues as pairs: `clips/`, `references/` and `pairs.jsonl`.

    The reference is the first picture of the true answer; what is scored begins with the second. Clips are hard links
    where the file system allows, else copies.

    Raises:
        MakeError: No pair is left, or the output holds pairs already.
    """
    output = Path(output)
    if (output / PAIRS).exists():
        raise MakeError(f"{output} holds pairs already; choose another folder, or delete it")
    for name in ("clips", "references"):
        (output / name).mkdir(parents=True, exist_ok=True)
    entries = []
    for dialogue in track(list(dialogues), "pairs"):
        try:
            entries.append(_entry(dialogue, output))
        except (MediaError, ValueError) as error:
            report.skipped.append((dialogue.id, str(error)))
    if not entries:
        why = f"; the first: {report.skipped[0][0]}: {report.skipped[0][1]}" if report.skipped else ""
        raise MakeError(f"no pair could be made{why}")
    write_lines(output / PAIRS, entries)
    report.read = len(entries)
    return report


def _entry(dialogue: Dialogue, output: Path) -> Mapping[str, Any]:
    name, question, answer = check_id(dialogue.id), dialogue.question, dialogue.answer
    assert question is not None, "dialogues without a question are left out before"
    _write_reference(answer, output / "references" / f"{name}.png")
    later = Clip(answer.path, answer.speaker, answer.text, answer.start + 1 / FPS, answer.end, truth=answer.truth)
    return {
        "id": name,
        "initiator": _placed(question, output, f"{name}_initiator"),
        "truth": _placed(later, output, f"{name}_truth"),
        "reference": f"references/{name}.png",
        "branch": dialogue.branch,
    }


def _write_reference(answer: Clip, path: Path) -> None:
    one = Clip(answer.path, answer.speaker, start=answer.start, end=answer.end)
    media = read_clip(one, fps=FPS, size=picture_size(answer.path), sample_rate=16000, audio=False, max_seconds=1 / FPS)
    Image.fromarray(media.pictures[0].permute(1, 2, 0).numpy()).save(path)


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

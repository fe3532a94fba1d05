"""Makes a benchmark folder: pairs of a question and a true answer, with all their files."""

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
from vidchat.bench.processes import error_note, is_fatal
from vidchat.bench.truth_sizes import commonest_size
from vidchat.data.atomic_path import atomic_path
from vidchat.data.folder import read_folder
from vidchat.data.media.read import frame_size, read_clip
from vidchat.data.report import Report
from vidchat.dialogue import Clip, Dialogue

FPS = 25


class MakeError(ValueError):
    """Error about pairs that cannot be made; its message is one sentence that says what to do."""


def make_from_folder(
    data: Path,
    output: Path,
    split: str = "test",
    limit: int | None = None,
    seconds: float | None = None,
    size: tuple[int, int] | None = None,
) -> Report:
    """Makes pairs from a split of a folder data set, of speakers who are in no other split.

    Args:
        data: Folder with `dialogues.jsonl`.
        output: Folder of the benchmark; must not hold pairs yet.
        split: Split from which the dialogues are taken.
        limit: Largest number of pairs; `None` for all.
        seconds: Length of every answer; by default, that of the longest true answer.
        size: Size (height, width) at which clips are scored; by default, the commonest of the true answers.

    Raises:
        MakeError: No pair is left, or the output holds pairs already.
        FolderError: The data cannot be read.
    """
    dialogues, read = read_folder(data)
    chosen = [dialogue for dialogue in dialogues if dialogue.split == split]
    if not chosen:
        counts = ", ".join(
            f"{count} {name}" for name, count in Counter(dialogue.split for dialogue in dialogues).items()
        )
        raise MakeError(
            f'{data}: no dialogue has the split \'{split}\' (there are: {counts}); write "split": "{split}" into '
            f"dialogues of speakers who are in no other split, or choose another by split=NAME"
        )
    seen = {turn.clip.speaker for dialogue in dialogues if dialogue.split != split for turn in dialogue.turns}
    report = Report("pairs", skipped=list(read.skipped))
    usable = []
    for dialogue in chosen:
        known = sorted({turn.clip.speaker for turn in dialogue.turns} & seen)
        if dialogue.question is None:
            report.skipped.append((dialogue.id, "it has no turn of an initiator, so there is nothing to answer"))
        elif known:
            report.skipped.append(
                (dialogue.id, f"speaker {known[0]} is in another split too, so a model may know them")
            )
        else:
            usable.append(dialogue)
    return write_bench(usable[:limit], output, report, seconds, size)


def write_bench(
    dialogues: Iterable[Dialogue],
    output: Path,
    report: Report,
    seconds: float | None = None,
    size: tuple[int, int] | None = None,
) -> Report:
    """Writes dialogues as pairs: `clips/`, `references/` and `pairs.jsonl`, whose first line states the rules.

    The reference is the first frame of the true answer; scoring begins with the second. Clips are hard links where the
    file system allows it, else copies.

    Args:
        dialogues: Dialogues of an initiator and a responder.
        output: Folder of the benchmark; must not hold pairs yet.
        report: Report to which dialogues that cannot be pairs are added.
        seconds: Length of every answer; by default, that of the longest true answer.
        size: Size (height, width) at which clips are scored; by default, the commonest of the true answers.

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
            if is_fatal(error):
                raise
            report.skipped.append((shortened(dialogue.id).strip("'"), error_note(error)))
    if not entries:
        first = [f"{where}: {why}" for where, why in report.skipped[:3]]
        why = f"; of {len(report.skipped)} that were left out, the first: {'; '.join(first)}" if first else ""
        raise MakeError(f"no pair could be made{why}")
    length = seconds or longest_answer([_from_second_frame(truth) for truth in truths])
    write_lines(output / PAIRS, [header(length, size or commonest_size(truths)), *entries.values()])
    report.read = len(entries)
    return report


def _entry(dialogue: Dialogue, output: Path) -> Mapping[str, Any]:
    name, question, answer = check_id(dialogue.id), dialogue.question, dialogue.answer
    assert question is not None, "dialogues without a question were left out before"
    frame_size(question.path)  # raises if the clip cannot be opened
    _write_reference(answer, output / "references" / f"{name}.png")
    return {
        "id": name,
        "initiator": _link_clip(question, output, f"{name}_initiator"),
        "truth": _link_clip(_from_second_frame(answer), output, f"{name}_truth"),
        "reference": f"references/{name}.png",
        "branch": dialogue.branch,
    }


def _from_second_frame(answer: Clip) -> Clip:
    """Returns the true answer from its second frame on."""
    return Clip(answer.path, answer.speaker, answer.text, answer.start + 1 / FPS, answer.end, truth=answer.truth)


def _write_reference(answer: Clip, path: Path) -> None:
    first_frame = Clip(answer.path, answer.speaker, start=answer.start, end=answer.end)
    media = read_clip(
        first_frame, fps=FPS, size=frame_size(answer.path), sample_rate=16000, audio=False, max_seconds=1 / FPS
    )
    with atomic_path(path) as partial:
        Image.fromarray(media.frames[0].permute(1, 2, 0).numpy()).save(partial, format="PNG")


def _link_clip(clip: Clip, output: Path, name: str) -> dict[str, Any]:
    target = output / "clips" / f"{name}{clip.path.suffix.lower()}"
    target.unlink(missing_ok=True)
    try:
        os.link(clip.path.resolve(), target)
    except OSError:
        shutil.copyfile(clip.path, target)
    entry = {"text": clip.text, "start": round(clip.start, 6), "end": clip.end, "truth": dict(clip.truth)}
    stated = {key: value for key, value in entry.items() if value}
    return {"clip": f"clips/{target.name}", "speaker": clip.speaker, **stated}

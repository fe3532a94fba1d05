"""Reads SpeakerVid-5M's `testset.json` as dialogues. Its format is not published, so several forms are accepted."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from vidchat.bench.make import MakeError
from vidchat.data.manifest.speakervid.names import ClipName, Damage, is_voice, parse_clip
from vidchat.data.report import Report
from vidchat.dialogue import Clip, Dialogue, Turn

SUFFIXES = (".mp4", ".mkv", ".webm")


def read_testset(testset: Path, clips: Path) -> tuple[list[Dialogue], Report]:
    """Reads pairs of clips as dialogues.

    An entry that names two clips (a list of two, or an object with two clip names among its values) is a pair, and the
    first clip is the initiator's. Single names are paired as in the paper: two voices of one video, in the same scene
    or in two consecutive ones; the earlier clip is the initiator's.

    Args:
        testset: JSON file.
        clips: Folder that holds the cut clips at any depth.

    Raises:
        MakeError: The file is not JSON, or holds no name of a clip.
    """
    try:
        entries = json.loads(Path(testset).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise MakeError(f"{testset}: cannot be read as JSON ({error})") from None
    groups = list(_groups(entries))
    if not any(groups):
        raise MakeError(
            f"{testset}: holds no clip name such as BK6_XIz6-ZE_1920x1080_full_video_000_A_00; "
            "give the release's testset.json"
        )
    pairs = [(group[0], group[1]) for group in groups if len(group) == 2]
    pairs += _neighbours([group[0] for group in groups if len(group) == 1])
    files = {path.stem: path for suffix in SUFFIXES for path in sorted(Path(clips).rglob(f"*{suffix}"))}
    report, dialogues = Report("pairs"), []
    for question, answer in pairs:
        missing = [name for name in (question, answer) if name not in files]
        if missing:
            report.skipped.append((f"{question} -> {answer}", f"no file {missing[0]}.mp4 below {clips}"))
            continue
        turns = (
            Turn("initiator", Clip(files[question], speaker=parse_clip(question).speaker)),
            Turn("responder", Clip(files[answer], speaker=parse_clip(answer).speaker)),
        )
        dialogues.append(Dialogue(answer, turns, split="test"))
    report.read = len(dialogues)
    return dialogues, report


def _groups(entries: Any) -> Iterator[list[str]]:
    """Yields the clip names of each entry, without suffix: two for a pair, one for a single clip."""
    if isinstance(entries, dict):
        names = [name for name in map(_name, entries.values()) if name]
        if names:
            yield names[:2]
        else:
            for value in entries.values():
                yield from _groups(value)
    elif isinstance(entries, list):
        for entry in entries:
            inner = [name for name in map(_name, entry) if name] if isinstance(entry, list) else []
            if name := _name(entry):
                yield [name]
            elif len(inner) == 2 and len(entry) == 2:
                yield inner
            else:
                yield from _groups(entry)


def _name(value: Any) -> str | None:
    try:
        return parse_clip(Path(value).name).clip if isinstance(value, str) else None
    except Damage:
        return None


def _neighbours(names: list[str]) -> list[tuple[str, str]]:
    videos: dict[str, list[ClipName]] = defaultdict(list)
    for clip in map(parse_clip, names):
        if is_voice(clip.voice):
            videos[clip.youtube].append(clip)
    pairs = []
    for clips in videos.values():
        clips.sort(key=lambda clip: (clip.scene, clip.voice, clip.person))
        for before, after in pairwise(clips):
            if after.scene - before.scene <= 1 and after.voice != before.voice:
                pairs.append((before.clip, after.clip))
    return pairs

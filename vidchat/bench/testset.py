"""SpeakerVid-5M's `testset.json` to dialogues. How it stores pairs is not published, so several forms are read."""

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
    """Pairs of clips as dialogues.

    An entry that names two clips (a list of two, or an object with two clip names among its values) is a pair, the
    first the initiator's. Single names are paired as the paper pairs them: two voices of one video, in one scene or in
    two that follow each other, the earlier the initiator's.

    Args:
        testset: The JSON file.
        clips: The folder with the cut clips, anywhere below it.

    Raises:
        MakeError: The file is not JSON, or nothing in it is a name of a clip.
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
    for asked, answered in pairs:
        lacking = [name for name in (asked, answered) if name not in files]
        if lacking:
            report.skipped.append((f"{asked} -> {answered}", f"no file {lacking[0]}.mp4 below {clips}"))
            continue
        turns = (
            Turn("initiator", Clip(files[asked], speaker=parse_clip(asked).speaker)),
            Turn("responder", Clip(files[answered], speaker=parse_clip(answered).speaker)),
        )
        dialogues.append(Dialogue(answered, turns, split="test"))
    report.read = len(dialogues)
    return dialogues, report


def _groups(entries: Any) -> Iterator[list[str]]:
    """The names that each entry holds, without suffix: two of a pair, one of a clip."""
    if isinstance(entries, dict):
        named = [name for name in map(_name, entries.values()) if name]
        if named:
            yield named[:2]
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

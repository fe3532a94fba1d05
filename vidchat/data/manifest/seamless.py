"""The seamless_interaction data set (facebook/seamless-interaction): recordings of two people, one file each.

An id is `V<vendor>_S<session>_I<interaction>_P<participant>`; ids that share V, S and I are one conversation on one
time line. Each conversation is two dialogues as it was recorded: both people's whole recordings, which start together,
each person once the responder. Beside that it is cut up: turns are the transcript's segments, joined over short pauses;
while one person talks and the other is silent, the other's recording is a listening clip. The annotations lie in tars
beside the media, which are skipped.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.progress import track

from vidchat.data.manifest.manifest_file import as_table, sorted_rows, write_manifest
from vidchat.data.manifest.sources import write_report
from vidchat.data.manifest.speakervid.annotation_folder import LayoutError
from vidchat.data.manifest.speakervid.archives import Member, read_archive, read_folder_part
from vidchat.data.manifest.speakervid.json_values import Record, number, parse, text
from vidchat.data.manifest.speakervid.names import Damage, base_name
from vidchat.data.workers import parallel_map
from vidchat.runtime.atomic import write_text

_ID = re.compile(r"(V[0-9A-Z]+_S[0-9A-Z]+_I[0-9A-Z]+)_(P[0-9A-Z]+)")
SPLITS = {"train": "train", "dev": "val", "test": "test"}
PAUSE = 0.5  # seconds; shorter pauses do not end a turn
LONGEST = 14.0  # seconds; longest turn, as in SpeakerVid-5M
SHORTEST = 1.0  # seconds; shorter turns are left out
SILENT = 0.2  # seconds; longest speech of a listener
VERSION = 2


def ingest_seamless(root: Path, output: Path, workers: int | None = None) -> dict[str, Any]:
    """Writes the manifest and, beside it, a report; archives that an earlier run has read are not read again.

    Raises:
        LayoutError: The folder does not exist or holds no annotations.
    """
    units = _find_units(root)
    if not units:
        raise LayoutError(f"{root}: holds no .tar and no V..._S..._I..._P....json; give the folder of the data set")
    work = output.with_name(f"{output.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    job = partial(_read_unit, root=root, work=work)
    for _ in track(parallel_map(job, units, workers), "reading archives", total=len(units)):
        pass
    people: dict[str, dict[str, Any]] = {}
    damage: list[dict[str, Any]] = []
    for unit in units:
        part = json.loads(_part_path(unit, work).read_text())
        damage += part["damage"]
        for person in part["people"]:
            if person["id"] in people:
                damage.append(_damaged(unit, person["id"], Damage("name comes twice")))
            people.setdefault(person["id"], person)
    if not any(person["turns"] for person in people.values()):
        raise LayoutError(f"{root}: holds no usable annotation; see {output.with_suffix('.damaged.jsonl')}")
    meetings: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(people):
        meetings.setdefault(people[name]["meeting"], []).append(people[name])
    durations: list[dict[str, Any]] = []
    write_manifest(output, _tables(meetings, durations))
    return write_report(output, durations, damage)


def _tables(meetings: dict[str, list[dict[str, Any]]], durations: list[dict[str, Any]]) -> Iterator[pa.Table]:
    """Yields the clips of each conversation, and adds their durations to a list; all word times would fill memory."""
    for name in sorted(meetings):
        meeting = [{**person, "words": json.loads(person["words"])} for person in meetings[name]]
        clips = sorted_rows([*_clips(meeting), *_recordings(meeting)])
        durations += [{"duration_s": clip["duration_s"]} for clip in clips]
        yield as_table(clips)


def _find_units(root: Path) -> list[str]:
    """Returns the tars and the folders that hold annotations, relative to the root."""
    units = set()
    for folder, folders, names in os.walk(root):
        folders.sort()
        relative = Path(folder).relative_to(root)
        units |= {(relative / name).as_posix() for name in names if name.endswith(".tar")}
        if any(name.endswith(".json") and _ID.fullmatch(name[:-5]) for name in names):
            units.add(relative.as_posix())
    return sorted(units)


def _part_path(unit: str, work: Path) -> Path:
    return work / f"{zlib.crc32(unit.encode()):08x}-{''.join(c if c.isalnum() else '-' for c in unit)[-80:]}.json"


def _read_unit(unit: str, root: Path, work: Path) -> None:
    """Writes the turns and voice activity of all people of a tar or folder into a part file."""
    path = root / unit
    part, stat = _part_path(unit, work), path.stat() if path.exists() else path.lstat()
    stamp = f"{VERSION}: {stat.st_size} bytes, {stat.st_mtime_ns}"
    if part.is_file() and json.loads(part.read_text())["stamp"] == stamp:
        return
    people, damage = [], []
    for member in _members(path):
        try:
            if member.data is None:
                raise Damage(member.reason)
            people.append(_person(unit, member.name, parse(member.data)))
        except Damage as error:
            damage.append(_damaged(unit, member.name, error))
    write_text(part, json.dumps({"stamp": stamp, "people": people, "damage": damage}))


def _members(path: Path) -> Iterator[Member]:
    if path.is_dir():
        yield from (member for member in read_folder_part(path, 0, 1) if member.name.endswith(".json"))
    else:
        yield from read_archive(path, ".json")


def _damaged(unit: str, record: str, error: Damage) -> dict[str, Any]:
    head = {"kind": "seamless_interaction", "file": unit, "record": record}
    return {**head, "reason": error.reason, "detail": error.detail[:300], "kept": False}


def _person(unit: str, member: str, data: Any) -> dict[str, Any]:
    """Returns the turns and voice activity of one participant of one conversation."""
    name = base_name(member).removesuffix(".json")
    if not (match := _ID.fullmatch(name)):
        raise Damage("name not in the data set's form", repr(name[:120]))
    parts = Path(unit).parts
    inner = Record(data, Counter())
    nested = data.get("metadata") if isinstance(data.get("metadata"), dict) else {}
    spoken = [_segment(s) for s in _list(inner, nested, "transcript")]
    voiced = [_segment(s) for s in _list(inner, nested, "vad")]
    return {
        "id": name,
        "meeting": match[1],
        "participant": match[2],
        "media": (Path(unit.removesuffix(".tar")) / f"{name}.mp4").as_posix(),
        "split": next((SPLITS[part] for part in parts if part in SPLITS), None),
        "turns": _join([s for s in spoken if s["text"]] or voiced),
        "vad": [[s["start"], s["end"]] for s in voiced or spoken],
        "words": json.dumps([word for s in spoken for word in s["words"]]),  # text, as it is a fifth of the lists' size
    }


def _list(record: Record, nested: dict[str, Any], key: str) -> list[Any]:
    values = record.data.get(f"metadata:{key}", nested.get(key))
    if values is not None and not isinstance(values, list):
        raise Damage("wrong type", f"'{key}' is not a list")
    return values or []


def _segment(value: Any) -> dict[str, Any]:
    record = Record(value, Counter())
    start, end = (number(key, record.value(key, needed=True)[1], 0) for key in ("start", "end"))
    if end < start:
        raise Damage("ends before it starts", f"{start:g} to {end:g} s")
    spoken = record.data.get("transcript")
    segment = {"start": start, "end": end, "text": "" if spoken is None else text("transcript", spoken).strip()}
    return {**segment, "words": _words(record) or [[segment["text"], start, end]]}


def _words(segment: Record) -> list[list[Any]]:
    """Returns [word, start, end] of the words of a segment; none if one lacks its time."""
    _, words = segment.value("words")
    if words is not None and not isinstance(words, list):
        raise Damage("wrong type", "'words' is not a list")
    timed = []
    for word in (Record(w, Counter()) for w in words or ()):
        spoken, start, end = word.text("word"), word.number("start", low=0), word.number("end", low=0)
        if spoken is None or start is None or end is None or end < start:
            return []
        timed.append([spoken.strip(), start, end])
    return timed


def _join(segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for segment in sorted(segments, key=lambda s: (s["start"], s["end"])):
        last = turns[-1] if turns else None
        if last and segment["start"] - last["end"] < PAUSE and segment["end"] - last["start"] <= LONGEST:
            last["end"] = max(last["end"], segment["end"])
            last["text"] = f"{last['text']} {segment['text']}".strip()
        else:
            turns.append({key: segment[key] for key in ("start", "end", "text")})
    return [turn for turn in turns if turn["end"] - turn["start"] >= SHORTEST]


def _clips(meeting: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the turns of a conversation and the listening clips beside them. The first person to talk is A."""
    order = sorted(meeting, key=lambda p: (p["turns"][0]["start"] if p["turns"] else float("inf"), p["id"]))
    voices = {person["id"]: chr(ord("A") + k) for k, person in enumerate(order[:26])}
    turns = [(turn, person) for person in order[:26] for turn in person["turns"]]
    turns.sort(key=lambda pair: (pair[0]["start"], pair[1]["id"]))
    for scene, (turn, person) in enumerate(turns):
        words = turn["text"] or None
        spoken = {"text": words, "words": None if words is None else len(words.split()), "voice": voices[person["id"]]}
        timed = _timed(person, turn["start"], turn["end"]) if words else None
        yield {**_row(person, turn, scene, "talks"), **spoken, "timed_words": timed, "listens": False}
        for other in order[:26]:
            if other is not person and _overlap(other["vad"], turn) <= SILENT:
                yield {**_row(other, turn, scene, "listens"), "voice": "None", "listens": True}


def _recordings(meeting: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the whole recordings of a conversation of two, to its last word: a dialogue with exchanged roles."""
    end = max((end for person in meeting for _, end in person["vad"]), default=0.0)
    if len(meeting) != 2 or not end:
        return
    for index, person in enumerate(meeting):
        timed = _timed(person, 0.0, end)
        words = " ".join(word["text"] for word in timed or ())
        yield {
            "clip": f"{person['id']}_recorded",
            "source": "seamless_interaction",
            "video": person["meeting"],
            "media": person["media"],
            "speaker": person["participant"],
            "start_s": 0.0,
            "end_s": end,
            "duration_s": end,
            "text": words or None,
            "words": len(words.split()) if words else None,
            "timed_words": timed,
            "dialogue": f"recorded/{person['meeting']}",
            "turn": index,
            "at_s": 0.0,
            "given_branch": "multi_turn",
            "given_split": person["split"],
        }


def _timed(person: dict[str, Any], start: float, end: float) -> list[dict[str, Any]] | None:
    """Returns the words of a person that begin in a span, in seconds from its start; `None` without any."""
    words = [word for word in person["words"] if start <= word[1] < end and word[0]]
    return [{"text": w, "start_s": round(s - start, 6), "end_s": round(e - start, 6)} for w, s, e in words] or None


def _row(person: dict[str, Any], turn: dict[str, Any], scene: int, does: str) -> dict[str, Any]:
    return {
        "clip": f"{person['id']}_{scene:05d}_{does}",
        "source": "seamless_interaction",
        "video": person["meeting"],
        "media": person["media"],
        "speaker": person["participant"],
        "scene": scene,
        "start_s": turn["start"],
        "end_s": turn["end"],
        "duration_s": turn["end"] - turn["start"],
        "given_split": person["split"],
    }


def _overlap(intervals: list[list[float]], turn: dict[str, Any]) -> float:
    return sum(max(0.0, min(end, turn["end"]) - max(start, turn["start"])) for start, end in intervals)

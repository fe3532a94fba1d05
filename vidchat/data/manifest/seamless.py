"""The seamless_interaction data set (facebook/seamless-interaction): recordings of two people, a file for each.

An id is `V<vendor>_S<session>_I<interaction>_P<participant>`, and two ids that share V, S and I are one conversation
on one time line. Turns are the transcript's segments, joined over short pauses; while one talks and the other says
nothing, the other's recording is a listening clip. The annotations lie in tars beside the media, which are passed over.
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

from rich.progress import track

from vidchat.data.manifest.manifest_file import as_table, sorted_rows, write_manifest
from vidchat.data.manifest.sources import write_whole_report
from vidchat.data.manifest.speakervid.annotation_folder import LayoutError
from vidchat.data.manifest.speakervid.archives import Member, read_archive, read_folder_part
from vidchat.data.manifest.speakervid.json_values import Record, number, parse, text
from vidchat.data.manifest.speakervid.names import Damage, base_name
from vidchat.data.workers import parallel_map
from vidchat.runtime.atomic import write_text

_ID = re.compile(r"(V[0-9A-Z]+_S[0-9A-Z]+_I[0-9A-Z]+)_(P[0-9A-Z]+)")
SPLITS = {"train": "train", "dev": "val", "test": "test"}
PAUSE = 0.5  # seconds; shorter ones do not end a turn
LONGEST = 14.0  # seconds of a turn, as in SpeakerVid-5M
SHORTEST = 1.0
SILENT = 0.2  # seconds of audio that a listener may make
VERSION = 1


def ingest_seamless(root: Path, output: Path, workers: int | None = None) -> dict[str, Any]:
    """Writes the manifest and, beside it, a report of what was left out; archives that were read are not read again.

    Raises:
        LayoutError: There is no such folder, or no annotation in it.
    """
    places = _places(root)
    if not places:
        raise LayoutError(f"{root}: holds no .tar and no V..._S..._I..._P....json; name the folder of the data set")
    work = output.with_name(f"{output.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    job = partial(_read_place, root=root, work=work)
    for _ in track(parallel_map(job, places, workers), "reading archives", total=len(places)):
        pass
    people: dict[str, dict[str, Any]] = {}
    damage: list[dict[str, Any]] = []
    for place in places:
        part = json.loads(_part(place, work).read_text())
        damage += part["damage"]
        for person in part["people"]:
            if person["id"] in people:
                damage.append(_damaged(place, person["id"], Damage("name comes twice")))
            people.setdefault(person["id"], person)
    meetings: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(people):
        meetings.setdefault(people[name]["meeting"], []).append(people[name])
    clips = [clip for meeting in meetings.values() for clip in _clips(meeting)]
    if not clips:
        raise LayoutError(f"{root}: no annotation in it could be used; see {output.with_suffix('.damaged.jsonl')}")
    report = write_whole_report(output, clips, damage)
    ordered = sorted_rows(clips)
    write_manifest(output, (as_table(ordered[k : k + 20_000]) for k in range(0, len(ordered), 20_000)))
    return report


def _places(root: Path) -> list[str]:
    """Tars, and folders that hold annotations, relative to the root."""
    found = set()
    for place, folders, names in os.walk(root):
        folders.sort()
        relative = Path(place).relative_to(root)
        found |= {(relative / name).as_posix() for name in names if name.endswith(".tar")}
        if any(name.endswith(".json") and _ID.fullmatch(name[:-5]) for name in names):
            found.add(relative.as_posix())
    return sorted(found)


def _part(place: str, work: Path) -> Path:
    return work / f"{zlib.crc32(place.encode()):08x}-{''.join(c if c.isalnum() else '-' for c in place)[-80:]}.json"


def _read_place(place: str, root: Path, work: Path) -> None:
    """Turns and voice activity of everybody in an archive or folder, kept in a part."""
    path = root / place
    part, stat = _part(place, work), path.stat() if path.exists() else path.lstat()
    stamp = f"{VERSION}: {stat.st_size} bytes, {stat.st_mtime_ns}"
    if part.is_file() and json.loads(part.read_text())["stamp"] == stamp:
        return
    people, damage = [], []
    for member in _members(path):
        try:
            if member.data is None:
                raise Damage(member.reason)
            people.append(_person(place, member.name, parse(member.data)))
        except Damage as error:
            damage.append(_damaged(place, member.name, error))
    write_text(part, json.dumps({"stamp": stamp, "people": people, "damage": damage}))


def _members(path: Path) -> Iterator[Member]:
    if path.is_dir():
        yield from (member for member in read_folder_part(path, 0, 1) if member.name.endswith(".json"))
    else:
        yield from read_archive(path, ".json")


def _damaged(place: str, record: str, error: Damage) -> dict[str, Any]:
    told = {"kind": "seamless_interaction", "file": place, "record": record}
    return {**told, "reason": error.reason, "detail": error.detail[:300], "kept": False}


def _person(place: str, member: str, data: Any) -> dict[str, Any]:
    """One participant of one conversation."""
    name = base_name(member).removesuffix(".json")
    if not (found := _ID.fullmatch(name)):
        raise Damage("name not in the data set's form", repr(name[:120]))
    parts = Path(place).parts
    inner = Record(data, Counter())
    nested = data.get("metadata") if isinstance(data.get("metadata"), dict) else {}
    spoken = [_segment(s) for s in _list(inner, nested, "transcript")]
    voiced = [_segment(s) for s in _list(inner, nested, "vad")]
    return {
        "id": name,
        "meeting": found[1],
        "participant": found[2],
        "media": (Path(place.removesuffix(".tar")) / f"{name}.mp4").as_posix(),
        "split": next((SPLITS[part] for part in parts if part in SPLITS), None),
        "turns": _join([s for s in spoken if s["text"]] or voiced),
        "vad": [[s["start"], s["end"]] for s in voiced or spoken],
    }


def _list(record: Record, nested: dict[str, Any], key: str) -> list[Any]:
    found = record.data.get(f"metadata:{key}", nested.get(key))
    if found is not None and not isinstance(found, list):
        raise Damage("wrong type", f"'{key}' is not a list")
    return found or []


def _segment(value: Any) -> dict[str, Any]:
    record = Record(value, Counter())
    start, end = (number(key, record.value(key, needed=True)[1], 0) for key in ("start", "end"))
    if end < start:
        raise Damage("ends before it starts", f"{start:g} to {end:g} s")
    words = record.data.get("transcript")
    return {"start": start, "end": end, "text": "" if words is None else text("transcript", words).strip()}


def _join(segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for segment in sorted(segments, key=lambda s: (s["start"], s["end"])):
        last = turns[-1] if turns else None
        if last and segment["start"] - last["end"] < PAUSE and segment["end"] - last["start"] <= LONGEST:
            last["end"] = max(last["end"], segment["end"])
            last["text"] = f"{last['text']} {segment['text']}".strip()
        else:
            turns.append(dict(segment))
    return [turn for turn in turns if turn["end"] - turn["start"] >= SHORTEST]


def _clips(meeting: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The turns of a conversation, and who listens to them. The first to talk is A."""
    order = sorted(meeting, key=lambda p: (p["turns"][0]["start"] if p["turns"] else float("inf"), p["id"]))
    voices = {person["id"]: chr(ord("A") + place) for place, person in enumerate(order[:26])}
    turns = [(turn, person) for person in order[:26] for turn in person["turns"]]
    turns.sort(key=lambda found: (found[0]["start"], found[1]["id"]))
    for scene, (turn, person) in enumerate(turns):
        words = turn["text"] or None
        said = {"text": words, "words": None if words is None else len(words.split()), "voice": voices[person["id"]]}
        yield {**_row(person, turn, scene, "talks"), **said, "listens": False}
        for other in order[:26]:
            if other is not person and _overlap(other["vad"], turn) <= SILENT:
                yield {**_row(other, turn, scene, "listens"), "voice": "None", "listens": True}


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

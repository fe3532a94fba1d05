"""Parts: the records of one unit as typed rows, ready to be joined with those of other units.

Archives of different kinds hold different videos, so rows are distributed by video over `BUCKETS` buckets,
and one bucket of all parts can then be joined without the others. A part is a folder that is written atomically.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from vidchat.data.manifest.manifest_file import COLUMNS, SPEECH
from vidchat.data.manifest.speakervid.annotation_folder import Unit
from vidchat.data.manifest.speakervid.archives import Member, read_archive, read_folder_part
from vidchat.data.manifest.speakervid.json_values import parse
from vidchat.data.manifest.speakervid.labels import (
    Reader,
    read_anno,
    read_asr,
    read_l_score,
    read_list,
    read_scenes,
    read_speakers,
)
from vidchat.data.manifest.speakervid.merged import read_merged
from vidchat.data.manifest.speakervid.names import Damage, base_name
from vidchat.runtime.atomic import write_text

VERSION = 3  # version of the columns; parts of another version are made again
BUCKETS = 64
ROWS = 10_000  # rows held before they are written

KEYS = {"merged_anno": "clip", "asr": "voiced", "anno": "clip", "l_score": "clip"}
KEYS |= {"scene_json": "video_key", "speaker_json": "video_key"}
READERS: dict[str, Reader] = {
    "merged_anno": read_merged,
    "asr": read_asr,
    "anno": read_anno,
    "l_score": read_l_score,
    "scene_json": read_scenes,
    "speaker_json": read_speakers,
}
FILLS = {
    "merged_anno": (
        *("clip", "video", "speaker", "voice", "person", "scene", "start_s", "end_s", "track_start_s", "track_end_s"),
        *("frames", "x1", "y1", "x2", "y2", "width", "height", "crop_width", "crop_height", "sync_confidence"),
        *("sync_distance", "sync_offset_frames", "other_sync_confidence", "matched_confidence", "voices_matched"),
        *("dover", "clarity"),
    ),
    "asr": ("text", "timed_words", "language", "asr_confidence", "asr_no_speech", "asr_compression"),
    "anno": ("topic", "caption", "people", "facing", "body_view", "camera_motion", "motion", "annotation"),
    "l_score": ("face_blur", "hand_blur"),
}
"""Columns of the manifest that each kind of record fills."""
EXTRA = {
    "merged_anno": [("video_key", pa.string()), ("voiced", pa.string())],
    "scene_json": [
        ("scenes", pa.list_(pa.struct([("scene", pa.int64()), ("start_s", pa.float64()), ("end_s", pa.float64())])))
    ],
    "speaker_json": [("speech", SPEECH)],
}


def part_schema(kind: str) -> pa.Schema:
    """Returns the columns of a part: the record's key, the columns that it fills, and its origin."""
    fields = {KEYS.get(kind, "clip"): pa.string()}
    fields |= {name: COLUMNS[name][0] for name in FILLS.get(kind, ())} | dict(EXTRA.get(kind, []))
    return pa.schema([*fields.items(), ("member", pa.string()), ("digest", pa.binary(8))])


@dataclass
class Tally:
    """Counts the records of a unit and lists the damaged ones.

    Attributes:
        unit: Unit that is read.
        file: File in which damaged records are listed, a JSON object a line.
        read: Number of records that became rows.
        keys: Number of records that lack a key (`-key`) or have an unknown one (`+key`).
    """

    unit: Unit
    file: TextIO
    read: int = 0
    keys: Counter[str] = field(default_factory=Counter)

    def add(self, member: str, damage: Damage, kept: bool = False) -> None:
        """Lists a damaged record."""
        line = damaged(self.unit.kind, self.unit.path, member, damage, kept)
        self.file.write(json.dumps(line) + "\n")


def damaged(kind: str, path: str, member: str, damage: Damage, kept: bool) -> dict[str, Any]:
    """Returns a line of the list: the record, its damage, and whether the record is used nevertheless."""
    line = {"kind": kind, "file": path, "record": member, "reason": damage.reason, "detail": damage.detail[:300]}
    return {**line, "kept": kept}


def make_part(unit: Unit, root: Path, parts: Path) -> str:
    """Reads a unit into a part, unless that exists; returns the unit's id."""
    done = parts / unit.id / "done.json"
    if done.is_file() and json.loads(done.read_text())["stamp"] == part_stamp(unit):
        return unit.id
    shutil.rmtree(parts / unit.id, ignore_errors=True)
    work = parts / f".{unit.id}.{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with (work / "damage.jsonl").open("w", encoding="utf-8") as file:
        tally = Tally(unit, file)
        rows = _rows(unit, root, tally)
        for k, batch in enumerate(_batches(rows)):
            _write(work / f"rows-{k:05d}.arrow", unit.kind, batch)
    keys = dict(sorted(tally.keys.items(), key=lambda item: (-item[1], item[0]))[:200])
    summary = {"stamp": part_stamp(unit), "kind": unit.kind, "path": unit.path, "read": tally.read, "keys": keys}
    write_text(work / "done.json", json.dumps(summary))
    os.replace(work, parts / unit.id)
    return unit.id


def part_stamp(unit: Unit) -> str:
    """Returns a text that changes with the unit or with `VERSION`."""
    return f"{VERSION}: {unit.part}/{unit.parts}, {unit.stamp}"


def _rows(unit: Unit, root: Path, tally: Tally) -> Iterator[dict[str, Any]]:
    if unit.kind not in READERS:
        yield from _listed(unit, root, tally)
        return
    for member in _unit_members(unit, root, tally):
        name, notes = member.name, list[str]()
        try:
            if member.data is None:
                raise Damage(member.reason)
            if member.data.startswith(codecs.BOM_UTF8):
                notes.append("begins with a byte order mark")
            row = READERS[unit.kind](_json_name(name), parse(member.data), tally.keys, notes)
        except Damage as damage:
            tally.add(name, damage)
            continue
        except (TypeError, ValueError, KeyError, IndexError, OverflowError, RecursionError) as error:
            tally.add(name, Damage("unreadable", f"{type(error).__name__}: {error}"))
            continue
        for note in notes:
            tally.add(name, Damage(note), kept=True)
        tally.read += 1
        yield {**row, "member": name, "digest": hashlib.blake2b(member.data, digest_size=8).digest()}


def _unit_members(unit: Unit, root: Path, tally: Tally) -> Iterator[Member]:
    """Yields the members of a unit; an archive or folder that cannot be opened is listed as damaged."""
    path = root / unit.path
    try:
        if path.is_dir():
            for member in read_folder_part(path, unit.part, unit.parts):
                if not member.name.endswith((".tar.gz", ".tgz", ".tar")):
                    yield member
        else:
            yield from read_archive(path)
    except OSError as error:
        tally.add("", Damage(f"cannot be read ({error.strerror})"))


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, ROWS)):
        yield batch


def _json_name(member: str) -> str:
    """Returns the file name of a member; raises `Damage` if it is not that of a JSON file."""
    name = base_name(member)
    if not name.endswith(".json"):
        raise Damage("not a .json file", repr(name[-60:]))
    return name


def _listed(unit: Unit, root: Path, tally: Tally) -> Iterator[dict[str, Any]]:
    try:
        with (root / unit.path).open("rb") as file:
            for name in read_list(file):
                if isinstance(name, Damage):
                    tally.add("", name)
                else:
                    tally.read += 1
                    yield {"clip": name, "member": "", "digest": bytes(8)}
    except OSError as error:
        tally.add("", Damage(f"cannot be read ({error.strerror})"))


def _write(path: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    """Writes one record batch per bucket; the rows already have the types of the columns."""
    schema, key = part_schema(kind), KEYS.get(kind, "clip")
    buckets: list[list[dict[str, Any]]] = [[] for _ in range(BUCKETS)]
    for row in rows:
        buckets[bucket_of(row[key])].append(row)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(path, schema, options=options) as writer:
        for batch in buckets:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


def bucket_of(key: str) -> int:
    """Returns the bucket of a key; all keys begin with the 11 characters of a YouTube id."""
    return zlib.crc32(key[:11].encode()) % BUCKETS


def read_bucket(folder: Path, kind: str, bucket: int) -> pa.Table:
    """Returns the rows of a bucket of a part, in the order in which they were read."""
    batches = []
    for path in sorted(folder.glob("rows-*.arrow")):
        with pa.memory_map(str(path)) as source:
            batches.append(pa.ipc.open_file(source).get_batch(bucket))
    return pa.Table.from_batches(batches, schema=part_schema(kind))

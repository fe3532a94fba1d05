"""Join of one bucket of all parts by name into rows of the manifest."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidchat.data.atomic_path import atomic_path
from vidchat.data.manifest.manifest_file import SCHEMA, SPEECH
from vidchat.data.manifest.speakervid.annotation_folder import LISTS, Unit
from vidchat.data.manifest.speakervid.names import Damage
from vidchat.data.manifest.speakervid.parts import FILLS, KEYS, damaged, read_bucket
from vidchat.runtime.atomic import write_text

LABELS = ("asr", "anno", "l_score", "scene_json", "speaker_json")


@dataclass
class _Findings:
    """Counts and damaged records of a bucket."""

    counts: Counter[str] = field(default_factory=Counter)
    damage: list[dict[str, Any]] = field(default_factory=list)


def join_bucket(bucket: int, units: Sequence[Unit], parts: Path, joined: Path) -> int:
    """Writes `<bucket>.parquet` into `joined`, and beside it the counts and the damaged records.

    The Parquet file is written last: if it exists, the bucket is done.
    """
    target = joined / f"{bucket:02d}.parquet"
    if target.is_file():
        return bucket
    findings = _Findings()
    tables = {kind: _read(kind, bucket, units, parts, findings) for kind in (*KEYS, *LISTS.values())}
    table = _clips(tables, findings)
    with (joined / f"{bucket:02d}.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in findings.damage)
    write_text(joined / f"{bucket:02d}.json", json.dumps(findings.counts, sort_keys=True))
    with atomic_path(target) as unfinished:
        pq.write_table(table, unfinished, compression="zstd")
    return bucket


def _read(kind: str, bucket: int, units: Sequence[Unit], parts: Path, findings: _Findings) -> pa.Table:
    """Returns the records of a kind; of records with equal names, the first."""
    own = [unit for unit in units if unit.kind == kind]
    tables = [read_bucket(parts / unit.id, kind, bucket) for unit in own]
    if not tables:
        return pa.table({KEYS.get(kind, "clip"): pa.array([], pa.string())})
    table = pa.concat_tables(tables)
    origin = [unit.path for unit, part in zip(own, tables, strict=True) for _ in range(part.num_rows)]
    first: dict[str, int] = {}
    digests, members = table["digest"].to_pylist(), table["member"].to_pylist()
    for row, key in enumerate(table[KEYS.get(kind, "clip")].to_pylist()):
        earlier = first.setdefault(key, row)
        if earlier != row and kind in KEYS and _file(members[earlier]) == _file(members[row]):
            content = "the same content as" if digests[earlier] == digests[row] else "other content than"
            damage = Damage("name comes twice", f"with {content} in {origin[earlier]}, which counts")
            findings.damage.append(damaged(kind, origin[row], members[row], damage, kept=False))
    return table.take(pa.array(list(first.values()), pa.int64()))


def _file(member: str) -> str:
    return member.rpartition("/")[2]


def _clips(tables: dict[str, pa.Table], findings: _Findings) -> pa.Table:
    base = _timed(tables["merged_anno"], _index(tables["scene_json"], "video_key"), tables["scene_json"], findings)
    columns = {name: base[name] for name in FILLS["merged_anno"] if name in base.column_names}
    for kind in ("asr", "anno", "l_score"):
        chosen = _matches(base, tables[kind], KEYS[kind])
        findings.counts[f"without {kind}"] += chosen.null_count
        for name in FILLS[kind]:
            if name in tables[kind].column_names:
                columns[name] = tables[kind][name].take(chosen)
    for listed in LISTS.values():
        columns[f"in_{listed}"] = pc.is_in(base["clip"], value_set=tables[listed]["clip"].combine_chunks())
    columns["speech"] = _speech(base, tables["speaker_json"], findings)
    columns["source"] = pa.array(["speakervid"] * base.num_rows, pa.string())
    columns["duration_s"] = pc.subtract(base["end_s"], base["start_s"])
    if "text" in columns:
        columns["words"] = _words(columns["text"])
    findings.counts["clips"] += base.num_rows
    findings.counts["without scene_json"] += _matches(base, tables["scene_json"], "video_key").null_count
    _unmatched(tables, base, findings)
    table = pa.table([_column(columns, field, base.num_rows) for field in SCHEMA], schema=SCHEMA)
    keys = [(name, "ascending") for name in ("video", "start_s", "scene", "clip")]
    return table.take(pc.sort_indices(table, sort_keys=keys))


def _column(columns: dict[str, Any], field: pa.Field, length: int) -> pa.ChunkedArray | pa.Array:
    return columns[field.name].cast(field.type) if field.name in columns else pa.nulls(length, field.type)


def _index(table: pa.Table, key: str) -> dict[str, int]:
    return {name: row for row, name in enumerate(table[key].to_pylist())}


def _matches(base: pa.Table, other: pa.Table, key: str) -> pa.Array:
    """Returns, for each clip, the row of another table with the same key, or null."""
    index = _index(other, key)
    return pa.array([index.get(name) for name in base[key].to_pylist()], pa.int64())


def _timed(base: pa.Table, index: dict[str, int], scenes: pa.Table, findings: _Findings) -> pa.Table:
    """Returns the clips with a time; times that `merged_anno` lacks are taken from the scene."""
    start, end = base["start_s"].to_pylist(), base["end_s"].to_pylist()
    untimed = [row for row, times in enumerate(zip(start, end, strict=True)) if None in times]
    for row in untimed:
        video_row = index.get(base["video_key"][row].as_py())
        candidates = [] if video_row is None else scenes["scenes"][video_row].as_py()
        scene = next((s for s in candidates if s["scene"] == base["scene"][row].as_py()), None)
        if scene is not None and scene["end_s"] > scene["start_s"]:
            start[row], end[row] = scene["start_s"], scene["end_s"]
            findings.counts["times taken from scene_json"] += 1
        else:
            start[row] = end[row] = None
            damage = Damage("missing key", "start_seconds, end_seconds, and no scene_json that tells them")
            findings.damage.append(damaged("merged_anno", "", base["member"][row].as_py(), damage, kept=False))
    if not untimed:
        return base
    for name, values in (("start_s", start), ("end_s", end)):
        base = base.set_column(base.column_names.index(name), name, pa.array(values, pa.float64()))
    return base.filter(pc.is_valid(base["start_s"]))


def _speech(base: pa.Table, speakers: pa.Table, findings: _Findings) -> pa.Array:
    """Returns the diarised speech of each clip, in seconds from its start; null where the video is not diarised."""
    index = _index(speakers, "video_key")
    result: list[list[dict[str, Any]] | None] = []
    cached: tuple[str, list[dict[str, Any]]] = ("", [])
    spans = zip(*(base[name].to_pylist() for name in ("video_key", "start_s", "end_s")), strict=True)
    for video, start, end in spans:
        if video not in index:
            findings.counts["without speaker_json"] += 1
            result.append(None)
            continue
        if cached[0] != video:
            cached = (video, speakers["speech"][index[video]].as_py())
        last = bisect_left(cached[1], end, key=lambda s: s["start_s"])
        result.append([_within(s, start, end) for s in cached[1][:last] if s["end_s"] > start])
    return pa.array(result, SPEECH)


def _within(interval: dict[str, Any], start: float, end: float) -> dict[str, Any]:
    first, last = max(interval["start_s"], start) - start, min(interval["end_s"], end) - start
    return {"start_s": round(first, 6), "end_s": round(last, 6), "speaker": interval["speaker"]}


def _words(text: pa.ChunkedArray) -> pa.Array:
    return pa.array([None if t is None else len(t.split()) for t in text.to_pylist()], pa.int32())


def _unmatched(tables: dict[str, pa.Table], base: pa.Table, findings: _Findings) -> None:
    """Counts labels without a clip, and lists the clips of a list without a record."""
    for kind in LABELS:
        names = pc.is_in(tables[kind][KEYS[kind]], value_set=pc.unique(base[KEYS[kind]]))
        findings.counts[f"{kind} of no clip"] += names.length() - (pc.sum(names).as_py() or 0)
    clips = set(base["clip"].to_pylist())
    for file, kind in LISTS.items():
        lost = [name for name in tables[kind]["clip"].to_pylist() if name not in clips]
        findings.counts[f"in {file} without a record"] += len(lost)
        damage = Damage("listed, but has no readable merged_anno record")
        findings.damage += [damaged(kind, file, name, damage, kept=False) for name in sorted(lost)]

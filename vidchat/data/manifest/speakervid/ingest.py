"""The release's annotations to a manifest: units to parts, parts to buckets, buckets to one file.

Each step writes its results atomically into `<output>.work`, so a killed run resumes where it stopped, and a run after
more archives were added reads only those. This folder may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from vidchat.data.atomic_path import atomic_path
from vidchat.data.manifest.manifest_file import SCORES, write_manifest
from vidchat.data.manifest.speakervid.annotation_folder import KINDS, LISTS, LayoutError, Unit, find_units
from vidchat.data.manifest.speakervid.join import join_bucket
from vidchat.data.manifest.speakervid.parts import BUCKETS, make_part, part_stamp
from vidchat.data.workers import parallel_map
from vidchat.runtime.atomic import write_text


def ingest_speakervid(annotations: Path, output: Path, workers: int | None = None) -> dict[str, Any]:
    """Writes `output`, and beside it `<stem>.report.json` and `<stem>.damaged.jsonl`; returns the report.

    Args:
        annotations: Folder of the release's annotations.
        output: Parquet file to write.
        workers: Number of processes; `None` is one per CPU.

    Raises:
        LayoutError: The folder holds no annotations of the release, or another run writes the same output.
    """
    units = find_units(annotations)
    work = output.with_name(f"{output.name}.work")
    (work / "parts").mkdir(parents=True, exist_ok=True)
    report_path = output.with_suffix(".report.json")
    with _lock(work):
        stamp = hashlib.sha256(json.dumps([(u.id, part_stamp(u)) for u in units]).encode()).hexdigest()
        done = work / "done.txt"
        if output.is_file() and report_path.is_file() and done.is_file() and done.read_text() == stamp:
            return dict(json.loads(report_path.read_text()))
        done.unlink(missing_ok=True)
        _make_parts(units, annotations, work / "parts", workers)
        joined = work / f"joined-{stamp[:16]}"
        _join(units, work, joined, workers)
        report = _report(units, work / "parts", joined)
        _list_damage(units, work / "parts", joined, output.with_suffix(".damaged.jsonl"))
        write_manifest(output, _tables(joined, report))
        write_text(report_path, json.dumps(report, indent=1) + "\n")
        write_text(done, stamp)
        shutil.rmtree(joined)
    return report


@contextmanager
def _lock(work: Path) -> Iterator[None]:
    """Holds the lock of a work folder, which the system releases however the process ends."""
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LayoutError(f"{work}: another ingest uses this; wait for it or choose another output") from None
        yield


def _make_parts(units: list[Unit], root: Path, parts: Path, workers: int | None) -> None:
    current = {unit.id for unit in units}
    for folder in parts.iterdir():
        if folder.name not in current:  # left by a killed run, or from a removed archive
            shutil.rmtree(folder, ignore_errors=True)
    largest_first = sorted(units, key=lambda unit: -unit.size)
    job = partial(make_part, root=root, parts=parts)
    for _ in track(parallel_map(job, largest_first, workers), "reading archives", total=len(units)):
        pass


def _join(units: list[Unit], work: Path, joined: Path, workers: int | None) -> None:
    for folder in work.glob("joined-*"):
        if folder != joined:
            shutil.rmtree(folder, ignore_errors=True)
    joined.mkdir(exist_ok=True)
    job = partial(join_bucket, units=units, parts=work / "parts", joined=joined)
    for _ in track(parallel_map(job, range(BUCKETS), workers), "joining", total=BUCKETS):
        pass


def _tables(joined: Path, report: dict[str, Any]) -> Iterator[pa.Table]:
    """Yields the buckets in order, and adds hours and the counts of clips without a score to the report."""
    missing: Counter[str] = Counter()
    hours = 0.0
    for bucket in range(BUCKETS):
        table = pq.read_table(joined / f"{bucket:02d}.parquet")
        missing.update({name: table[name].null_count for name in SCORES})
        hours += sum(table["duration_s"].to_pylist()) / 3600
        yield table
    report["hours"] = round(hours, 3)
    report["clips_without_score"] = dict(missing)


def _report(units: list[Unit], parts: Path, joined: Path) -> dict[str, Any]:
    """Returns the counts of records read, of damaged records by reason, and of missing records."""
    kinds: dict[str, Any] = {}
    for unit in units:
        done = json.loads((parts / unit.id / "done.json").read_text())
        kind = kinds.setdefault(unit.kind, {"files": 0, "read": 0, "keys": Counter()})
        kind["files"] += 1
        kind["read"] += done["read"]
        kind["keys"].update(done["keys"])
    damage: Counter[tuple[str, str, bool]] = Counter()
    for line in _damage_lines(units, parts, joined):
        record = json.loads(line)
        damage[record["kind"], record["reason"], record["kept"]] += 1
    counts: Counter[str] = Counter()
    for bucket in range(BUCKETS):
        counts.update(json.loads((joined / f"{bucket:02d}.json").read_text()))
    return {
        "clips": counts.pop("clips", 0),
        "kinds": {name: _kind_report(name, kinds.get(name), damage) for name in (*LISTS.values(), *KINDS)},
        "joining": {key: value for key, value in sorted(counts.items()) if value},
    }


def _kind_report(name: str, kind: dict[str, Any] | None, damage: Counter[tuple[str, str, bool]]) -> dict[str, Any]:
    keys: dict[str, int] = kind["keys"] if kind else {}
    return {
        "files": kind["files"] if kind else 0,
        "read": kind["read"] if kind else 0,
        "left_out": {r: n for (k, r, kept), n in sorted(damage.items()) if k == name and not kept},
        "kept_though_odd": {r: n for (k, r, kept), n in sorted(damage.items()) if k == name and kept},
        "records_without_key": {key[1:]: n for key, n in sorted(keys.items()) if key.startswith("-")},
        "records_with_unknown_key": {key[1:]: n for key, n in sorted(keys.items()) if key.startswith("+")},
    }


def _damage_lines(units: list[Unit], parts: Path, joined: Path) -> Iterator[str]:
    for unit in units:
        yield from (parts / unit.id / "damage.jsonl").open(encoding="utf-8")
    for bucket in range(BUCKETS):
        yield from (joined / f"{bucket:02d}.jsonl").open(encoding="utf-8")


def _list_damage(units: list[Unit], parts: Path, joined: Path, path: Path) -> None:
    with atomic_path(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.writelines(_damage_lines(units, parts, joined))

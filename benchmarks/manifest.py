"""How fast annotations become a manifest, and in how much memory: a table, and JSON.

    PYTHONPATH=. python benchmarks/manifest.py --clips 100000 --workers 2

An annotation folder is imitated in the release's layout (one record in fifty damaged), then ingested. CPU seconds are
of all processes together; where other programs use the machine, as the load tells, they say more than wall time. The
release has 5.2 M clips; its l_score archives are 52 GB, so their share is counted by compressed bytes, everything else
by clips.

    PYTHONPATH=. python benchmarks/manifest.py --clips 81000 --workers 1 --buckets 1

joins as many clips at a time as one of 64 buckets of the release holds: so much memory a process needs for the release.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.speakervid.imitation import imitate
from vidchat.data.manifest.speakervid import ingest, parts
from vidchat.data.manifest.speakervid.annotation_folder import KINDS, find_units

RELEASE_CLIPS, RELEASE_L_SCORE = 5_200_000, 52e9


def cpu() -> float:
    """CPU seconds of this process and of those that have ended."""
    return sum(
        u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def memory() -> tuple[float, float]:
    """Most megabytes that this process held, and the largest of the others."""
    self, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return self / 1024, children / 1024


def bytes_of(root: Path, kind: str) -> int:
    folder = root / kind if kind == "merged_anno" else root / "raw_labels" / kind
    return sum(path.stat().st_size for path in folder.iterdir())


def rate_of_kind(root: Path, kind: str, place: Path) -> dict[str, float]:
    """CPU seconds for one archive of a kind, in this process."""
    unit = next(unit for unit in find_units(root) if unit.kind == kind)
    begun = cpu()
    parts.make_part(unit, root, place)
    records = json.loads((place / unit.id / "done.json").read_text())["read"]
    seconds = cpu() - begun
    return {"records/s": records / seconds, "MB/s": unit.size / 1e6 / seconds, "kB a record": unit.size / 1e3 / records}


def measure(root: Path, output: Path, clips: int, archives: int, workers: int) -> dict[str, Any]:
    begun = time.monotonic()
    damaged = imitate(root, clips, archives, seed=0, damage_every=50, workers=workers)
    made, wall, used = time.monotonic() - begun, time.monotonic(), cpu()
    report = ingest.ingest_speakervid(root, output, workers)
    wall, used, (own, child) = time.monotonic() - wall, cpu() - used, memory()
    found = sum(sum(kind["left_out"].values()) for kind in report["kinds"].values())
    return {
        "clips": report["clips"],
        "damaged": len(damaged),
        "left_out": found,
        "imitation_s": made,
        "wall_s": wall,
        "cpu_s": used,
        "workers": workers,
        "load": os.getloadavg()[0],
        "parent_MB": own,
        "largest_worker_MB": child,
        "manifest_bytes_a_clip": output.stat().st_size / report["clips"],
        "annotation_bytes_a_clip": sum(bytes_of(root, kind) for kind in KINDS) / report["clips"],
    }


def extrapolate(result: dict[str, Any]) -> dict[str, float]:
    """CPU hours for the release."""
    l_score = result["kinds"]["l_score"]
    for_l_score = result["clips"] / l_score["records/s"]
    others = (result["cpu_s"] - for_l_score) * RELEASE_CLIPS / result["clips"]
    return {
        "cpu_hours": others / 3600,
        "cpu_hours_of_l_score": RELEASE_L_SCORE / 1e6 / l_score["MB/s"] / 3600,
        "manifest_GB": result["manifest_bytes_a_clip"] * RELEASE_CLIPS / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--archives", type=int, default=8, help="of each kind")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/manifest.json"))
    parser.add_argument(
        "--buckets", type=int, default=parts.BUCKETS, help="in which clips are joined; needs --workers 1"
    )
    given = parser.parse_args()
    if given.buckets != parts.BUCKETS and given.workers != 1:
        parser.error("--buckets needs --workers 1, for other processes would not know of it")
    parts.BUCKETS = ingest.BUCKETS = given.buckets
    place = Path(tempfile.mkdtemp(prefix="manifest-"))
    try:
        root = place / "release"
        result = measure(root, place / "clips.parquet", given.clips, given.archives, given.workers)
        result["kinds"] = {kind: rate_of_kind(root, kind, place / "parts") for kind in KINDS}
    finally:
        shutil.rmtree(place)
    result["release"] = extrapolate(result)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    told = ("clips", "damaged", "left_out", "wall_s", "cpu_s", "workers", "load", "parent_MB", "largest_worker_MB")
    for name in (*told, "manifest_bytes_a_clip", "annotation_bytes_a_clip"):
        print(f"{name:26} {result[name]:12,.0f}")
    print(f"{'clips/s, wall':26} {result['clips'] / result['wall_s']:12,.0f}")
    print(f"{'clips/s, a CPU':26} {result['clips'] / result['cpu_s']:12,.0f}")
    for kind, rates in result["kinds"].items():
        print(f"  {kind:14}" + "".join(f"{value:12,.1f} {name}" for name, value in rates.items()))
    print("the release: " + ", ".join(f"{value:,.2f} {name}" for name, value in result["release"].items()))


if __name__ == "__main__":
    main()

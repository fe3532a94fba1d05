"""Time and memory to build a manifest from annotations: a table and JSON.

    PYTHONPATH=. python benchmarks/manifest.py --clips 100000 --workers 2

Writes an annotation folder in the layout of SpeakerVid-5M, with one record in fifty damaged, and ingests it. CPU
seconds are those of all processes; they say more than wall time where the load shows other programs. SpeakerVid-5M has
5.2 M clips; its l_score archives have 52 GB, so their time is extrapolated by compressed bytes, all other time by
clips.

    PYTHONPATH=. python benchmarks/manifest.py --clips 81000 --workers 1 --buckets 1

joins as many clips at a time as one of 64 buckets of SpeakerVid-5M holds, and so shows the memory that a process needs.
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
    """Returns the CPU seconds of this process and of its ended children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def memory() -> tuple[float, float]:
    """Returns the peak megabytes of this process, and of its largest child."""
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own / 1024, child / 1024


def bytes_of(root: Path, kind: str) -> int:
    folder = root / kind if kind == "merged_anno" else root / "raw_labels" / kind
    return sum(path.stat().st_size for path in folder.iterdir())


def rate_of_kind(root: Path, kind: str, output: Path) -> dict[str, float]:
    """Returns the speed of reading one archive of a kind, in this process."""
    unit = next(unit for unit in find_units(root) if unit.kind == kind)
    start = cpu()
    parts.make_part(unit, root, output)
    records = json.loads((output / unit.id / "done.json").read_text())["read"]
    seconds = cpu() - start
    return {"records/s": records / seconds, "MB/s": unit.size / 1e6 / seconds, "kB a record": unit.size / 1e3 / records}


def measure(root: Path, output: Path, clips: int, archives: int, workers: int) -> dict[str, Any]:
    start = time.monotonic()
    damaged = imitate(root, clips, archives, seed=0, damage_every=50, workers=workers)
    made, wall, used = time.monotonic() - start, time.monotonic(), cpu()
    report = ingest.ingest_speakervid(root, output, workers)
    wall, used, (own, child) = time.monotonic() - wall, cpu() - used, memory()
    left_out = sum(sum(kind["left_out"].values()) for kind in report["kinds"].values())
    return {
        "clips": report["clips"],
        "damaged": len(damaged),
        "left_out": left_out,
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
    """Returns CPU hours and manifest size, extrapolated to SpeakerVid-5M."""
    l_score = result["kinds"]["l_score"]
    l_score_seconds = result["clips"] / l_score["records/s"]
    others = (result["cpu_s"] - l_score_seconds) * RELEASE_CLIPS / result["clips"]
    return {
        "cpu_hours": others / 3600,
        "cpu_hours_of_l_score": RELEASE_L_SCORE / 1e6 / l_score["MB/s"] / 3600,
        "manifest_GB": result["manifest_bytes_a_clip"] * RELEASE_CLIPS / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--archives", type=int, default=8, help="number of archives of each kind")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/manifest.json"))
    parser.add_argument(
        "--buckets", type=int, default=parts.BUCKETS, help="number of buckets of clips; needs --workers 1"
    )
    options = parser.parse_args()
    if options.buckets != parts.BUCKETS and options.workers != 1:
        parser.error("--buckets needs --workers 1, since other processes would not see the value")
    parts.BUCKETS = ingest.BUCKETS = options.buckets
    folder = Path(tempfile.mkdtemp(prefix="manifest-"))
    try:
        root = folder / "release"
        result = measure(root, folder / "clips.parquet", options.clips, options.archives, options.workers)
        result["kinds"] = {kind: rate_of_kind(root, kind, folder / "parts") for kind in KINDS}
    finally:
        shutil.rmtree(folder)
    result["release"] = extrapolate(result)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    counts = ("clips", "damaged", "left_out", "wall_s", "cpu_s", "workers", "load", "parent_MB", "largest_worker_MB")
    for name in (*counts, "manifest_bytes_a_clip", "annotation_bytes_a_clip"):
        print(f"{name:26} {result[name]:12,.0f}")
    print(f"{'clips/s, wall':26} {result['clips'] / result['wall_s']:12,.0f}")
    print(f"{'clips/s, a CPU':26} {result['clips'] / result['cpu_s']:12,.0f}")
    for kind, rates in result["kinds"].items():
        print(f"  {kind:14}" + "".join(f"{value:12,.1f} {name}" for name, value in rates.items()))
    print("the release: " + ", ".join(f"{value:,.2f} {name}" for name, value in result["release"].items()))


if __name__ == "__main__":
    main()

"""Measures what many dialogues cost before the first batch: indexes built once, and opened by two ranks at once.

    OMP_NUM_THREADS=1 python benchmarks/index.py --work /tmp/index --dialogues 200000

Dialogues have two turns with words and five scores each, as `vidchat data branches` writes them. There are no clips:
indexes of shards say where latents and codes of each turn would be. "private" is the memory of a rank that the other
does not share (USS): both map the indexes. It counts from before the data module is made. In training, one rank of a
machine calls `prepare_data`; here both do. Seconds are CPU seconds, except "wall".
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from multiprocessing.pool import Pool
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, cast

from shards import BASE, BOOKS, CHUNKS, LATENTS, RandomEncoder, Stub, machine

from vidchat.conditions.scores import Scores
from vidchat.conditions.text import Text
from vidchat.data.loading.batches import DialogueBatches
from vidchat.data.loading.datamodule import Batching, DialogueDataModule, Source, Tokenizers
from vidchat.data.loading.dialogues import FILE, Dialogues
from vidchat.data.loading.selection import Selection
from vidchat.data.tokens.encoder import MediaFormat, Segment, Track
from vidchat.data.tokens.shards import dumps, summarise
from vidchat.data.tokens.token_cache import TokenCache, key_of, segment_number
from vidchat.data.tokens.track_index import TrackIndex, index_of
from vidchat.dialogue import Clip

RANKS, GETS = 2, 2000


def imitate(work: Path, count: int) -> None:
    """Writes a data set of so many dialogues, and the indexes of empty shards."""
    done = work / "imitated.json"
    if done.is_file() and json.loads(done.read_text()) == count:
        return
    cache = TokenCache(work, RandomEncoder(), CHUNKS, "float16")
    shapes: dict[Track, Any] = {"latents": LATENTS, "codes": (CHUNKS, 12, BOOKS)}
    for track in cache.tracks.values():
        track.claim()
    with (work / "dialogues.jsonl").open("w") as file:
        for first in range(0, count, 32):
            keys = []
            for k in range(first, min(first + 32, count)):
                turns = [imitated_turn(k, role) for role in ("initiator", "responder")]
                kind = {"branch": "dialogue", "tier": "pretrain", "split": "train", "turns": turns}
                file.write(json.dumps({"id": f"dialogue/{k:011d}_1920x1080_full_video_003_B_01"} | kind) + "\n")
                for turn, part in zip(turns, ("last", "first"), strict=True):
                    clip = Clip(work / turn["clip"], "", start=turn["start"], end=turn["end"])
                    keys.append(f"{clip.path.stem}-{key_of(segment_number(turn['clip'], Segment(clip, part, CHUNKS)))}")
            for track in cache.tracks.values():
                segments = [
                    {"key": key, "stamp": [1, 1], "samples": [[512, 7_000_000, key[-16:], shapes[track.track]]]}
                    for key in keys
                ]
                index = {"generation": 0, "bytes": 1, "samples": len(keys), "sha256": "", "pieces": segments, "bad": []}
                (track.folder / f"shard-{first:09d}-000.json").write_text(dumps(index))
                (track.folder / f"shard-{first:09d}-000.tar").touch()
    for track in cache.tracks.values():
        summarise(track.folder)
    done.write_text(json.dumps(count))


def imitated_turn(k: int, role: str) -> dict[str, Any]:
    """Returns a turn with words and scores like those of SpeakerVid-5M."""
    clip = f"clips/{k % 1000:03d}/{k:011d}_1920x1080_full_video_003_{role[0]}_01.mp4"
    scores = {"dover": k % 997 / 1000, "motion": 3.0, "face_blur": 0.71, "hand_blur": 0.52, "asr_confidence": -0.23}
    words = "I think that what they said about it last week was right, and so do you"
    speaker = f"{k // 8:011d}_{'AB'[role == 'responder']}"
    return {"role": role, "speaker": speaker, "clip": clip, "start": 0.0, "end": 6.32, "text": words, "scores": scores}


def tracks(work: Path) -> list[Path]:
    """Returns the folders of latents and codes."""
    return [track.folder for track in TokenCache(work, RandomEncoder(), CHUNKS, "float16").tracks.values()]


def timed(function: Callable[[], object]) -> float:
    """Returns the CPU seconds that a function takes."""
    start = time.process_time()
    function()
    return time.process_time() - start


def make(work: Path) -> dict[str, float]:
    """Builds the indexes again; in a process of its own."""
    (work / FILE).unlink(missing_ok=True)
    cost = {"make_dialogues_s": timed(lambda: Dialogues(work))}
    for folder in tracks(work):
        index_of(folder).unlink(missing_ok=True)
    cost["make_tracks_s"] = timed(lambda: [TrackIndex(folder, keep=True) for folder in tracks(work)])
    cost["make_peak_mb"] = memory("status", "VmHWM")
    cost["index_gb"] = sum(path.stat().st_size for path in work.glob("*.index.arrow")) / 1e9
    return cost


def start(work: Path) -> dict[str, float]:
    """Opens the indexes, and starts the data module, as a rank does."""
    media_format, tokenizers = MediaFormat(25, BASE, dtype="float16"), Tokenizers(Stub(), Stub())
    conditions = {"text": Text(), "scores": Scores(("dover", "motion"))}
    selection = Selection(conditions, hears=True, max_chunks=CHUNKS)
    cost = {"open_s": timed(lambda: (Dialogues(work), [TrackIndex(folder, keep=True) for folder in tracks(work)]))}
    before, began = private(), time.perf_counter()
    data = DialogueDataModule([Source(work)], media_format, selection, Batching(8), tokenizers)
    cost["prepare_s"], cost["setup_s"] = timed(data.prepare_data), timed(data.setup)
    assert data.train is not None
    samples, order = cast(DialogueBatches, data.train[0]).samples, data.train[1]
    cost["order_s"] = timed(lambda: order.batch(0, 8))
    cost["ready_wall_s"] = time.perf_counter() - began
    numbers = [drawn.item for k in range(GETS // 8) for drawn in order.batch(k, 8)]
    dialogues = samples[0].dialogues
    rows = [samples[number].row for number in numbers]
    cost["item_us"] = 1e6 * timed(lambda: [samples[number] for number in numbers]) / len(numbers)
    cost["dialogue_us"] = 1e6 * timed(lambda: [dialogues[row] for row in rows]) / len(rows)
    barrier.wait()
    cost["private_mb"] = private() - before
    cost["peak_mb"] = memory("status", "VmHWM")
    barrier.wait()
    return cost


def private() -> float:
    """Returns the megabytes that this process shares with no other."""
    return memory("smaps_rollup", "Private_Clean") + memory("smaps_rollup", "Private_Dirty")


def memory(file: str, key: str) -> float:
    """Returns a figure of this process's memory, in megabytes."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{key}:"))


def share(common: Barrier) -> None:
    """Gives a process the barrier that all wait at."""
    global barrier
    barrier = common


def ranks(count: int) -> Pool:
    """Returns processes that start at the same time."""
    spawn = multiprocessing.get_context("spawn")
    return spawn.Pool(count, share, (spawn.Barrier(count),))


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the data set; it is left there")
    parser.add_argument("--dialogues", type=int, default=200_000)
    parser.add_argument("--output", type=Path, help="by default benchmarks/results/index.json")
    options = parser.parse_args(None if arguments is None else list(arguments))
    options.work.mkdir(parents=True, exist_ok=True)
    imitate(options.work, options.dialogues)
    with ranks(1) as pool:
        cost = pool.apply(make, (options.work,))
    with ranks(RANKS) as pool:
        started = pool.map(start, [options.work] * RANKS, chunksize=1)
    cost |= {key: max(rank[key] for rank in started) for key in started[0]}
    print(f"{os.cpu_count()} cores of {machine()}, {options.dialogues} dialogues, {RANKS} ranks")
    for key, value in cost.items():
        print(f"{key:20} {value:10.2f}")
    output = options.output or Path(__file__).parent / "results" / "index.json"
    known = json.loads(output.read_text()) if output.is_file() else {}
    rounded = {key: round(value, 3) for key, value in cost.items()}
    output.write_text(json.dumps(known | {str(options.dialogues): {"machine": machine()} | rounded}, indent=1) + "\n")


if __name__ == "__main__":
    main()

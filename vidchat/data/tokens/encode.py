"""Filling a token cache: in one process or many, on one machine or many, stopped and continued at any moment.

Missing segments are cut into jobs of consecutive segments. The jobs follow from the data set alone, whoever works on
them and however often they are stopped. A worker takes any job that is not done and that no other worker holds, and
encodes it window after window into tars; after each window it notes the progress in the job's journal
(`tokens.journal`). The next worker of the job continues there, with the windows of an undisturbed run, and so makes the
same bytes.
"""

from __future__ import annotations

import hashlib
import os
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vidchat.data.report import Report
from vidchat.data.tokens.encoder import Segment, Track
from vidchat.data.tokens.journal import Journal, TrackWriter, hold, is_done, publish_finished, tidy, work_folder
from vidchat.data.tokens.shards import ShardError, dumps, is_summarised, summarise
from vidchat.data.tokens.token_cache import TokenCache
from vidchat.data.tokens.track_index import number_of
from vidchat.data.tokens.windows import Decoded, encode, windows
from vidchat.data.workers import parallel_map

ROUND = 2048  # jobs that are given to workers at a time
Engine = Callable[[Callable[[int], None], int], None]  # runs function(0) .. function(n - 1), at the same time if it can


@dataclass(frozen=True)
class Sharding:
    """How segments become shards.

    Attributes:
        segments: The most segments of a job, whose tokens go into shards of their own.
        bytes: Bytes of the largest shard, unless one segment alone is larger.
    """

    segments: int = 64
    bytes: int = 512 << 20


@dataclass(frozen=True)
class Job:
    """Consecutive segments that lack the same tracks."""

    name: str
    generation: int
    tracks: tuple[Track, ...]
    segments: tuple[Segment, ...]


def fill(
    cache: TokenCache,
    segments: Iterable[Segment],
    devices: Sequence[str] = ("cpu",),
    workers: int = 1,
    engine: Engine | None = None,
    sharding: Sharding | None = None,
) -> Report:
    """Encodes what is not yet encoded; called again after a stop, it continues.

    A segment that cannot be encoded is skipped, and remembered until its clip changes.

    Args:
        cache: The cache to fill.
        segments: The segments that it shall hold.
        devices: The devices to encode on; worker i takes the i-th, in turn.
        workers: How many workers there are.
        engine: The engine that runs them; by default one process each, or this process if there is one worker.
        sharding: How segments become shards.

    Raises:
        CacheError: There are only tokens of other tokenizers or settings, and no clips to encode again.
    """
    sharding = sharding or Sharding()
    publish_finished(cache)
    count, lacking = survey(cache, segments)
    cache.refuse_stale(lacking.values())
    jobs = plan(cache, lacking, sharding)
    if jobs:
        with hold(cache, "cache", wait=True):
            for track in cache.tracks.values():
                track.claim()
                track.forget()
        run = engine or (in_this_process if workers == 1 else in_processes)
        with _progress(cache, jobs):
            for first in range(0, len(jobs), ROUND):
                batch = jobs[first : first + ROUND]
                run(Worker(cache, batch, tuple(devices), workers, sharding.bytes), workers)
        for track in cache.tracks.values():
            track.forget()
    tracks = [track for track in cache.tracks.values() if track.exists]
    if work_folder(cache).is_dir() or not all(is_summarised(t.folder, t.index.count) for t in tracks):
        with hold(cache, "cache", wait=True):
            for track in tracks:
                summarise(track.folder)
        tidy(cache)
    bad = [
        (segment.clip.path.name, why) for segment in lacking.values() if (why := cache.lookup(segment).bad) is not None
    ]
    return Report("clips", count - len(bad), bad)


def survey(cache: TokenCache, segments: Iterable[Segment]) -> tuple[int, dict[str, Segment]]:
    """Returns how many different segments there are, and by key those that lack something."""
    numbers, lacking = array("Q"), dict[str, Segment]()
    for segment in segments:
        state = cache.lookup(segment)
        numbers.append(number_of(state.key))
        if state.missing or state.bad is not None:
            lacking[state.key] = segment if segment.features else lacking.get(state.key, segment)
    return len(np.unique(np.frombuffer(numbers, np.uint64))), lacking


def plan(cache: TokenCache, lacking: dict[str, Segment], sharding: Sharding) -> list[Job]:
    """Returns the jobs that are left. Those that are done leave out whole slices, so the others stay what they were."""
    by_tracks: dict[tuple[Track, ...], list[str]] = {}
    for key, segment in lacking.items():
        state = cache.lookup(segment)
        if state.missing and state.bad is None:
            by_tracks.setdefault(state.missing, []).append(key)
    jobs = []
    for tracks, lacking_keys in by_tracks.items():
        for first in range(0, len(lacking_keys), sharding.segments):
            keys = lacking_keys[first : first + sharding.segments]
            generation = max(cache.tracks[track].generation(key) for track in tracks for key in keys)
            folders = [cache.tracks[track].folder.name for track in tracks]
            digest = hashlib.sha256(dumps([folders, keys, generation, sharding.bytes]).encode()).hexdigest()
            jobs.append(Job(f"shard-{digest[:12]}", generation, tracks, tuple(lacking[key] for key in keys)))
    return jobs


# Workers.


@dataclass
class Worker:
    """Takes jobs until none is left; called with its index."""

    cache: TokenCache
    jobs: list[Job]
    devices: tuple[str, ...]
    workers: int
    shard_bytes: int

    def __call__(self, number: int) -> None:
        if self.workers > 1:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.workers))
        device = self.devices[number % len(self.devices)]
        first = number * len(self.jobs) // self.workers
        encoder = self.cache.encoder
        with _on(device, encoder.video_vae, encoder.audio_codec, encoder.thinker):
            # First the jobs that no worker holds; then those too whose worker may have been killed meanwhile.
            for wait in (False, True):
                for job in self.jobs[first:] + self.jobs[:first]:
                    with hold(self.cache, job.name, wait) as mine:
                        if mine and not is_done(self.cache, job.name, job.tracks):
                            self._run(job, device)

    def _run(self, job: Job, device: str) -> None:
        journal = Journal.read(self.cache, job.name)
        if not journal.finished:
            writers = {track: journal.writer(self.cache.tracks[track], job.generation) for track in job.tracks}
            for window in windows(self.cache, job.segments[journal.done :]):
                self._write(job, journal, writers, window, encode(self.cache.encoder, window, job.tracks, device))
            journal.finish(writers)
        journal.publish(self.cache)

    def _write(
        self,
        job: Job,
        journal: Journal,
        writers: dict[Track, TrackWriter],
        window: list[Decoded],
        encoded: list[list[dict[Track, Tensor]]],
    ) -> None:
        for decoded, spans in zip(window, encoded, strict=True):
            segment = decoded.segment
            entry: dict[str, Any] = {
                "key": self.cache.key(segment),
                "clip": self.cache.name(segment.clip),
                "start": segment.clip.start,
                "end": segment.clip.end,
                "part": segment.part,
                "stamp": decoded.stamp,
            }
            if decoded.why is not None:
                # In the last track alone: a clip without audio may still have frames.
                writers[job.tracks[-1]].shard["bad"].append(entry | {"why": decoded.why})
                continue
            for track in job.tracks:
                tensors = [self._stored(track, span[track]) for span in spans]
                writers[track].add(entry, tensors, self.shard_bytes)
        journal.note(len(window), writers)

    def _stored(self, track: Track, tensor: Tensor) -> Tensor:
        return tensor.int() if track == "codes" else tensor.to(getattr(torch, self.cache.dtype))


def in_this_process(function: Callable[[int], None], count: int) -> None:
    """Runs one worker after the other."""
    for number in range(count):
        function(number)


def in_processes(function: Callable[[int], None], count: int) -> None:
    """Runs every worker in a process of its own, which ends with this one."""
    for _ in parallel_map(function, range(count), count):
        pass


def on_ray(function: Callable[[int], None], count: int, gpus: float = 0) -> None:
    """Runs every worker as a task of a Ray cluster, whose nodes must all see the data set's and the cache's folder."""
    try:
        import ray
    except ImportError:
        raise ShardError("Ray is not installed; pip install 'vidchat[ray]', or use engine=processes") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    shared = ray.put(function)

    @ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)
    def run(worker: Callable[[int], None], number: int) -> None:
        worker(number)

    ray.get([run.remote(shared, number) for number in range(count)])


@contextmanager
def _progress(cache: TokenCache, jobs: list[Job]) -> Iterator[None]:
    """Shows a bar of the segments that all processes have done."""
    columns = (TextColumn("encoding clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stop = threading.Event()
    with Progress(*columns) as progress:
        task = progress.add_task("", total=sum(len(job.segments) for job in jobs))

        def watch() -> None:
            while not stop.wait(1):
                progress.update(task, completed=sum(_done(cache, job) for job in jobs))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            progress.update(task, completed=sum(_done(cache, job) for job in jobs))


def _done(cache: TokenCache, job: Job) -> int:
    if is_done(cache, job.name, job.tracks):
        return len(job.segments)
    try:
        return Journal.read(cache, job.name).done
    except (OSError, ValueError):
        return 0


@contextmanager
def _on(device: str, *tokenizers: Any) -> Iterator[None]:
    """Moves tokenizers to the device for the block, and back to the CPU's memory afterwards."""
    present = [tokenizer for tokenizer in tokenizers if tokenizer is not None]
    for tokenizer in present:
        tokenizer.to(device)
    try:
        yield
    finally:
        for tokenizer in present:
            tokenizer.to("cpu")
            if hasattr(tokenizer, "unload"):  # a thinker is large
                tokenizer.unload()

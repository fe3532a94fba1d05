"""Filling a token cache: in one process or many, on one machine or many, stopped and gone on with at any moment.

What is missing is cut into jobs, each of consecutive pieces. The jobs follow from the data set alone, whoever works on
them and however often they were stopped. Who works takes any job that is not done and that nobody holds (a lock on a
file, which ends with its holder). A job appends what it encodes to tars, window after window; after each it notes in a
journal how far the tars are good. Whoever goes on with it cuts them there, so that nothing that was noted is encoded
again, and the windows that follow are those of an undisturbed run, which makes the same bytes. Once the journal says
that the tars are finished, they and their indexes are given their names; that too is gone on with after a kill.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vidchat.data.cache import TokenCache, TrackCache
from vidchat.data.media import Media, MediaError
from vidchat.data.report import Report
from vidchat.data.shards import (
    ShardError,
    ShardWriter,
    dumps,
    is_summarised,
    pack,
    partial,
    publish,
    summarise,
    write_whole,
)
from vidchat.data.tokens import ClipEncoder, Piece, Track
from vidchat.data.workers import each

log = logging.getLogger(__name__)
WINDOW = 256 << 20  # bytes of pictures that are decoded before they are encoded
BATCH = 8  # spans of one shape that are encoded together
ROUND = 2048  # jobs that workers are told of at a time
Engine = Callable[[Callable[[int], None], int], None]  # runs function(0) .. function(n - 1), at the same time if it can


@dataclass(frozen=True)
class Sharding:
    """How pieces become shards.

    Attributes:
        pieces: Most pieces of a job, whose tokens go into shards of their own.
        bytes: Of the largest shard, unless one piece alone is larger.
    """

    pieces: int = 64
    bytes: int = 512 << 20


@dataclass(frozen=True)
class Job:
    """Consecutive pieces that lack the same tracks."""

    name: str
    generation: int
    tracks: tuple[Track, ...]
    pieces: tuple[Piece, ...]


def fill(
    cache: TokenCache,
    pieces: Iterable[Piece],
    devices: Sequence[str] = ("cpu",),
    workers: int = 1,
    engine: Engine | None = None,
    sharding: Sharding | None = None,
) -> Report:
    """Encodes what is not yet encoded; stopped and called again, it goes on.

    A piece that cannot be encoded is skipped, and remembered until its clip changes.

    Args:
        cache: What is filled.
        pieces: What is to be there.
        devices: Where to encode; worker i takes the i-th, going round.
        workers: How many work at the same time.
        engine: What runs them; by default processes, or this one if it is the only one.
        sharding: How pieces become shards.

    Raises:
        CacheError: There are only tokens that were made with something else, and no clips to make others from.
    """
    sharding = sharding or Sharding()
    named: dict[str, Piece] = {}
    for piece in pieces:
        key = cache.key(piece)
        named[key] = piece if piece.features else named.get(key, piece)
    cache.refuse_stale(named.values())
    _publish_finished(cache)
    jobs = plan(cache, named, sharding)
    if jobs:
        with _hold(cache, "cache", wait=True):
            for track in cache.tracks.values():
                track.claim()
                track.forget()
        run = engine or (in_this_process if workers == 1 else in_processes)
        with _progress(cache, jobs):
            for first in range(0, len(jobs), ROUND):
                some = jobs[first : first + ROUND]
                run(Worker(cache, some, tuple(devices), workers, sharding.bytes), workers)
    for track in cache.tracks.values():
        track.forget()
    tracks = [track for track in cache.tracks.values() if track.exists]
    if _work_folder(cache).is_dir() or not all(is_summarised(track.folder) for track in tracks):
        with _hold(cache, "cache", wait=True):
            for track in tracks:
                summarise(track.folder)
        _tidy(cache)
    bad = [(piece.clip.path.name, why) for piece in named.values() if (why := cache.look(piece).bad) is not None]
    return Report("clips", len(named) - len(bad), bad)


def plan(cache: TokenCache, named: dict[str, Piece], sharding: Sharding) -> list[Job]:
    """The jobs that are left. Jobs that are done leave whole slices out, so that the others stay what they were."""
    lacking: dict[tuple[Track, ...], list[str]] = {}
    for key, piece in named.items():
        found = cache.look(piece)
        if found.missing and found.bad is None:
            lacking.setdefault(found.missing, []).append(key)
    jobs = []
    for tracks, keys in lacking.items():
        for first in range(0, len(keys), sharding.pieces):
            some = keys[first : first + sharding.pieces]
            generation = max(cache.tracks[track].generation(key) for track in tracks for key in some)
            folders = [cache.tracks[track].folder.name for track in tracks]
            digest = hashlib.sha256(dumps([folders, some, generation, sharding.bytes]).encode()).hexdigest()
            jobs.append(Job(f"shard-{digest[:12]}", generation, tracks, tuple(named[key] for key in some)))
    return jobs


# Who works.


@dataclass
class Worker:
    """Takes jobs until none is left; called with its number."""

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
            # At first only jobs that nobody holds; then those too whose holder may have been killed meanwhile.
            for wait in (False, True):
                for job in self.jobs[first:] + self.jobs[:first]:
                    with _hold(self.cache, job.name, wait) as mine:
                        if mine and not _is_done(self.cache, job):
                            self._run(job, device)

    def _run(self, job: Job, device: str) -> None:
        journal = Journal.read(self.cache, job)
        if not journal.finished:
            writers = {track: journal.writer(self.cache.tracks[track]) for track in job.tracks}
            for window in _windows(self.cache, job.pieces[journal.done :]):
                self._write(job, journal, writers, window, _encode(self.cache.encoder, window, job.tracks, device))
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
            piece = decoded.piece
            told: dict[str, Any] = {
                "key": self.cache.key(piece),
                "clip": self.cache.name(piece.clip),
                "start": piece.clip.start,
                "end": piece.clip.end,
                "part": piece.part,
                "stamp": decoded.stamp,
            }
            if decoded.why is not None:
                # In the last of the tracks alone: what has no sound may still have a picture.
                writers[job.tracks[-1]].shard["bad"].append(told | {"why": decoded.why})
                continue
            for track in job.tracks:
                tensors = [self._stored(track, span[track]) for span in spans]
                writers[track].add(told, tensors, self.shard_bytes)
        journal.note(len(window), writers)

    def _stored(self, track: Track, tensor: Tensor) -> Tensor:
        return tensor.int() if track == "codes" else tensor.to(getattr(torch, self.cache.dtype))


def in_this_process(function: Callable[[int], None], count: int) -> None:
    """One worker after the other."""
    for number in range(count):
        function(number)


def in_processes(function: Callable[[int], None], count: int) -> None:
    """Every worker in a process of its own, which ends with this one."""
    for _ in each(function, range(count), count):
        pass


def on_ray(function: Callable[[int], None], count: int, gpus: float = 0) -> None:
    """Every worker as a task of a Ray cluster, whose nodes must all see the data set's folder and the cache's."""
    try:
        import ray
    except ImportError:
        raise ShardError("Ray is not installed; pip install 'vidchat[ray]', or use --engine processes") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    shared = ray.put(function)

    @ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)
    def run(one: Callable[[int], None], number: int) -> None:
        one(number)

    ray.get([run.remote(shared, number) for number in range(count)])


# One job: from clips to the bytes of its tars.


@dataclass
class Decoded:
    """A piece's spans, or why there are none."""

    piece: Piece
    stamp: tuple[int, int] | None
    spans: list[Media] = field(default_factory=list)
    why: str | None = None


def _windows(cache: TokenCache, pieces: Sequence[Piece]) -> Iterator[list[Decoded]]:
    """Decoded pieces, a few at a time."""
    window: list[Decoded] = []
    held = 0
    for piece in pieces:
        window.append(_read(cache, piece))
        held += sum(span.pictures.nbytes for span in window[-1].spans)
        if held > WINDOW:
            yield window
            window, held = [], 0
    if window:
        yield window


def _read(cache: TokenCache, piece: Piece) -> Decoded:
    """Decodes a piece, in all the chunks that the cache has room for, from its file or from a media shard."""
    stamp = cache.stamp(piece.clip)
    try:
        with cache.media.extracted(cache.name(piece.clip)) as path:
            there = piece.clip if path is None or piece.clip.path.is_file() else replace(piece.clip, path=path)
            return Decoded(piece, stamp, cache.encoder.read(replace(piece, clip=there, max_chunks=cache.longest)))
    except (MediaError, ShardError) as error:
        return Decoded(piece, stamp, why=str(error))


def _encode(
    encoder: ClipEncoder, window: list[Decoded], tracks: Sequence[Track], device: str
) -> list[list[dict[Track, Tensor]]]:
    """Encodes the spans of a window in batches of one shape; in the window's order."""
    by_shape: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for number, decoded in enumerate(window):
        for k, span in enumerate(decoded.spans):
            by_shape.setdefault(tuple(span.pictures.shape), []).append((number, k))
    done: list[list[dict[Track, Tensor]]] = [[{} for _ in decoded.spans] for decoded in window]
    for places in by_shape.values():
        for first in range(0, len(places), BATCH):
            some = places[first : first + BATCH]
            spans = [window[number].spans[k] for number, k in some]
            for (number, k), tokens in zip(some, encoder.encode_tracks(spans, tracks, device), strict=True):
                done[number][k] = tokens
    return done


class TrackWriter:
    """Writes one track of a job, into one tar after another.

    Args:
        track: Whose.
        name: Of the job.
        generation: Of the job.
        shards: What its tars hold so far, the last of which is not full: goes into the journal, and the indexes.
    """

    def __init__(self, track: TrackCache, name: str, generation: int, shards: list[dict[str, Any]]) -> None:
        self.track, self.name, self.generation, self.shards = track, name, generation, shards
        if not shards:
            self._begin()
        else:
            self.writer = ShardWriter(self._path, self.shard["bytes"])

    @property
    def shard(self) -> dict[str, Any]:
        """The index of the tar that is being written."""
        return self.shards[-1]

    @property
    def _path(self) -> Path:
        return shard_path(self.track, self.name, len(self.shards) - 1)

    def _begin(self) -> None:
        self.shards.append({"generation": self.generation, "samples": 0, "bytes": 0, "pieces": [], "bad": []})
        self.writer = ShardWriter(self._path)

    def add(self, told: dict[str, Any], tensors: list[Tensor], limit: int) -> None:
        """Appends a piece's spans; what does not fit into the tar begins another."""
        name = self.track.track
        data = [pack(name, tensor) for tensor in tensors]
        if self.writer.size and self.writer.whole(map(len, data)) > limit:
            self._end()
            self._begin()
        samples = []
        for k, (packed, tensor) in enumerate(zip(data, tensors, strict=True)):
            member = self.writer.add(f"{told['key']}-{k:03d}.{name}.safetensors", packed)
            samples.append([*member, list(tensor.shape)])
        self.shard["pieces"].append(told | {"samples": samples})
        self.shard["samples"] += len(samples)

    def flush(self) -> None:
        self.shard["bytes"] = self.writer.flush()

    def _end(self) -> None:
        self.shard["bytes"], self.shard["sha256"] = self.writer.finish()

    def finish(self) -> None:
        """Ends the last tar."""
        self._end()


@dataclass
class Journal:
    """How far a job is: pieces done, and what its tars hold, of every track."""

    path: Path
    job: Job
    done: int = 0
    finished: bool = False
    shards: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def read(cls, cache: TokenCache, job: Job) -> Journal:
        """The journal of a job that was begun, or a new one."""
        path = _work_folder(cache) / f"{job.name}.json"
        told = json.loads(path.read_text()) if path.is_file() else {}
        return cls(path, job, **told)

    def writer(self, track: TrackCache) -> TrackWriter:
        shards = self.shards.setdefault(track.track, [])
        return TrackWriter(track, self.job.name, self.job.generation, shards)

    def note(self, count: int, writers: dict[Track, TrackWriter]) -> None:
        """Notes that a window is done, once its bytes are on the disk."""
        for writer in writers.values():
            writer.flush()
        self.done += count
        self._write()

    def finish(self, writers: dict[Track, TrackWriter]) -> None:
        """Notes that the tars are whole."""
        for writer in writers.values():
            writer.finish()
        self.finished = True
        self._write()

    def _write(self) -> None:
        write_whole(self.path, dumps({"done": self.done, "finished": self.finished, "shards": self.shards}))

    def publish(self, cache: TokenCache) -> None:
        """Gives the tars and their indexes their names, and closes the journal."""
        for name, shards in self.shards.items():
            for number, index in enumerate(shards):
                publish(shard_path(cache.tracks[name], self.path.stem, number), index)  # type: ignore[index]
        self.path.unlink(missing_ok=True)


def shard_path(track: TrackCache, job: str, number: int) -> Path:
    """Where a job's tar goes."""
    return track.folder / f"{job}-{number:03d}.tar"


def _is_done(cache: TokenCache, job: Job) -> bool:
    there = all(shard_path(cache.tracks[t], job.name, 0).with_suffix(".json").is_file() for t in job.tracks)
    return there and not (_work_folder(cache) / f"{job.name}.json").is_file()


# The folder of locks and journals, which is there only while somebody works.


def _work_folder(cache: TokenCache) -> Path:
    """Journals and locks, of the caches' folders that this cache reads: another codec's work is not ours."""
    digest = hashlib.sha256("/".join(t.folder.name for t in cache.tracks.values()).encode()).hexdigest()
    return cache.folder / f"work-{digest[:12]}"


@contextmanager
def _hold(cache: TokenCache, name: str, wait: bool) -> Iterator[bool]:
    """Whether this process holds a job, as long as the block lasts."""
    path = _work_folder(cache) / f"{name}.lock"
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if _same_file(file.fileno(), path):  # or it was tidied away before it was locked
                yield True
                return


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _publish_finished(cache: TokenCache) -> None:
    """Finishes what a killed worker left between a finished journal and the last name."""
    for path in sorted(_work_folder(cache).glob("shard-*.json")):
        with _hold(cache, path.stem, wait=True):
            if not path.is_file():
                continue
            journal = Journal(path, Job(path.stem, 0, (), ()), **json.loads(path.read_text()))
            if journal.finished:
                journal.publish(cache)
                for track in cache.tracks.values():
                    track.forget()


def _tidy(cache: TokenCache) -> None:
    """Removes locks that nobody holds, and what was begun of jobs whose pieces are all there by now."""
    folder = _work_folder(cache)
    for lock in sorted(folder.glob("*.lock")):
        with _hold(cache, lock.stem, wait=False) as mine:
            journal = lock.with_suffix(".json")
            if not mine or (journal.is_file() and not _is_superseded(cache, json.loads(journal.read_text()))):
                continue
            for track in cache.tracks.values():
                for left in track.folder.glob(f".{lock.stem}-*.partial"):
                    left.unlink(missing_ok=True)
            partial(journal).unlink(missing_ok=True)
            journal.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        log.info("%s is kept: encoding is under way there, or was stopped and can be gone on with", folder)


def _is_superseded(cache: TokenCache, journal: dict[str, Any]) -> bool:
    return all(
        cache.tracks[name].entry(piece["key"]) is not None
        for name, shards in journal["shards"].items()
        for shard in shards
        for piece in shard["pieces"]
    )


@contextmanager
def _progress(cache: TokenCache, jobs: list[Job]) -> Iterator[None]:
    """A bar of the pieces done, by whichever process."""
    columns = (TextColumn("encoding clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stop = threading.Event()
    with Progress(*columns) as progress:
        task = progress.add_task("", total=sum(len(job.pieces) for job in jobs))

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
    if _is_done(cache, job):
        return len(job.pieces)
    try:
        return int(json.loads((_work_folder(cache) / f"{job.name}.json").read_text())["done"])
    except (OSError, ValueError):
        return 0


@contextmanager
def _on(device: str, *tokenizers: Any) -> Iterator[None]:
    """Tokenizers on the device for as long as it takes, and back in the CPU's memory afterwards."""
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



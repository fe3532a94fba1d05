"""Journals of jobs, which let encoding be killed at any moment: noted work is neither lost nor done again.

A job's tokens are appended to a tar per track. After each window the journal notes the good length of these tars, and
the next worker of the job cuts them there. Once the journal says that they are finished, they and their indexes get
their final names, which may be done twice. A worker holds a job by a lock on a file, which ends with the worker.
Journals and locks lie in a folder that exists only during the work.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vidchat.data.tokens.encoder import Track
from vidchat.data.tokens.shards import ShardWriter, dumps, pack, partial, publish
from vidchat.data.tokens.token_cache import TokenCache
from vidchat.data.tokens.track import TrackCache
from vidchat.runtime.atomic import write_text

log = logging.getLogger(__name__)


class TrackWriter:
    """Writes one track of a job, into one tar after another.

    Args:
        track: The track.
        name: The name of the job.
        generation: The generation of the job.
        shards: The indexes of its tars so far, the last of which is not full; they go into the journal.
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

    def add(self, entry: dict[str, Any], tensors: list[Tensor], limit: int) -> None:
        """Appends a segment's spans; begins another tar where they do not fit."""
        name = self.track.track
        data = [pack(name, tensor) for tensor in tensors]
        if self.writer.size and self.writer.finished_size(map(len, data)) > limit:
            self._end()
            self._begin()
        samples = []
        for k, (packed, tensor) in enumerate(zip(data, tensors, strict=True)):
            member = self.writer.add(f"{entry['key']}-{k:03d}.{name}.safetensors", packed)
            samples.append([*member, list(tensor.shape)])
        self.shard["pieces"].append(entry | {"samples": samples})
        self.shard["samples"] += len(samples)

    def flush(self) -> None:
        """Writes everything to the disk, and notes how long the tar is."""
        self.shard["bytes"] = self.writer.flush()

    def _end(self) -> None:
        self.shard["bytes"], self.shard["sha256"] = self.writer.finish()

    def finish(self) -> None:
        """Ends the last tar."""
        self._end()


@dataclass
class Journal:
    """The progress of a job: how many segments are done, and the indexes of its tars by track."""

    path: Path
    done: int = 0
    finished: bool = False
    shards: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def read(cls, cache: TokenCache, job: str) -> Journal:
        """Returns the journal of a job that was begun, or a new one."""
        path = work_folder(cache) / f"{job}.json"
        content = json.loads(path.read_text()) if path.is_file() else {}
        return cls(path, **content)

    def writer(self, track: TrackCache, generation: int) -> TrackWriter:
        """Continues a track of the job, or begins it."""
        shards = self.shards.setdefault(track.track, [])
        return TrackWriter(track, self.path.stem, generation, shards)

    def note(self, count: int, writers: dict[Track, TrackWriter]) -> None:
        """Notes that a window is done, once its bytes are on the disk."""
        for writer in writers.values():
            writer.flush()
        self.done += count
        self._write()

    def finish(self, writers: dict[Track, TrackWriter]) -> None:
        """Notes that the tars are finished."""
        for writer in writers.values():
            writer.finish()
        self.finished = True
        self._write()

    def _write(self) -> None:
        write_text(self.path, dumps({"done": self.done, "finished": self.finished, "shards": self.shards}))

    def publish(self, cache: TokenCache) -> None:
        """Gives the tars and their indexes their final names, and removes the journal."""
        for name, shards in self.shards.items():
            for number, index in enumerate(shards):
                publish(shard_path(cache.tracks[name], self.path.stem, number), index)  # type: ignore[index]
        self.path.unlink(missing_ok=True)


def shard_path(track: TrackCache, job: str, number: int) -> Path:
    """Returns the path of a job's tar."""
    return track.folder / f"{job}-{number:03d}.tar"


def is_done(cache: TokenCache, job: str, tracks: Sequence[Track]) -> bool:
    """Returns whether a job's tars have their final names."""
    published = all(shard_path(cache.tracks[t], job, 0).with_suffix(".json").is_file() for t in tracks)
    return published and not (work_folder(cache) / f"{job}.json").is_file()


# The folder of locks and journals, which exists only during the work.


def work_folder(cache: TokenCache) -> Path:
    """Returns the folder of journals and locks for the tracks of this cache: other tokenizers have another."""
    digest = hashlib.sha256("/".join(t.folder.name for t in cache.tracks.values()).encode()).hexdigest()
    return cache.folder / f"work-{digest[:12]}"


@contextmanager
def hold(cache: TokenCache, name: str, wait: bool) -> Iterator[bool]:
    """Yields whether this process holds a job, for the block."""
    path = work_folder(cache) / f"{name}.lock"
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


def publish_finished(cache: TokenCache) -> None:
    """Publishes what a killed worker had finished but not published."""
    for path in sorted(work_folder(cache).glob("shard-*.json")):
        with hold(cache, path.stem, wait=True):
            if not path.is_file():
                continue
            journal = Journal.read(cache, path.stem)
            if journal.finished:
                journal.publish(cache)
                for track in cache.tracks.values():
                    track.forget()


def tidy(cache: TokenCache) -> None:
    """Removes locks that no worker holds, and unfinished files of jobs whose segments are all encoded by now."""
    folder = work_folder(cache)
    for lock in sorted(folder.glob("*.lock")):
        with hold(cache, lock.stem, wait=False) as mine:
            journal = lock.with_suffix(".json")
            if not mine or (journal.is_file() and not _is_superseded(cache, json.loads(journal.read_text()))):
                continue
            for track in cache.tracks.values():
                for leftover in track.folder.glob(f".{lock.stem}-*.partial"):
                    leftover.unlink(missing_ok=True)
            partial(journal).unlink(missing_ok=True)
            journal.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        log.info("%s is kept: encoding is under way there, or was stopped and can be continued", folder)


def _is_superseded(cache: TokenCache, journal: dict[str, Any]) -> bool:
    return all(
        cache.tracks[name].entry(segment["key"]) is not None
        for name, shards in journal["shards"].items()
        for shard in shards
        for segment in shard["pieces"]
    )

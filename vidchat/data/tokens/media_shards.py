"""Media shards: the clips of a data set in tars, `KEY.mp4` with `KEY.json`, where many small files are slow.

    <output>/dialogues.jsonl  media/shard-*.tar  media/shard-*.json  media/index.json

The folder is a data set like any other, whose clips lie in tars: `vidchat data encode` reads them there.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

from rich.progress import track

from vidchat.data.atomic_path import atomic_path
from vidchat.data.folder import FolderError, manifest_of, read_folder
from vidchat.data.media.container import length_of
from vidchat.data.media.media_error import MediaError
from vidchat.data.report import Report
from vidchat.data.tokens.shards import (
    Member,
    ShardReader,
    ShardWriter,
    dumps,
    indexes,
    publish,
    reading,
    summarise,
)
from vidchat.dialogue import Clip, Dialogue

MEDIA = "media"  # the folder of a data set's media shards


class MediaShards:
    """The media shards of a data set, if it has any.

    Args:
        root: The data set's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.reader = Path(root), Path(root) / MEDIA, ShardReader()

    @cached_property
    def _files(self) -> dict[str, tuple[Path, Member]]:
        files = {}
        for path in indexes(self.folder):
            with reading(path):
                for file in json.loads(path.read_text())["files"]:
                    name, offset, size = str(file["name"]), index(file["offset"]), index(file["size"])
                    int(file["check"], 16)
                    files[name] = (path.with_suffix(".tar"), Member(offset, size, file["check"]))
        return files

    @property
    def count(self) -> int:
        """Returns how many clips all shards hold."""
        return len(self._files)

    def seconds(self, dialogue: Dialogue, clip: Clip) -> float | None:
        """Returns the seconds of a dialogue's clip, by the manifest or its header; `None` where it is in no shard.

        Raises `MediaError` or `ShardError`.
        """
        name = clip.path.relative_to(self.root).as_posix()
        if name not in self._files:
            return None
        if clip.end is not None:
            return clip.end - clip.start
        tar, member = self._files[name]
        try:
            return length_of(tar, (member.offset, member.offset + member.size)) - clip.start
        except MediaError as error:
            raise MediaError(str(error).replace(str(tar), f"{name} in {tar}")) from error

    def stamp(self, name: str) -> tuple[int, int] | None:
        """Returns what changes when a file's bytes do; `None` where it is not there."""
        if name not in self._files:
            return None
        member = self._files[name][1]
        return member.size, int(member.check, 16)

    @contextmanager
    def extracted(self, name: str) -> Iterator[Path | None]:
        """Yields the path of a temporary copy of a file; `None` where it is not there. Raises `ShardError`."""
        if name not in self._files:
            yield None
            return
        with tempfile.NamedTemporaryFile(suffix=Path(name).suffix) as file:
            file.write(self.reader.read(*self._files[name]).numpy().tobytes())
            file.flush()
            try:
                yield Path(file.name)
            except MediaError as error:  # the name of the temporary file does not say which clip it is
                raise MediaError(str(error).replace(file.name, f"{name} in {self._files[name][0]}")) from error


def pack(root: Path, output: Path, shard_bytes: int) -> tuple[Report, dict[str, Any]]:
    """Writes the clips of a folder data set into media shards; called again after a stop, it continues.

    Args:
        root: The folder.
        output: Another folder, which gets the same manifest.
        shard_bytes: Bytes of the largest shard, unless one clip alone is larger.

    Returns:
        What was left out of the manifest, and the summary of the shards.

    Raises:
        FolderError: There is no data set, or `output` holds shards of something else.
    """
    dialogues, report = read_folder(root)
    clips: dict[Path, list[Clip]] = {}
    for clip in (turn.clip for dialogue in dialogues for turn in dialogue.turns):
        clips.setdefault(clip.path, []).append(clip)
    plan = dict(_plan(root, list(clips), shard_bytes))
    folder = output / MEDIA
    foreign = [path.name for path in indexes(folder) if path.stem not in plan]
    if foreign:
        raise FolderError(f"{folder}: holds shards of other clips ({foreign[0]}); give another --output or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    for name, paths in track(plan.items(), "packing shards"):
        if not (folder / f"{name}.json").is_file():
            _write(root, folder / f"{name}.tar", {path: clips[path] for path in paths})
    copy_manifest(root, output)
    return report, summarise(folder)


def copy_manifest(root: Path, output: Path) -> None:
    """Copies the data set's manifest into another folder, whole or not at all."""
    manifest = manifest_of(root)
    output.mkdir(parents=True, exist_ok=True)
    with atomic_path(output / manifest.name) as unfinished:
        shutil.copyfile(manifest, unfinished)


def _plan(root: Path, paths: list[Path], shard_bytes: int) -> Iterator[tuple[str, list[Path]]]:
    """Yields the name of each shard and its clips, in the manifest's order."""
    held: list[Path] = []
    size = 0
    for path in paths:
        more = path.stat().st_size
        if held and size + more > shard_bytes:
            yield _name(root, held), held
            held, size = [], 0
        held.append(path)
        size += more
    if held:
        yield _name(root, held), held


def _name(root: Path, paths: list[Path]) -> str:
    files = [[path.relative_to(root).as_posix(), path.stat().st_size] for path in paths]
    return f"shard-{hashlib.sha256(dumps(files).encode()).hexdigest()[:12]}"


def _write(root: Path, path: Path, clips: dict[Path, list[Clip]]) -> None:
    writer = ShardWriter(path)
    try:
        files = [_add(writer, root, source, spans) for source, spans in clips.items()]
        size, sha256 = writer.finish()
    except BaseException:
        writer.discard()
        raise
    publish(path, {"samples": len(files), "bytes": size, "sha256": sha256, "files": files})


def _add(writer: ShardWriter, root: Path, source: Path, spans: list[Clip]) -> dict[str, Any]:
    """Appends a clip and what the manifest says of it; returns where the clip is."""
    name = source.relative_to(root).as_posix()
    key = f"{re.sub(r'[^A-Za-z0-9_-]', '_', source.stem)[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    suffix = re.sub(r"[^a-z0-9]", "", source.suffix.lower()) or "mp4"
    member = writer.add(f"{key}.{suffix}", source.read_bytes())
    spoken = [
        {"speaker": c.speaker, "text": c.text, "start": c.start, "end": c.end, "scores": dict(c.scores)} for c in spans
    ]
    writer.add(f"{key}.json", dumps({"name": name, "clips": spoken}).encode())
    return {"name": name, **member._asdict()}

"""Atomic writes: a file appears complete or not at all, and an error leaves no partial file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq
import pytest
import torch
from folders import make_folder

from vidchat.data.atomic_path import atomic_path, remove_partials
from vidchat.data.manifest.dialogues import DeriveSettings, write_dialogues
from vidchat.data.manifest.sources import ingest_folder
from vidchat.data.media.write import ClipWriter, write_clip
from vidchat.data.tokens import shards
from vidchat.data.tokens.media_shards import copy_manifest, pack
from vidchat.runtime.atomic import write_text

FRAMES = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)


def full(*_: object, **__: object) -> Any:
    raise OSError(28, "No space left on device")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_replaces_an_older_one_only_when_it_is_complete(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "old")

    def fail() -> None:
        with atomic_path(tmp_path / "a.json") as partial:
            partial.write_text("half of the n")
            full()

    with pytest.raises(OSError, match=r"No space left on device: .*/a\.json"):
        fail()
    assert (tmp_path / "a.json").read_text() == "old"
    assert files(tmp_path) == ["a.json"]
    (tmp_path / ".a[1].json.99.partial").touch()
    remove_partials(tmp_path / "a[1].json")
    assert files(tmp_path) == ["a.json"]


@pytest.mark.parametrize("step", ["_finish", "_mux_audio", "_write_frame", "os.replace", "close"])
def test_a_clip_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    if step == "os.replace":
        monkeypatch.setattr("vidchat.data.media.write.os.replace", full)
    elif step == "close":
        opened = av.open

        class Container:
            def __init__(self, *args: Any, **options: Any) -> None:
                self._container = opened(*args, **options)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._container, name)

            def close(self) -> None:
                self._container.close()
                full()

        monkeypatch.setattr("vidchat.data.media.write.av.open", Container)
    else:
        monkeypatch.setattr(ClipWriter, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_clip(tmp_path / "a.mp4", FRAMES, torch.zeros(3200), 25, 16000)
    assert files(tmp_path) == []


def test_folders_pipes_and_devices_are_not_replaced(tmp_path: Path) -> None:
    """A pipe stands for a device: renaming a file to /dev/null would replace /dev/null for all programs."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("folder", "pipe", "link"):
        with pytest.raises(ValueError, match=f"{name}: is a folder, a pipe or a device"):
            write_clip(tmp_path / name, FRAMES, None, 25, 16000)
        with pytest.raises(ValueError, match=f"{name}: is a folder, a pipe or a device"):
            write_text(tmp_path / name, "{}")
    assert files(tmp_path) == []
    assert (tmp_path / "pipe").is_fifo()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_folder(tmp_path_factory.mktemp("data"), ["train"])
    ingest_folder(root, root / "clips.parquet")
    return root


def test_packing_that_fails_leaves_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.ShardWriter, "finish", full)
    with pytest.raises(OSError, match="No space left"):
        pack(data, tmp_path, 1 << 30)
    monkeypatch.setattr("vidchat.data.tokens.media_shards.shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        copy_manifest(data, tmp_path)
    assert files(tmp_path) == []


def test_an_index_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidchat.runtime.atomic.os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*/index\.json"):
        write_text(tmp_path / "index.json", "{}")
    assert files(tmp_path) == []


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_dialogues_that_cannot_be_written_leave_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str
) -> None:
    monkeypatch.setattr("vidchat.data.manifest.dialogues._entry", full)
    with pytest.raises(OSError, match="No space left"):
        write_dialogues(data / "clips.parquet", tmp_path, DeriveSettings(), file_format=file_format)
    assert files(tmp_path) == ["branches.json"]


def test_a_manifest_that_cannot_be_written_leaves_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        ingest_folder(data, tmp_path / "clips.parquet")
    assert files(tmp_path) == ["clips.damaged.jsonl", "clips.report.json"]
    assert json.loads((tmp_path / "clips.report.json").read_text())["clips"] == 2

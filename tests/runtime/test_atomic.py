"""Whole files and whole folders: whatever kills the writing, the old or the new is there."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vidchat.runtime.atomic
from tests.deaths import deaths
from vidchat.runtime.atomic import FolderError, atomic_file, atomic_folder, settle_folder


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write(folder: Path, value: str) -> None:
    with atomic_folder(folder) as new:
        (new / "a").write_text(value)
        (new / "sub").mkdir()
        (new / "sub" / "b").write_text(value)


def values(folder: Path) -> set[str]:
    return {(folder / "a").read_text(), (folder / "sub" / "b").read_text()}


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_killed_at_any_moment_is_the_old_or_the_new(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(vidchat.runtime.atomic, "_exchange", lambda one, other: False)
    folder, seen = tmp_path / "release", []
    write(folder, "old")
    (folder / "README.md").write_text("by hand")
    for last in deaths(lambda: write(folder, "new")):
        if exchange:
            assert len(values(folder)) == 1, f"died before operation {last}"
        settle_folder(folder)
        (value,) = values(folder)
        seen.append(value)
        assert (folder / "README.md").read_text() == "by hand", f"died before operation {last}"
        assert [path.name for path in tmp_path.iterdir()] == ["release"], "nothing is left beside it"
        write(folder, "old")
    assert set(seen) == {"old", "new"}
    assert seen[-1] == "new"


def test_a_folder_that_cannot_be_finished_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    write(folder, "old")
    with pytest.raises(OSError) as caught, atomic_folder(folder) as new, small_disk(1000):
        (new / "a").write_text("x" * 2000)
    assert caught.value.filename == str(folder)
    assert caught.value.errno == errno.EFBIG
    assert values(folder) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["release"]
    with pytest.raises(FileNotFoundError) as missing, atomic_folder(folder):
        (tmp_path / "source").read_text()
    assert missing.value.filename == str(tmp_path / "source"), "what is read keeps its name"
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        write(tmp_path / "file", "new")
    (tmp_path / "link").symlink_to(folder)
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert values(folder) == {"new"}


def test_the_working_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for here in ("a", "a/b"):
        monkeypatch.chdir(tmp_path / here)
        with pytest.raises(FolderError, match=r"a is the working folder, or holds it.* give a folder in it"):
            write(tmp_path / "a", "new")
    write(tmp_path / "a" / "c", "new")


def test_a_file_is_written_beside_its_target_and_synced_before_it_bears_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda n: calls.append("sync") or sync(n))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append(Path(a).parent) or replace(a, b))
    with atomic_file(tmp_path / "x") as file:
        file.write(b"new")
    assert calls == ["sync", tmp_path, "sync"]
    with pytest.raises(OSError) as caught, small_disk(10), atomic_file(tmp_path / "x") as file:
        file.write(b"y" * 100)
    assert caught.value.filename == str(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1

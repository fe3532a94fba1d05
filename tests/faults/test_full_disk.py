"""A full disk: every writer says in one sentence which file it could not write, and what was there stays good.

A limit on the length of files stands for it: what a write finds is the same error, at any byte that is chosen.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import commands
from tests.faults.children import run
from tests.faults.test_kills import assert_same_run, files
from vidchat.release import load_release


def assert_refused(function: Callable[..., object], *arguments: Any, folder: Path, limit: int, target: Path) -> None:
    """The function ends with a sentence that names the target, and leaves its folder as it was."""
    before = files(target.parent)
    said = run(function, *arguments, folder=folder, limit=limit)
    assert said, f"with files of at most {limit} bytes it said nothing"
    assert target.name in said, said
    assert "\n" not in said
    assert files(target.parent) == before
    assert not any((folder / "tmp").iterdir())


def test_a_checkpoint_that_cannot_be_written_loses_nothing(data: Path, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    said = run(commands.train, data, output, folder=tmp_path, limit=random.Random(0).randrange(150_000, 400_000))
    assert "checkpoints" in said
    assert "\n" not in said
    assert not any((tmp_path / "tmp").iterdir())
    assert run(commands.train, data, output, folder=tmp_path) == ""
    assert_same_run(output, trained)


def test_an_export_that_cannot_be_written_leaves_the_release(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "exports" / "release"
    shutil.copytree(trained / "release", target)
    for limit in (100, 1000, 50_000, 90_000):
        assert_refused(commands.export, trained / "release", target, folder=tmp_path, limit=limit, target=target)
        load_release(target)


def test_an_answer_that_cannot_be_written_leaves_the_one_before(data: Path, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers" / "out.mp4"
    words = (trained / "release", data / "initiator0.mp4", output)
    assert run(commands.answer, *words, folder=tmp_path) == ""
    for limit in (100, 500, output.stat().st_size // 2, output.stat().st_size - 100):
        assert_refused(commands.answer, *words, folder=tmp_path, limit=limit, target=output)


def test_shards_that_cannot_be_written_are_gone_on_with(data: Path, tmp_path: Path) -> None:
    assert run(commands.encode, data, tmp_path / "whole", folder=tmp_path) == ""
    for limit in (100, 3000):
        said = run(commands.encode, data, tmp_path / "torn", folder=tmp_path, limit=limit)
        assert "torn" in said
    assert run(commands.encode, data, tmp_path / "torn", folder=tmp_path) == ""
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "target"),
    [
        (("data", "pack", "{data}", "--output", "out"), "out"),
        (("data", "ingest", "{data}", "--output", "out/x.parquet", "source=folder"), "x."),
        (("data", "stats", "{data}", "--output", "out/x.png"), "clips."),  # in the directory of temporary files
        (("data", "show", "{data}", "--output", "out/x.html"), "clip.mp4"),  # likewise
        (("data", "show", "{data}", "--output", "out/x.png"), "x.png"),
        (("bench", "make", "{data}", "split=val", "--output", "out"), "out"),
        (("bench", "score", "{bench}", "systems.a={bench}/clips", "-o", "out", "resamples=3"), ".npz"),
        (("bench", "report", "{bench}/scores.json", "-o", "out"), "out"),
    ],
)
def test_a_command_says_which_file_it_could_not_write(
    words: tuple[str, ...], target: str, data: Path, bench: Path, tmp_path: Path
) -> None:
    line = [word.format(data=data, bench=bench) for word in words]
    said = run(commands.vidchat, *line, folder=tmp_path, limit=200)
    assert target in said
    assert "\n" not in said
    left = [path for path in (tmp_path / "out").rglob("*") if "partial" in path.name or "tmp" in path.name]
    assert not left
    assert run(commands.vidchat, *line, folder=tmp_path) == ""


@pytest.fixture(scope="module")
def bench(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of the data set's clips, and scores of it."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "clips").mkdir()
    shutil.copy(data / "responder0.mp4", folder / "clips" / "truth.mp4")
    clips = {side: {"clip": "clips/truth.mp4", "speaker": side} for side in ("initiator", "truth")}
    pairs = ({"id": name, "reference": "clips/truth.mp4", **clips} for name in ("p", "q"))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    words = ("bench", "score", folder, f"systems.a={folder / 'clips'}", "-o", folder, "resamples=3")
    assert run(commands.vidchat, *words, folder=folder) == ""
    return folder

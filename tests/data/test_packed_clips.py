"""A folder whose clips lie in media shards and nowhere else: it is counted and shown like one of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import film, make_folder, write_manifest
from typer.testing import CliRunner

from vidchat.cli import app
from vidchat.data.stats import dialogue_table, store_distributions
from vidchat.data.tokens.media_shards import MediaShards, pack


def run(*words: str | Path) -> str:
    done = CliRunner().invoke(app, ["data", *map(str, words)])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three dialogues, the last an answer from 0.4 to 1.2 s of its clip."""
    folder = make_folder(tmp_path_factory.mktemp("data"), ["train", "val"])
    lines = [json.loads(line) for line in (folder / "dialogues.jsonl").read_text().splitlines()]
    film(folder / "long.mp4", 42)
    turn = {"role": "responder", "speaker": "s", "clip": "long.mp4", "start": 0.4, "end": 1.2, "text": "one two"}
    write_manifest(folder, [*lines, {"id": "alone", "branch": "single", "turns": [turn]}])
    return folder


@pytest.fixture(scope="module")
def packed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in several shards; a fourth dialogue's clip was lost."""
    folder = tmp_path_factory.mktemp("packed, one")
    _, whole = pack(root, folder, 4000)
    assert whole["shards"] > 1
    lost = {"id": "lost", "turns": [{"role": "responder", "speaker": "s", "clip": "lost.mp4"}]}
    with (folder / "dialogues.jsonl").open("a") as file:
        file.write("\n" + json.dumps(lost))
    return folder


def test_shards_are_counted_as_the_files_were(root: Path, packed: Path) -> None:
    assert dialogue_table(packed, MediaShards(packed)) == dialogue_table(root)
    found = store_distributions(packed, MediaShards(packed), "media shards")
    assert found.clips == 5
    seconds = [21, 22, 25, 26, 20]  # at 25 frames a second
    assert found.hours == pytest.approx(sum(seconds) / 25 / 3600)
    assert found.sums["words"] == [5, 6]
    assert found.sums["dover"] == [2, 1]
    assert not found.heights
    output = run("stats", packed)
    assert "5 clips lie in media shards" in output.replace("\n", " ")
    assert "the resolution is unknown" in output.replace("\n", " ")
    assert "5 clips" in output
    assert (packed / "stats.png").stat().st_size > 1000


def test_no_frame_is_decoded_to_count_them(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidchat.data.tokens.shards.ShardReader.read", None)  # a whole clip out of a shard
    monkeypatch.setattr("vidchat.data.media.container.frames_of", None)
    run("stats", packed)


def test_they_are_shown_without_any_tokenizer(root: Path, packed: Path, tmp_path: Path) -> None:
    assert "3 dialogues" in run("show", packed, "--output", tmp_path / "a.html", "video_vae=nowhere")
    assert "3 dialogues" in run("show", root, "--output", tmp_path / "b.html")
    shown = [(tmp_path / name).read_text().split("<section>")[1:] for name in ("a.html", "b.html")]
    assert shown[0] == shown[1]
    assert shown[0][0].count("<video") == 2
    assert "1 dialogues" in run("show", packed, "branch=single", "--output", tmp_path / "s.png")

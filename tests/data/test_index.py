"""Indexes return what they were built from, and damage to their files is repaired."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidchat.data import index as indexing
from vidchat.data.folder import _Ids, make_dialogue
from vidchat.data.loading import dialogues as dialogues_module
from vidchat.data.loading.dialogues import FILE, Dialogues
from vidchat.data.tokens.track_index import ABSENT, TrackIndex, key_of, number_of
from vidchat.dialogue import Dialogue

COUNT = 37


def entry(k: int) -> dict[str, Any]:
    turns: list[dict[str, Any]] = [
        {"role": "responder", "speaker": f"s{k % 3}", "clip": f"{k}.mp4", "text": f"wörter\n\0 {k}"}
    ]
    turns[0]["truth"] = {"half of a character": "\ud800"}
    if k % 2:
        turns.insert(0, {"role": "initiator", "speaker": "q", "clip": f"q{k}.mp4"})
        turns[1]["scores"] = {"dover": k / 8} | ({"motion": 2.0} if k % 3 else {})
    return {
        "id": f"d{k}",
        "tier": ("sft", "pretrain")[k % 5 == 0],
        "split": ("train", "val")[k % 7 == 0],
        "turns": turns,
    }


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of dialogues and a bad line, whose texts are in several record batches."""
    monkeypatch.setattr(indexing, "TEXTS", 8)
    lines = [json.dumps(entry(k)) for k in range(COUNT)]
    (tmp_path / "dialogues.jsonl").write_text("\n".join([*lines[:9], "{bad", *lines[9:]]))
    return tmp_path


def expected(root: Path) -> list[Dialogue]:
    return [make_dialogue(root, entry(k), media=False) for k in range(COUNT)]


def same(found: Dialogues) -> bool:
    """Whether these are the fixture's dialogues, row by row and by column."""
    assert [where for where, _ in found.report.skipped] == ["dialogues.jsonl line 10"]
    assert found.report.read == COUNT
    ours = expected(found.root)
    scores = [[d.answer.scores.get(name, np.nan) for name in ("motion", "?", "dover")] for d in ours]
    answers = found.first[1:] - 1  # the last turn of each
    np.testing.assert_array_equal(found.scores(answers, ["motion", "?", "dover"]), scores)
    assert [found.turns["back"][turn] for turn in answers] == [len(d.turns) - 1 for d in ours]
    return list(found) == ours and [len(d.turns) for d in ours] == np.diff(found.first).tolist()


def never(*_: Any) -> None:
    raise AssertionError("it is built again")


def test_dialogues_are_indexed_once_and_read_back_unchanged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert same(Dialogues(root))
    assert [path.name for path in root.iterdir() if "index" in path.name] == [FILE]
    monkeypatch.setattr(dialogues_module, "_build", never)
    found = Dialogues(root)
    assert same(found)
    packed = pickle.dumps(found)
    assert len(packed) < 1000, "another process maps the same file"
    assert same(pickle.loads(packed))
    assert [found[k] for k in reversed(range(COUNT))] == expected(root)[::-1]
    assert found[3:5] == expected(root)[3:5]
    with pytest.raises(IndexError):
        found[COUNT]


def test_rows_are_found_by_kind(root: Path) -> None:
    found = Dialogues(root)
    expected = [k for k in range(COUNT) if k % 7 and k % 5]
    assert found.rows("train", "dialogue", "sft").tolist() == expected
    assert found.rows("train", "single").tolist() == []
    assert found.rows().tolist() == list(range(COUNT))


def test_a_manifest_that_has_changed_is_read_again(root: Path) -> None:
    old = Dialogues(root)
    with (root / "dialogues.jsonl").open("a") as file:
        file.write("\n" + json.dumps(entry(COUNT)))
    assert [dialogue.id for dialogue in Dialogues(root)][COUNT:] == [f"d{COUNT}"]
    assert same(old), "who has opened the old one goes on with it"


def test_a_damaged_index_is_built_again(root: Path) -> None:
    Dialogues(root)
    good = (root / FILE).read_bytes()
    for place in [*range(0, len(good), len(good) // 80), len(good) - 1]:
        bad = bytearray(good)
        bad[place] ^= 0x55
        (root / FILE).write_bytes(bad)
        assert same(Dialogues(root)), f"byte {place} of {len(good)}"
    for size in (0, 1, len(good) // 2, len(good) - 1):
        (root / FILE).write_bytes(good[:size])
        assert same(Dialogues(root))
    assert (root / FILE).read_bytes() == good


def test_where_the_folder_cannot_be_written_the_index_lies_elsewhere(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    cache, atomic_file = tmp_path_factory.mktemp("cache"), indexing.atomic_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    refused = {root}

    @contextmanager
    def read_only(path: Path) -> Any:
        if any(path.is_relative_to(folder) for folder in refused):
            raise PermissionError(13, "read only", str(path))
        with atomic_file(path) as partial:
            yield partial

    monkeypatch.setattr(indexing, "atomic_path", read_only)
    assert same(Dialogues(root))
    assert not (root / FILE).exists()
    assert len(list(cache.glob(f"vidchat/*{FILE}"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(dialogues_module, "_build", never)
        assert same(Dialogues(root))
    assert not caplog.records
    refused.add(cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "other"))
    found = Dialogues(root)
    assert same(found)
    assert same(pickle.loads(pickle.dumps(found)))
    assert "in memory" in caplog.text


def test_processes_open_it_together_and_one_that_is_killed_leaves_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = multiprocessing.get_context("fork")
    with monkeypatch.context() as patch:
        patch.setattr(indexing.IndexWriter, "finish", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        killed = fork.Process(target=Dialogues, args=(root,))
        killed.start()
        killed.join()
    assert len(list(root.glob(f".{FILE}.*"))) == 1
    many = [fork.Process(target=lambda: os._exit(0 if same(Dialogues(root)) else 1)) for _ in range(4)]
    for process in many:
        process.start()
    for process in many:
        process.join()
    assert [process.exitcode for process in many] == [0] * 4
    assert not list(root.glob(f".{FILE}.*"))


def test_an_id_is_used_once_among_many() -> None:
    ids = _Ids(most=3)
    assert [ids.add(f"d{k % 20}") for k in range(60)] == [True] * 20 + [False] * 40


def shard(folder: Path, name: str, generation: int, segments: list[Any], bad: list[Any]) -> Path:
    path = folder / f"shard-{name}.json"
    entries = [{"key": key, "stamp": stamp, "samples": samples} for key, stamp, samples in segments]
    bad_entries = [{"key": key, "stamp": stamp, "why": why} for key, stamp, why in bad]
    path.write_text(json.dumps({"generation": generation, "pieces": entries, "bad": bad_entries}))
    return path


@pytest.mark.parametrize("keep", [False, True])
def test_of_two_entries_the_later_generation_counts_whatever_the_shards_are_called(tmp_path: Path, keep: bool) -> None:
    folder = tmp_path / "tokens" / "latents-0"
    folder.mkdir(parents=True)
    a, b, c, d = (f"clip-{k:016x}" for k in (2**64 - 1, 7, 0, 8))
    spans = [[512, 90, "f" * 16, [3, 2]], [1024, 80, "0" * 16, [2, 2]]]
    shard(folder, "0", 1, [(a, [5, 2**63 + 1], spans[1:])], [(b, [1, 1], "no frame")])
    shard(folder, "1", 0, [(b, None, spans), (a, [4, 4], spans[:1])], [(a, [3, 3], "cut off"), (d, None, "x")])
    index = pickle.loads(pickle.dumps(TrackIndex(folder, keep)))
    found = index.entry(a)
    assert found is not None
    assert (found.shard, found.stamp, found.spans[0].shape) == (0, (5, 2**63 + 1), (2, 2))
    assert index.entry(key_of(number_of(a))) == found, "the hash alone names a segment"
    kept = index.entry(b)
    assert kept is not None
    assert kept.stamp is None
    assert [tuple(span.member) for span in kept.spans] == [(512, 90, "f" * 16), (1024, 80, "0" * 16)]
    assert index.entry(c) is index.entry(d) is None
    assert index.bad(a) is None, "it was encoded later"
    assert index.bad(b) == ((1, 1), "no frame", 0)
    assert index.bad(d) == (None, "x", 1)
    numbers = np.array([found.first, kept.first, kept.first + 1])
    assert index.shards_of(numbers).tolist() == [0, 1, 1]
    assert index.shapes(numbers).tolist() == [[2, 2], [3, 2], [2, 2]]
    asked = [
        (a, 5, 2**63 + 1),
        (a, ABSENT, 0),
        (a, 6, 2**63 + 1),
        (a, 5, 2**63 + 2),
        (b, ABSENT, 0),
        (c, 5, 0),
        (d, 5, 0),
    ]
    keys, sizes, times = zip(*asked, strict=True)
    segments = np.array([number_of(key) for key in keys], np.uint64)
    rows = index.rows(segments)
    good = index.good(rows, (np.array(sizes, np.int64), np.array(times, np.uint64)))
    assert good.tolist() == [True, True, False, False, False, False, False], "b is there, but known to be bad"
    assert index.good(rows).tolist() == [True] * 4 + [False] * 3
    assert (rows < 0).tolist() == [False] * 5 + [True] * 2
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["tokens-latents-0.index.arrow"] * keep

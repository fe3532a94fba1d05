"""What holds millions of things in columns gives back each as it was."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidchat.data.dialogue_table import BLOCK, DialogueTable
from vidchat.data.folder import make_dialogue
from vidchat.data.loading.items import Item, Items, TurnKey
from vidchat.data.tokens.track_index import TrackIndex, key_of, number_of
from vidchat.dialogue import Dialogue

COUNT = 2 * BLOCK + 5


def entry(k: int) -> dict[str, Any]:
    turns = [{"role": "responder", "speaker": f"s{k % 3}", "clip": f"{k}.mp4", "text": f"wörter\n\0 {k} \ud800"}]
    if k % 2:
        turns.insert(0, {"role": "initiator", "speaker": "q", "clip": f"q{k}.mp4"})
    return {
        "id": f"d{k}",
        "tier": ("sft", "pretrain")[k % 5 == 0],
        "split": ("train", "val")[k % 7 == 0],
        "turns": turns,
    }


def make(text: str) -> Dialogue:
    return make_dialogue(Path("root"), json.loads(text), media=False)


@pytest.fixture(scope="module")
def table() -> DialogueTable:
    table = DialogueTable(make)
    for k in range(COUNT):
        table.add(json.dumps(entry(k)), make(json.dumps(entry(k))))
    return table


def test_a_table_gives_back_each_dialogue(table: DialogueTable) -> None:
    whole = [make(json.dumps(entry(k))) for k in range(COUNT)]
    assert list(table) == whole
    backwards = list(reversed(range(COUNT)))
    assert [table[k] for k in backwards] == [whole[k] for k in backwards]
    assert table[3:5] == whole[3:5]
    assert pickle.loads(pickle.dumps(table))[BLOCK] == whole[BLOCK]
    with pytest.raises(IndexError):
        table[COUNT]


def test_a_table_knows_which_are_of_a_kind(table: DialogueTable) -> None:
    expected = [k for k in range(COUNT) if k % 7 and k % 5 and k % 2]
    assert table.rows("train", "dialogue", "sft", question=True).tolist() == expected
    assert table.rows("train", "single").tolist() == []
    assert table.rows().tolist() == list(range(COUNT))


def shard(folder: Path, name: str, generation: int, pieces: list[Any], bad: list[Any]) -> Path:
    path = folder / f"shard-{name}.json"
    told = [{"key": key, "stamp": stamp, "samples": samples} for key, stamp, samples in pieces]
    told_bad = [{"key": key, "stamp": stamp, "why": why} for key, stamp, why in bad]
    path.write_text(json.dumps({"generation": generation, "pieces": told, "bad": told_bad}))
    return path


def test_of_two_entries_the_later_made_counts_whatever_the_shards_are_called(tmp_path: Path) -> None:
    a, b, c, d = (f"clip-{k:016x}" for k in (2**64 - 1, 7, 0, 8))
    spans = [[512, 90, "f" * 16, [3, 2]], [1024, 80, "0" * 16, [2, 2]]]
    late = shard(tmp_path, "0", 1, [(a, [5, 2**63 + 1], spans[1:])], [(b, [1, 1], "no picture")])
    early = shard(
        tmp_path, "1", 0, [(b, None, spans), (a, [4, 4], spans[:1])], [(a, [3, 3], "cut off"), (d, None, "x")]
    )
    index = pickle.loads(pickle.dumps(TrackIndex([late, early])))
    found = index.entry(a)
    assert found is not None
    assert (found.shard, found.stamp, found.samples[0].shape) == (0, (5, 2**63 + 1), (2, 2))
    assert index.entry(key_of(number_of(a))) == found, "the hash alone names a piece"
    kept = index.entry(b)
    assert kept is not None
    assert kept.stamp is None
    assert [tuple(sample.member) for sample in kept.samples] == [(512, 90, "f" * 16), (1024, 80, "0" * 16)]
    assert index.entry(c) is index.entry(d) is None
    assert index.bad(a) is None, "it was encoded later"
    assert index.bad(b) == ((1, 1), "no picture", 0)
    assert index.bad(d) == (None, "x", 1)
    numbers = np.array([found.number, kept.number, kept.number + 1])
    assert index.shards_of(numbers).tolist() == [0, 1, 1]


def test_items_give_back_each_item_and_who_answers(table: DialogueTable) -> None:
    items = Items([table, table], ["dover"], people=True)
    added = []
    for source, row, span in [(0, 1, 0), (1, 2, 1), (0, 4, 0), (0, 4, 1), (0, 7, 0), (0, 4, 0)]:
        turns = tuple(TurnKey("last", f"{2**63 + k:016x}", "initiator") for k in range(row % 3))
        question = f"{row:016x}" if row % 2 else None
        added.append(Item(table, row, source, f"{row + 5:016x}", span, turns, question, (row, 2 * row), (row, 6)))
        items.add(added[-1], table[row])
    items.finish()
    assert list(items) == added
    assert items.lengths.tolist() == [[row, 2 * row] for row in (1, 2, 4, 4, 7, 4)]
    assert items.shapes.tolist() == [0, 1, 2, 2, 3, 2]
    assert np.isnan(items.scores([0, 3])).all()
    voices = items.voices()
    # 1, 4 and 7 are one speaker's in the first source; 2 is another's, in a source of its own.
    ours = {(f"{row + 5:016x}", span) for row, span in ((1, 0), (4, 0), (4, 1), (7, 0))}
    assert set(voices.of(0)) == set(voices.of(5)) == ours
    assert len(voices.of(0)) == 4
    assert voices.of(1) == [(f"{7:016x}", 1)]

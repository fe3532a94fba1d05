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
from vidchat.data.loading.items import PARTS, ROLE_NAMES, Answers, Item, Items, TurnKey
from vidchat.data.tokens.track_index import ABSENT, TrackIndex, key_of, number_of
from vidchat.dialogue import Dialogue

COUNT = 2 * BLOCK + 5


def entry(k: int) -> dict[str, Any]:
    turns: list[dict[str, Any]] = [
        {"role": "responder", "speaker": f"s{k % 3}", "clip": f"{k}.mp4", "text": f"wörter\n\0 {k}"}
    ]
    turns[0]["truth"] = {"half of a character": "\ud800"}
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
    pieces = np.array([number_of(key) for key in keys], np.uint64)
    good = index.good(pieces, np.array(sizes, np.int64), np.array(times, np.uint64))
    assert good.tolist() == [True, True, False, False, False, False, False], "b is there, but known to be bad"
    assert (index.rows(pieces) < 0).tolist() == [False] * 5 + [True] * 2


def test_items_give_back_each_item_and_who_answers(table: DialogueTable) -> None:
    items = Items([table, table], ["dover"])
    added: list[Item] = []
    for source, rows, spans in ((0, [1], [0]), (1, [2], [1]), (0, [], []), (0, [4, 4, 7, 4], [0, 1, 0, 0])):
        row = np.array(rows, np.int64)
        turns = [[2**63 + k for k in range(row % 3)] for row in rows]
        for one, span, keys in zip(rows, spans, turns, strict=True):
            told = tuple(TurnKey("last", f"{key:016x}", "initiator") for key in keys)
            question = f"{one:016x}" if source == 0 else None
            added.append(Item(table, one, source, f"{one + 5:016x}", span, told, question, (one, 2 * one), (one, 6)))
        items.extend(
            Answers(
                source,
                row,
                answer=row.astype(np.uint64) + np.uint64(5),
                span=np.array(spans, np.int64),
                question=row.astype(np.uint64) if source == 0 else None,
                lengths=np.stack([row, 2 * row], axis=1),
                grid=np.stack([row, np.full_like(row, 6)], axis=1),
                person=np.full(len(rows), source),
                scores=row[:, None] / 8,
                turns=row % 3,
                turn_key=np.array([key for some in turns for key in some], np.uint64),
                turn_part=np.full(sum(map(len, turns)), PARTS.index("last")),
                turn_role=np.full(sum(map(len, turns)), ROLE_NAMES.index("initiator")),
            )
        )
    assert list(items) == added
    assert items.lengths.tolist() == [[row, 2 * row] for row in (1, 2, 4, 4, 7, 4)]
    assert items.shapes.tolist() == [0, 1, 2, 2, 3, 2]
    assert items.scores([0, 3]).tolist() == [[1 / 8], [4 / 8]]
    voices = items.voices()
    # 1, 4 and 7 are one speaker's in the first source; 2 is another's, in a source of its own.
    ours = {(f"{row + 5:016x}", span) for row, span in ((1, 0), (4, 0), (4, 1), (7, 0))}
    assert set(voices.of(0)) == set(voices.of(5)) == ours
    assert len(voices.of(0)) == 4
    assert voices.of(1) == [(f"{7:016x}", 1)]

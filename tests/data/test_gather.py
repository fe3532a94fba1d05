"""The samples gathered by column are those found by reading one dialogue after the other."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from folders import Codec, Vae, selection, write_manifest
from test_mixing import Thinker

from vidchat.data.loading import gather as gathering
from vidchat.data.loading.dialogues import Dialogues
from vidchat.data.loading.gather import SourceRows, gather
from vidchat.data.loading.sample_index import SampleIndex
from vidchat.data.loading.segment_table import SegmentTable
from vidchat.data.loading.selection import Selection, question_of
from vidchat.data.report import Report
from vidchat.data.tokens.encoder import ClipEncoder, Segment, Track
from vidchat.data.tokens.provenance import CacheError
from vidchat.data.tokens.shards import dumps
from vidchat.data.tokens.token_cache import TokenCache, part_of
from vidchat.dialogue import Dialogue

COUNT, CLIPS = 200, 300
CONDITIONS = [
    selection(text="answer", initiator=True, scores=("dover", "motion"), max_chunks=6),
    selection(text="answer", initiator=True, voice=True, max_chunks=9, max_turn_chunks=4),
    selection(features=2, initiator=True, max_chunks=9),
    selection(features=2, voice=True, scores=("dover",), max_chunks=9),
    selection(max_chunks=9),
]


def dialogues(rng: random.Random) -> list[dict[str, Any]]:
    lines = []
    for k in range(COUNT):
        branch = rng.choice(["single", "dialogue", "listening", "multi_turn"])
        roles = ["responder"]
        if branch != "single":
            roles = [
                "initiator",
                *(rng.choice(["initiator", "responder"]) for _ in range(rng.randrange(3))),
                "responder",
            ]
        turns = []
        for role in roles:
            clip = rng.randrange(CLIPS)
            span = {"start": 1.5, "end": 4.25} if clip % 5 == 0 else {}
            scores = {"dover": clip / 8} | ({"motion": 2.0} if clip % 3 else {})
            turn = {"role": role, "speaker": f"s{rng.randrange(9)}", "clip": f"{clip % 4}/{clip}.mp4", "scores": scores}
            turns.append(turn | span)
        lines.append({"id": f"d{k}", "branch": branch, "tier": rng.choice(["sft", "pretrain"]), "turns": turns})
    return lines


def source(root: Path, conditions: Selection, lacking: int = 0) -> SourceRows:
    """A data set of which some clips are there, some are gone and some are bad, and whose tokens are of two shapes."""
    rng = random.Random(0)
    write_manifest(root, dialogues(rng))
    for clip in range(0, CLIPS, 2):
        if clip % 4 != 0:  # that folder is not there at all
            (root / f"{clip % 4}").mkdir(exist_ok=True)
            (root / f"{clip % 4}" / f"{clip}.mp4").write_bytes(b"x" * clip)
    thinker = Thinker() if conditions.features else None
    cache = TokenCache(root, ClipEncoder(Vae(), Codec(), 25, (16, 16), thinker=thinker), 9)
    table = Dialogues(root)
    rows = np.array([k for k in range(COUNT) if k % 7])
    every: dict[str, Segment] = {}
    for row in rows.tolist():
        for segment in conditions.segments(table[row]):
            if segment.features or cache.key(segment) not in every:
                every[cache.key(segment)] = segment
    encode(cache, list(every.items())[lacking:], rng)
    return SourceRows(rows, SegmentTable(cache, conditions, table))


def encode(cache: TokenCache, segments: list[tuple[str, Segment]], rng: random.Random) -> None:
    """Writes the indexes of shards that hold segments."""
    entries: dict[Track, list[Any]] = {track: [] for track in cache.tracks}
    bad = []
    for key, segment in segments:
        clip = int(segment.clip.path.stem)
        stamp = cache.stamp(segment.clip) or (7, 8)
        if clip % 25 == 0:
            bad.append({"key": key, "stamp": cache.stamp(segment.clip), "why": f"clip {clip} is bad"})
            continue
        grid = {0: (8, 4), 1: (8, 8)}.get(clip % 7, (4, 8))
        shapes = [
            [rng.randrange(2, 11), 3, *grid] for _ in range(rng.randrange(1, 4) if segment.part == "spans" else 1)
        ]
        samples = [[512 * n, 100, f"{rng.getrandbits(64):016x}", shape] for n, shape in enumerate(shapes)]
        for track in cache.tracks_of(segment):
            entries[track].append({"key": key, "stamp": stamp, "samples": samples})
    for name, some in entries.items():
        cache.tracks[name].claim()
        for n in range(0, len(some), 16):
            whole = {"generation": 0, "pieces": some[n : n + 16], "bad": bad if n == 0 and name == "codes" else []}
            (cache.tracks[name].folder / f"shard-{n:05d}.json").write_text(dumps(whole))
        cache.tracks[name].forget()


def one_by_one(sources: list[SourceRows], conditions: Selection) -> tuple[list[Expected], list[tuple[str, str]]]:
    samples, left_out = [], []
    for number, some in enumerate(sources):
        for row in some.rows.tolist():
            dialogue, cache = some.table.dialogues[row], some.table.cache
            states = [cache.lookup(segment) for segment in conditions.segments(dialogue)]
            assert not any(state.missing for state in states) or any(state.bad for state in states)
            why = next((state.bad for state in states if state.bad is not None), None)
            found = [] if why is not None else samples_of(dialogue, cache, conditions)
            samples += [Expected(number, row, *sample) for sample in found]
            if not found:
                left_out.append((f"dialogue {dialogue.id}", why or gathering.SHAPES))
    return samples, left_out


class Expected(NamedTuple):
    """A sample: its turns as positions and keys, the span of the first, said and heard chunks, and the grid."""

    source: int
    row: int
    turns: list[tuple[int, str]]
    span: int
    lengths: tuple[int, int]
    grid: tuple[int, ...]


def samples_of(dialogue: Dialogue, cache: TokenCache, conditions: Selection) -> list[Any]:
    turns = []
    for position, turn in enumerate(dialogue.turns):
        segment = Segment(turn.clip, part_of(dialogue, turn), 0)
        turns.append((position, turn.role, cache.key(segment)[-16:]))
    if conditions.hears and dialogue.branch != "single":
        shapes = {position: cache.shapes(key)[0] for position, _, key in turns}
        if len({shape[2:] for shape in shapes.values()}) > 1:
            return []
        said = sum(min(shapes[p][0], conditions.max_chunks + 1) for p, role, _ in turns if role == "responder")
        limit = conditions.max_turn_chunks or conditions.max_chunks
        heard = sum(min(shapes[p][0] - 1, limit) for p, role, _ in turns if role == "initiator")
        return [([(p, key) for p, _, key in turns], 0, (said, heard), shapes[0][2:])]
    return [
        ([(position, key)], span, (min(shape[0], conditions.max_chunks + 1), 0), shape[2:])
        for position, role, key in turns
        if role == "responder"
        for span, shape in enumerate(cache.shapes(key))
    ]


def check(sources: list[SourceRows], conditions: Selection) -> SampleIndex:
    report = Report("samples")
    found = gather(sources, report)
    expected, left_out = one_by_one(sources, conditions)
    assert len(expected) > 30
    for number, (sample, other) in enumerate(zip(found, expected, strict=True)):
        dialogue = sample.dialogue
        if dialogue.branch != "listening":  # there, turns after the end of the last said are left out
            assert [(turn.position, turn.key) for turn in sample.turns] == other.turns
        where = sample.source, sample.row, sample.answer.span, sample.grid
        assert where == (other.source, other.row, other.span, other.grid)
        assert tuple(found.lengths[number]) == other.lengths
        said = sum(place.chunk > 0 for place in sample.layout.said)
        assert said == other.lengths[0] - sum(turn.role == "responder" for turn in sample.turns)
        asked = question_of(dialogue, sample.answer.position)
        assert sample.asked == asked
        answer = dialogue.turns[sample.answer.position].clip
        scores = [answer.scores.get(name, np.nan) for name in conditions.scores]
        np.testing.assert_array_equal(found.scores([number], conditions.scores)[0], scores)
    assert (report.read, report.skipped) == (len(expected), left_out)
    assert any("is bad" in why for _, why in left_out)
    if conditions.voice:
        people = [(sample.source, sample.dialogue.answer.speaker) for sample in found]
        keys = [(sample.answer.key, sample.answer.span) for sample in found]
        voices = found.voices()
        for number, person in enumerate(people):
            assert set(voices.of(number)) == {key for key, other in zip(keys, people, strict=True) if other == person}
    return found


@pytest.mark.parametrize("conditions", CONDITIONS)
@pytest.mark.parametrize("block", [7, 65536])
def test_columns_give_the_same_samples_as_reading_one_dialogue_after_the_other(
    conditions: Selection, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "BLOCK", block)
    one = source(tmp_path, conditions)
    sft = SourceRows(np.intersect1d(one.rows, one.table.dialogues.rows(tier="sft")), one.table)
    found = check([one, sft], conditions)
    assert len(found.grids) > 1
    if conditions.hears:
        assert any(why == gathering.SHAPES for _, why in one_by_one([one], conditions)[1])


def test_a_segment_that_was_never_encoded_is_an_error_and_bad_ones_give_no_sample(tmp_path: Path) -> None:
    conditions = CONDITIONS[0]
    one = source(tmp_path, conditions, lacking=3)
    assert (~one.table.encoded(one.rows)).sum() > 0
    with pytest.raises(CacheError, match=r"dialogue d\d+ of .* is not encoded"):
        gather([one], Report("answers"))
    cache, table = one.table.cache, one.table.dialogues
    bad = [row for row in one.rows.tolist() if any(cache.lookup(p).bad for p in conditions.segments(table[row]))]
    assert len(gather([SourceRows(np.array(bad), one.table)], Report(""))) == 0


def test_a_clip_that_has_changed_is_not_encoded_any_more(tmp_path: Path) -> None:
    conditions = CONDITIONS[0]
    one = source(tmp_path, conditions)
    cache, table, before = one.table.cache, one.table.dialogues, one.table.encoded(one.rows)
    for path in [path for path in tmp_path.glob("*/*.mp4") if int(path.stem) % 25][::2]:
        path.write_bytes(b"another film")
    expected = [not any(cache.lookup(p).missing for p in conditions.segments(table[row])) for row in one.rows.tolist()]
    after = one.table.encoded(one.rows)
    assert 0 < after.sum() < before.sum()
    assert after.tolist() == (before & expected).tolist()
    every = {cache.key(segment): segment for row in one.rows for segment in conditions.segments(table[row])}
    encode(cache, list(every.items()), random.Random(0))
    assert one.table.encoded(one.rows).tolist() == before.tolist()
    check([one], conditions)


def test_segments_are_counted_once(tmp_path: Path) -> None:
    one = source(tmp_path, CONDITIONS[4])
    cache, table = one.table.cache, one.table.dialogues
    keys = {cache.key(segment) for row in one.rows for segment in CONDITIONS[4].segments(table[row])}
    assert one.table.count(one.rows) == len(keys)

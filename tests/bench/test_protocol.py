"""Protocol strings cover every byte, span, word and length that a number depends on."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace

import pytest
from PIL import Image

from tests.bench.conftest import talking_clip
from tests.bench.test_scoring import number, run
from vidchat.bench.clips import View, read_truth
from vidchat.bench.pairs import (
    CANDIDATES,
    PAIRS,
    PairsError,
    candidates_hash,
    header,
    pairs_hash,
    read_benchmark,
    read_pairs,
    write_lines,
)
from vidchat.bench.protocol import file_hash
from vidchat.bench.systems import SHUFFLED, built_in, shuffled
from vidchat.bench.truth_sizes import only_size
from vidchat.data.media.read import write_clip
from vidchat.dialogue import Clip


@pytest.fixture
def copied(bench, tmp_path):
    return shutil.copytree(bench, tmp_path / "copied")


def read_lines(folder):
    return [json.loads(line) for line in (folder / PAIRS).read_text().splitlines()]


def change(folder, key, name, value):
    lines = read_lines(folder)
    (lines[1] if key is None else lines[1][key])[name] = value
    write_lines(folder / PAIRS, lines)


CHANGES = {
    "initiator's clip": lambda f: write_clip(f / "ask1.mp4", *talking_clip(77, 12), 25, 16000),
    "truth's clip": lambda f: write_clip(f / "truth1.mp4", *talking_clip(77), 25, 16000),
    "reference": lambda f: Image.new("RGB", (48, 48), "red").save(f / "face1.png"),
    "truth's start": lambda f: change(f, "truth", "start", 0.04),
    "truth's end": lambda f: change(f, "truth", "end", 1.0),
    "initiator's span": lambda f: change(f, "initiator", "start", 0.1),
    "question": lambda f: change(f, "initiator", "text", "what?"),
    "answer": lambda f: change(f, "truth", "text", "no"),
    "speaker": lambda f: change(f, "truth", "speaker", "person 0"),
    "length": lambda f: write_lines(f / PAIRS, [header(1.2, (48, 48)), *read_lines(f)]),
    "order": lambda f: write_lines(f / PAIRS, read_lines(f)[::-1]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_pairs_hash_covers_what_a_number_depends_on(copied, bench, what):
    assert pairs_hash(read_pairs(copied)) == pairs_hash(read_pairs(bench)), "wherever the files lie"
    CHANGES[what](copied)
    assert pairs_hash(read_pairs(copied)) != pairs_hash(read_pairs(bench))


def test_the_candidates_hash_covers_words_scores_and_recordings(copied):
    (copied / "said.wav").write_bytes(b"yes")
    lines = [json.loads(line) for line in (copied / CANDIDATES).read_text().splitlines()]
    lines[0]["candidates"][0]["sounds"] = ["said.wav"]
    write_lines(copied / CANDIDATES, lines)
    before = candidates_hash(read_pairs(copied))
    (copied / "said.wav").write_bytes(b"no!")
    assert candidates_hash(read_pairs(copied)) != before


def test_a_file_that_changes_within_a_run_is_hashed_again(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"one")
    before = file_hash(file)
    stat = file.stat()
    time.sleep(0.05)  # more than a tick of the file system's clock
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_hash(file) != before


def test_the_first_line_states_length_size_and_rules(copied):
    write_lines(copied / PAIRS, [header(1.2, (32, 48)), *read_lines(copied)])
    benchmark = read_benchmark(copied)
    assert (len(benchmark.pairs), benchmark.answer_seconds, benchmark.size) == (4, 1.2, (32, 48))
    assert {pair.answer_seconds for pair in benchmark.pairs} == {1.2}
    stated = read_lines(copied)[0]["benchmark"]
    assert stated["width"] == 48
    assert "nothing else of the true answer" in stated["given"]
    assert "coverage" in stated["counted"]


def test_without_a_first_line_answers_are_as_long_as_the_longest_truth(copied):
    write_clip(copied / "truth2.mp4", *talking_clip(2, 50), 25, 16000)
    benchmark = read_benchmark(copied)
    assert {pair.answer_seconds for pair in benchmark.pairs} == {2.0}, "the same for every pair, so none is given away"
    (copied / "truth2.mp4").write_bytes(b"broken")
    assert read_benchmark(copied).answer_seconds == 1.6


@pytest.mark.parametrize(
    "stated",
    [
        {"answer_seconds": -1}, {"answer_seconds": "4"}, {"answer_seconds": float("inf")}, {"answer_seconds": True},
        {"width": 48}, {"height": 0.5, "width": 1}, [],
    ],
)  # fmt: skip
def test_a_first_line_that_makes_no_sense_is_refused(copied, stated):
    write_lines(copied / PAIRS, [{"benchmark": stated}, *read_lines(copied)])
    with pytest.raises(PairsError, match="line 1"):
        read_pairs(copied)


HUGE = '{"id": "a", "initiator": {"clip": "a", "speaker": "b", "start": 1' + "0" * 400 + "}}"


@pytest.mark.parametrize(
    "line",
    [HUGE, HUGE.replace("0" * 400, "e999"), "[" * 100_000, '{"id": "a"', '{"id": 3}', "null", '"' + "x" * 9],
)
def test_a_hostile_line_is_named(copied, line):
    (copied / PAIRS).write_text(line + "\n")
    with pytest.raises(PairsError, match="line 1"):
        read_pairs(copied)


def test_byte_order_marks_and_unknown_speakers_are_accepted(copied):
    lines = read_lines(copied)
    for line in lines[:2]:
        line["truth"]["speaker"] = None
    text = "\n".join(map(json.dumps, lines))
    (copied / PAIRS).write_bytes(b"\xef\xbb\xbf" + text.encode())
    pairs = read_pairs(copied)
    assert [pair.id for pair in pairs] == ["p0", "p1", "p2", "p3"]
    assert len({pair.truth.speaker for pair in pairs}) == 4, "every unknown speaker is a person of their own"


def test_truths_of_several_sizes_need_a_stated_one(copied):
    assert only_size(read_pairs(copied)) == (48, 48)
    write_clip(copied / "truth1.mp4", *talking_clip(1, side=96), 25, 16000)
    with pytest.raises(PairsError, match="48x48: 3, such as p0; 96x96: 1, such as p1"):
        only_size(read_pairs(copied))


@pytest.mark.parametrize("speakers", ["abcd", "aabb", "aaab", "aaaa", "abab", "abacadae", "a"])
def test_the_shuffled_truth_is_every_answer_once(pairs, speakers):
    clip = pairs[0].truth
    asked = [
        replace(pairs[0], id=str(number), truth=Clip(clip.path, speaker, start=number / 100))
        for number, speaker in enumerate(speakers)
    ]
    others = shuffled(asked)
    assert sorted(other.id for other in others) == sorted(pair.id for pair in asked)
    same = sum(pair.truth.speaker == other.truth.speaker for pair, other in zip(asked, others, strict=True))
    most = max(map(speakers.count, speakers))
    assert same == max(0, 2 * most - len(speakers)), "by another speaker wherever that is possible"


def test_the_shuffled_truth_is_neither_cut_nor_filled_up_in_sets(copied):
    write_clip(copied / "truth1.mp4", *talking_clip(1, 20), 25, 16000)
    pairs, view = read_pairs(copied), View((48, 48))
    (system,) = [system for system in built_in(pairs) if system.name == SHUFFLED]
    scored = [system.read(pair, system.source(pair), read_truth(pair, view), view) for pair in pairs]
    assert [len(one.media.frames) for one in scored] == [20, 20, 40, 40], "beside the truth, as any answer"
    assert [len(one.media_for_sets.frames) for one in scored] == [20, 40, 40, 40], "as a set, the truths"
    assert number(run(pairs, [], copied), SHUFFLED, "proxy-FID").value == pytest.approx(0, abs=1e-9)

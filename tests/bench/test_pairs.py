from __future__ import annotations

import json

import pytest

from tests.bench.conftest import talking_clip
from vidchat.bench.make import MakeError, make_from_folder, write_bench
from vidchat.bench.pairs import PAIRS, PairsError, read_benchmark, read_pairs
from vidchat.bench.testset import read_testset
from vidchat.bench.truth_sizes import commonest_size
from vidchat.data.media.read import read_clip, read_image, write_clip
from vidchat.dialogue import Clip


@pytest.fixture
def data(tmp_path):
    """A folder with a test dialogue, one with a speaker of the train split, one without a question, one broken."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a", "b"):
        write_clip(folder / f"{name}.mp4", *talking_clip(ord(name), 20), 25, 16000)
    (folder / "broken.mp4").write_bytes(b"broken")

    def dialogue(name, split, speakers, clips=("a.mp4", "b.mp4")):
        roles = ("initiator", "responder")[-len(clips) :]
        turns = [
            {"role": role, "speaker": speaker, "clip": clip, "text": f"{role} of {name}"}
            for role, speaker, clip in zip(roles, speakers, clips, strict=True)
        ]
        return {"id": name, "split": split, "turns": turns, "branch": "dialogue" if len(clips) > 1 else "single"}

    lines = [
        dialogue("t", "train", ("ann", "bob")),
        dialogue("good", "test", ("cat", "dan")),
        dialogue("seen", "test", ("cat", "bob")),
        dialogue("alone", "test", ("dan",), ("b.mp4",)),
        dialogue("broken", "test", ("cat", "eve"), ("a.mp4", "broken.mp4")),
    ]
    (folder / "dialogues.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_pairs_are_of_unseen_speakers_and_the_others_are_reported(data, tmp_path):
    report = make_from_folder(data, tmp_path / "bench")
    assert report.read == 1
    skipped = dict(report.skipped)
    assert "another split" in skipped["seen"]
    assert "no turn of an initiator" in skipped["alone"]
    assert "cannot be decoded" in skipped["broken"]
    (pair,) = read_pairs(tmp_path / "bench")
    assert (pair.id, pair.truth.text, pair.truth.speaker) == ("good", "responder of good", "dan")
    with pytest.raises(MakeError, match="already"):
        make_from_folder(data, tmp_path / "bench")
    with pytest.raises(MakeError, match=r"no dialogue has the split 'val' \(there are: 1 train, 4 test\)"):
        make_from_folder(data, tmp_path / "none", split="val")
    with pytest.raises(MakeError, match="no pair could be made; of 1 that were left out, the first: t: speaker bob"):
        make_from_folder(data, tmp_path / "none", split="train")


def test_the_reference_is_the_frame_before_the_truth(data, tmp_path):
    make_from_folder(data, tmp_path / "bench")
    (pair,) = read_pairs(tmp_path / "bench")
    options = {"fps": 25, "size": (48, 48), "sample_rate": 16000}
    whole = read_clip(pair.truth.__class__(data / "b.mp4", ""), **options)
    truth = read_clip(pair.truth, **options)
    assert (read_image(pair.reference, (48, 48)) == whole.frames[0]).all()
    assert (truth.frames == whole.frames[1:]).all()


def test_a_manifest_can_name_only_its_own_files(bench, tmp_path):
    line = json.loads((bench / PAIRS).read_text().split("\n")[0])
    for change in ({"id": "../x"}, {"reference": "../face0.png"}, {"reference": "/etc/passwd"}, {"id": None}):
        (tmp_path / PAIRS).write_text(json.dumps({**line, **change}))
        with pytest.raises(PairsError, match="line 1"):
            read_pairs(tmp_path)
    with pytest.raises(PairsError, match="bench make"):
        read_pairs(tmp_path / "nowhere")


CLIP = "BK6_XIz6-ZE_1920x1080_full_video_{}_{}_00"
ONE, TWO, ABSENT_FACTOR, SILENT = (
    CLIP.format(*where) for where in (("003", "A"), ("004", "B"), ("009", "A"), ("004", "A_None"))
)


@pytest.mark.parametrize(
    "entries",
    [
        [ONE, TWO, ABSENT_FACTOR, SILENT],
        [f"{TWO}.json", f"{ONE}.json"],
        {"BK6_XIz6-ZE": [f"{ONE}.mp4", f"{TWO}.mp4"], "-aaaaaaaaaa": []},
        [{"filename": ONE, "yt_id": "BK6_XIz6-ZE"}, {"filename": TWO}],
        [{"initiator": ONE, "responder": TWO}],
        [[ONE, TWO]],
    ],
)
def test_every_form_of_a_testset_gives_the_pair(tmp_path, entries):
    for name in (ONE, TWO):
        write_clip(tmp_path / "clips" / f"{name}.mp4", *talking_clip(1, 12), 25, 16000)
    (tmp_path / "testset.json").write_text(json.dumps(entries))
    dialogues, report = read_testset(tmp_path / "testset.json", tmp_path / "clips")
    assert report.read == 1
    (dialogue,) = dialogues
    assert dialogue.question.path.stem == ONE
    assert dialogue.answer.path.stem == dialogue.id == TWO
    assert dialogue.question.speaker != dialogue.answer.speaker
    write_bench(dialogues, tmp_path / "bench", report)
    assert read_pairs(tmp_path / "bench")[0].id == TWO


def test_a_testset_without_clip_names_is_refused_with_an_example(tmp_path):
    for content in (b"[" * 100_000, b"\xff\xfe", b"{"):
        (tmp_path / "testset.json").write_bytes(content)
        with pytest.raises(MakeError, match="cannot be read as JSON"):
            read_testset(tmp_path / "testset.json", tmp_path)
    (tmp_path / "testset.json").write_text('[{"video": 3}]')
    with pytest.raises(MakeError, match="full_video"):
        read_testset(tmp_path / "testset.json", tmp_path)


def test_the_first_line_states_the_length_of_every_answer_and_the_size(data, tmp_path):
    make_from_folder(data, tmp_path / "a")
    made = read_benchmark(tmp_path / "a")
    assert made.answer_seconds == pytest.approx(19 / 25, abs=0.011), "the longest truth, less the reference's frame"
    assert made.size == (48, 48)
    make_from_folder(data, tmp_path / "b", seconds=3.5, size=(32, 64))
    stated = read_benchmark(tmp_path / "b")
    assert (stated.answer_seconds, stated.size) == (3.5, (32, 64))
    assert stated.pairs[0].answer_seconds == 3.5


def test_of_several_sizes_the_commonest_is_stated(data, tmp_path):
    write_clip(tmp_path / "large.mp4", *talking_clip(3, 12, side=96), 25, 16000)
    clips = [Clip(data / "a.mp4", ""), Clip(tmp_path / "large.mp4", ""), Clip(data / "b.mp4", "")]
    assert commonest_size(clips[1:]) == commonest_size(clips[:2]) == commonest_size(clips) == (48, 48)

import json
from collections import Counter

import numpy as np
import pytest

from vidchat.data.folder import read_dialogues
from vidchat.data.media.read import read_clip
from vidchat.playground.people.cast import make_speaker, plan_dialogues
from vidchat.playground.people.pairing import pair_again
from vidchat.playground.people.performance import perform
from vidchat.playground.people.render import RenderSettings, candidate_waveforms, render
from vidchat.playground.people.script import candidate_answers, cases

pytest.importorskip("espeakng_loader", reason="voices need the extra 'demo'")

SETTINGS = RenderSettings(dialogues=4, seed=5, height=32, width=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("dyads")
    render(root, SETTINGS, workers=1)
    return root


def decoded(root):
    clips = [turn.clip for dialogue in read_dialogues(root) for turn in dialogue.turns]
    return [read_clip(clip, fps=25, size=(32, 32), sample_rate=16000) for clip in clips]


def performed(role="responder", seed=0):
    return perform(make_speaker(0, 1), role, "oh yes i love tea", "happy", np.random.default_rng(seed), 25, 16000)


def test_no_speaker_is_in_two_splits_and_the_test_split_has_every_answer():
    plans = plan_dialogues(200, 0)
    speakers = {split: {p.initiator.name for p in plans if p.split == split} for split in ("train", "val", "test")}
    for split, names in speakers.items():
        names |= {p.responder.name for p in plans if p.split == split}
    assert not speakers["train"] & speakers["test"]
    assert not speakers["train"] & speakers["val"]
    assert not speakers["val"] & speakers["test"]
    assert len(speakers["train"]) >= 30
    tested = Counter(plan.case.answer for plan in plans if plan.split == "test")
    assert set(tested.values()) == {2}
    assert len(tested) == len(cases()) == 12
    assert all(plan.initiator != plan.responder for plan in plans)


def test_neither_the_words_nor_the_feeling_alone_tell_the_answer():
    answers = {case: case.answer for case in cases()}
    assert len(set(answers.values())) == len(answers) == len(candidate_answers())
    for question in {case.question(0) for case in cases()}:
        assert len({answers[case] for case in cases() if case.question(0) == question}) == 2


def record(plan):
    """Returns the keys of a manifest line that pairing reads."""
    truth = {"topic": plan.case.topic, "expression": plan.case.expression}
    question = {"role": "initiator", "clip": f"{plan.id}_a", "speaker": plan.initiator.name, "truth": truth}
    answer = {"role": "responder", "clip": f"{plan.id}_b", "speaker": plan.responder.name, "truth": truth}
    return {"id": plan.id, "split": plan.split, "branch": "dialogue", "turns": [question, answer]}


def test_answers_are_paired_with_others_questions_of_the_same_case():
    plans = {plan.id: plan for plan in plan_dialogues(200, 0)}
    records = [record(plan) for plan in plans.values()]
    again = pair_again(records, 4, seed=0)
    assert again == pair_again(records, 4, seed=0) != pair_again(records, 4, seed=1)
    assert len(again) == 3 * sum(plan.split == "train" for plan in plans.values())
    assert len({line["id"] for line in again} | plans.keys()) == len(again) + len(plans)
    for line in again:
        question, answer = (plans[turn["clip"][:-2]] for turn in line["turns"])
        assert question.case == answer.case
        assert question.split == answer.split == line["split"] == "train"
        assert question.initiator != answer.responder
        assert question.id != answer.id


def test_too_few_dialogues_are_refused():
    with pytest.raises(ValueError, match="4 or more"):
        plan_dialogues(3, 0)


def test_a_responder_begins_at_rest():
    first = performed().poses[0]
    assert (first.mouth, first.blink, first.intensity) == (0.0, 0.0, 0.0)
    assert performed("initiator").poses[0].intensity > 0.5
    assert performed().poses[-1].intensity == 1.0


def test_a_turn_has_whole_chunks_and_audio_of_equal_length():
    turn = performed()
    assert len(turn.poses) % 4 == 1
    assert 45 <= len(turn.poses) <= 65
    assert len(turn.waveform) == len(turn.poses) * 640
    assert turn.words[0].start > 0.15
    assert turn.words[-1].end < len(turn.poses) / 25


def test_the_mouth_follows_the_audio():
    turn = performed()
    mouth = np.array([pose.mouth for pose in turn.poses])
    matched = [np.corrcoef(np.roll(mouth, shift), turn.loudness)[0, 1] for shift in (-3, -2, -1, 0, 1, 2, 3)]
    assert matched[3] > 0.9
    assert max(matched) == matched[3]
    assert mouth[turn.loudness < 1e-4].max() < 0.2


def test_the_written_audio_has_the_loudness_of_the_truth(folder):
    """After H.264 and AAC, audio and frames are in step within half a frame; otherwise the correlation falls."""
    for dialogue in read_dialogues(folder):
        media = read_clip(dialogue.answer, fps=25, size=(32, 32), sample_rate=16000)
        loudness = media.waveform.reshape(-1, 640).square().mean(-1).sqrt().numpy()
        assert np.corrcoef(loudness, dialogue.answer.truth["loudness"])[0, 1] > 0.97
        assert len(media.frames) == dialogue.answer.truth["pictures"] == len(dialogue.answer.truth["mouth"])


def test_bit_equal_from_the_seed_on_any_number_of_processes(folder, tmp_path):
    render(tmp_path / "again", SETTINGS, workers=2)
    assert (tmp_path / "again" / "dialogues.jsonl").read_bytes() == (folder / "dialogues.jsonl").read_bytes()
    for first, second in zip(decoded(folder), decoded(tmp_path / "again"), strict=True):
        assert first.frames.equal(second.frames)
        assert first.waveform.equal(second.waveform)


def test_the_seed_matters():
    assert plan_dialogues(8, 0) == plan_dialogues(8, 0)
    assert plan_dialogues(8, 0) != plan_dialogues(8, 1)


def test_an_interrupted_rendering_is_completed(folder, tmp_path):
    render(tmp_path, SETTINGS, workers=1)
    intact, lost = sorted((tmp_path / "clips").iterdir())[:2]
    before = intact.stat().st_mtime_ns
    lost.unlink()
    (tmp_path / "dialogues.jsonl").unlink()
    render(tmp_path, SETTINGS, workers=1)
    assert lost.read_bytes() == (folder / "clips" / lost.name).read_bytes()
    assert intact.stat().st_mtime_ns == before
    assert (tmp_path / "dialogues.jsonl").read_bytes() == (folder / "dialogues.jsonl").read_bytes()


def test_another_data_set_is_not_overwritten(folder, tmp_path):
    with pytest.raises(ValueError, match="choose another --output"):
        render(folder, RenderSettings(dialogues=4, seed=6), workers=1)
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ValueError, match="not empty"):
        render(tmp_path, SETTINGS, workers=1)


def test_the_truth_is_in_the_record(folder):
    record = json.loads((folder / "dialogues.jsonl").read_text().splitlines()[0])
    question, answer = record["turns"]
    for turn in (question, answer):
        assert turn["truth"]["expression"] in ("happy", "sad")
        assert [word for word, _, _ in turn["truth"]["words"]] == turn["text"].split()
        assert turn["truth"]["identity"]["build"] in ("man", "woman", "child")
    assert answer["truth"]["topic"] in question["text"]


def test_the_right_answer_is_the_nearest_candidate(folder):
    for dialogue in read_dialogues(folder):
        media = read_clip(dialogue.answer, fps=25, size=(32, 32), sample_rate=16000)
        audio = media.waveform.numpy()
        candidates = candidate_waveforms(dialogue.answer.truth, len(audio))
        likeness = {text: float(np.corrcoef(audio, waveform)[0, 1]) for text, waveform in candidates.items()}
        best = max(likeness, key=lambda text: likeness[text])
        assert best == dialogue.answer.text
        assert likeness[best] > 0.9

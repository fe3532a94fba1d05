import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from vidchat.data.folder import read_folder
from vidchat.data.media.read import read_clip
from vidchat.playground.people.cast import plan_dialogues
from vidchat.playground.people.cuts import all_cuts, draw_cuts, record
from vidchat.playground.people.encounter import stage
from vidchat.playground.people.exchanges import draw_exchanges, possible_answers
from vidchat.playground.people.pairing import pair_again
from vidchat.playground.people.render_encounters import (
    EncounterSettings,
    plan_encounters,
    render_encounter,
    render_encounters,
)
from vidchat.playground.people.script import TOPICS, cases
from vidchat.playground.people.track import perform_tracks

pytest.importorskip("espeakng_loader", reason="voices need the extra 'demo'")

SETTINGS = EncounterSettings(encounters=4, seed=3, height=32, width=32)


@pytest.fixture(scope="module")
def encounters():
    return [stage(plan, 25, 16000) for plan in plan_dialogues(10, 1)]


@pytest.fixture(scope="module")
def performed(encounters):
    return [(encounter, perform_tracks(encounter, 16000)) for encounter in encounters]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("encounters")
    render_encounters(root, SETTINGS, workers=2)
    return root


def drawn_exchanges():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        yield draw_exchanges(rng, cases()[seed % 12], seed, 4)


def test_the_words_so_far_and_the_feeling_decide_every_answer():
    for exchanges in drawn_exchanges():
        topic = None
        for exchange in exchanges:
            named = [word for word in TOPICS if word in " ".join(exchange.question)]
            topic = named[0] if named else topic
            long = len(exchange.question) > 1
            right = cases().index(replace(exchange.case, topic=topic))
            assert " ".join(exchange.answer) == possible_answers(exchange.kind, long)[right]
            assert len(set(possible_answers(exchange.kind, long))) == 12


def test_no_question_tells_the_feeling_by_its_words():
    asked = {"happy": set(), "sad": set()}
    for exchanges in drawn_exchanges():
        for exchange in exchanges[1:]:
            asked[exchange.case.expression].add(exchange.question[-1])
    assert asked["happy"] == asked["sad"]


def test_an_interrupted_answer_stops_shortly_after_the_next_question_begins(encounters):
    interruptions = [(a, b) for e in encounters for a, b in pairwise(e.turns) if a.interrupted]
    assert len(interruptions) >= 3
    for answer, question in interruptions:
        assert answer.person == 1
        assert question.person == 0
        assert 0.2 < answer.offset - question.onset < 0.45
        assert len(answer.waveform) == round((answer.offset - answer.onset) * 16000)
    for encounter in encounters:
        for answer in encounter.turns[1::2]:
            words = " ".join(encounter.exchanges[answer.exchange].answer)
            assert words.startswith(answer.text)
            assert (words == answer.text) != answer.interrupted


def test_every_cut_can_be_understood_by_itself(encounters):
    for encounter in encounters:
        for branch, cuts in all_cuts(encounter).items():
            for cut in cuts:
                assert all(part.first % 4 == part.last % 4 == 0 for part in cut)
                assert not cut[-1].turn.interrupted
                if branch in ("dialogue", "multi_turn"):
                    question = cut[0].turn
                    assert any(topic in question.text for topic in TOPICS)
                if branch == "listening":
                    spoken = [t for t in encounter.turns if t.person == cut[1].person]
                    assert all(t.offset <= cut[1].first / 25 or t.onset >= cut[1].last / 25 for t in spoken)


def test_in_full_duplex_the_responder_is_there_from_the_first_frame_to_the_last(encounters):
    weights = {"single": 0.0, "dialogue": 0.0, "listening": 0.0, "multi_turn": 1.0}
    cuts = [cut for encounter in encounters for _, cut in draw_cuts(encounter, weights, 3)]
    duplex = [cut for cut in cuts if cut[0].turn is None]
    assert 0 < len(duplex) < len(cuts)
    for initiator, responder in duplex:
        assert (initiator.person, responder.person) == (0, 1)
        assert (responder.first, responder.last) == (initiator.first, initiator.last)


def test_between_two_turns_of_the_responder_the_clock_has_a_step_for_the_still(encounters):
    for encounter in encounters:
        for cut in all_cuts(encounter)["multi_turn"]:
            answers = [part for part in cut if part.role == "responder"]
            assert all(after.first >= before.last + 4 for before, after in pairwise(answers))


def test_some_questions_are_seen_until_their_answer_begins():
    """Else a model that is asked by a clip without a pause after it has never seen an answer begin there."""
    plans = plan_encounters(EncounterSettings(encounters=12, seed=1))
    gaps = []
    for plan in plans[:6]:
        encounter = stage(plan, 25, 16000)
        for branch, cut in draw_cuts(encounter, {"single": 0, "dialogue": 1, "listening": 0, "multi_turn": 1}, 4):
            asked = pairwise(cut) if branch == "dialogue" or len(cut) > 2 else ()
            gaps += [after.first - before.last for before, after in asked if before.role == "initiator"]
    assert min(gaps) == 0
    assert 0.2 < np.mean(np.array(gaps) == 0) < 0.8
    assert max(gaps) <= 16


def test_other_people_ask_what_has_the_same_answers():
    plans = plan_encounters(EncounterSettings(encounters=45, seed=1, splits=("train",)))
    weights = {"single": 1.0, "dialogue": 2.0, "listening": 1.0, "multi_turn": 3.0}
    lines = {}
    for plan in plans:
        encounter = stage(plan, 25, 16000)
        tracks = perform_tracks(encounter, 16000)
        for n, (branch, cut) in enumerate(draw_cuts(encounter, weights, 3)):
            lines[f"{encounter.id}_{n}"] = record(f"{encounter.id}_{n}", branch, cut, encounter, tracks)
    again = pair_again(list(lines.values()), 4, seed=0)
    assert {line["branch"] for line in again} == {"dialogue", "multi_turn"}
    assert len({line["id"] for line in again} | lines.keys()) == len(again) + len(lines)
    assert max(Counter(line["id"][:-2] for line in again).values()) == 3
    for line in again:
        own = lines[line["id"][:-2]]["turns"]
        topic = None
        for before, turn in zip(own, line["turns"], strict=True):
            if turn["role"] == "responder":
                assert {**before, "at": turn["at"]} == turn
                assert topic in (None, turn["truth"]["topic"])
            else:
                assert turn["clip"] != before["clip"]
                assert turn["truth"]["expression"] == before["truth"]["expression"]
                topic = next((word for word in TOPICS if word in turn["text"]), topic)
            assert turn["at"] == pytest.approx(0.16 * round(turn["at"] / 0.16))
        assert pauses(line["turns"]) == pytest.approx(pauses(own))


def pauses(turns):
    return [after["at"] - (before["at"] + before["end"] - before["start"]) for before, after in pairwise(turns)]


def test_only_the_wanted_splits_are_rendered(tmp_path):
    settings = EncounterSettings(encounters=8, seed=3, height=16, width=16, splits=("val",))
    render_encounters(tmp_path, settings, workers=1)
    everything = plan_encounters(replace(settings, splits=("train", "val", "test")))
    assert [plan for plan in everything if plan.split == "val"] == plan_encounters(settings)
    dialogues, _ = read_folder(tmp_path)
    assert {dialogue.split for dialogue in dialogues} == {"val"}


def test_listeners_nod_after_the_phrases_they_hear_and_only_then(performed):
    for encounter, tracks in performed:
        for track, other in zip(tracks, tracks[::-1], strict=True):
            heard = [phrase for turn in other.turns if not turn.interrupted for phrase in turn.phrases]
            lowest = np.flatnonzero(np.abs(track.nod - 0.5) < 0.056) / encounter.fps
            after = [np.min(np.abs(lowest - end - 0.35)) for _, end in heard]
            assert max(after) < 0.15
            nodding, head = track.nod > 0, np.array([pose.nod for pose in track.poses])
            assert nodding.sum() <= 10 * len(heard)
            assert head[np.abs(track.nod - 0.5) < 0.056].mean() > head[~nodding].mean() + 0.8


def test_listeners_smile_at_a_happy_voice_and_keep_their_mouths_shut(performed):
    smiles = {"happy": [], "sad": []}
    for encounter, tracks in performed:
        for turn in encounter.turns:
            listener = tracks[1 - turn.person]
            smile = np.array(listener.truth()["smile"])
            if not turn.interrupted and turn.onset * 25 > 12:
                smiles[turn.expression].append(smile[int(turn.offset * 25)])
        for track in tracks:
            mouth = np.array([pose.mouth for pose in track.poses])
            assert np.corrcoef(mouth[track.speaking], track.loudness[track.speaking])[0, 1] > 0.9
            near = np.convolve(track.speaking, [1, 1, 1], "same") > 0
            assert not mouth[~near].any()
    assert min(smiles["happy"]) > 0.5
    assert max(smiles["sad"]) < 0.0


def test_an_answer_begins_at_rest(performed):
    for encounter, tracks in performed:
        for turn in encounter.turns[1::2]:
            pose = tracks[1].poses[turn.first]
            assert (pose.mouth, pose.blink, pose.intensity, tracks[1].nod[turn.first]) == (0, 0, 0, 0)
            assert max(pose.intensity for pose in tracks[1].poses[turn.first : turn.last]) == pytest.approx(1, abs=0.02)


def test_backchannels_are_hums_in_the_pauses_of_a_listener(performed):
    hums = 0
    for _, tracks in performed:
        for track in tracks:
            speech = track.loudness[track.speaking].mean()
            for start, end in track.backchannels:
                frames = slice(round(start * 25) + 1, round(end * 25) - 1)
                assert not track.speaking[frames].any()
                assert 0.25 * speech < track.loudness[frames].mean() < 0.7 * speech
                assert 0.3 < end - start < 0.6
                hums += 1
    assert hums > 0


def test_one_encounter_alone_is_what_it_is_in_the_data_set(folder, tmp_path):
    """Also on another number of processes, and byte by byte."""
    plan = plan_encounters(SETTINGS)[2]
    (tmp_path / "clips").mkdir()
    alone = render_encounter(plan, tmp_path, SETTINGS)
    lines = (folder / "encounters.jsonl").read_text().splitlines()
    assert json.dumps(alone["encounter"]) == lines[2]
    dialogues = [line for line in (folder / "dialogues.jsonl").read_text().splitlines() if '"id": "e000002' in line]
    assert [json.dumps(dialogue) for dialogue in alone["dialogues"]] == dialogues
    for path in (tmp_path / "clips").iterdir():
        assert path.read_bytes() == (folder / "clips" / path.name).read_bytes()


def test_the_folder_reads_as_dialogues_of_four_branches(folder):
    dialogues, report = read_folder(folder)
    entries = [json.loads(line) for line in (folder / "dialogues.jsonl").read_text().splitlines()]
    assert not report.skipped
    assert {dialogue.branch for dialogue in dialogues} == {"single", "dialogue", "listening", "multi_turn"}
    for dialogue, entry in zip(dialogues, entries, strict=True):
        for turn in entry["turns"]:
            assert turn.get("text", "") == " ".join(text for text, _, _ in turn.get("words", []))
            assert all(0 <= start < end <= turn["end"] - turn["start"] for _, start, end in turn.get("words", []))
        if entry["id"].count("_") == 1:  # not paired again
            zero = min(turn["start"] for turn in entry["turns"])
            assert all(turn["at"] == pytest.approx(turn["start"] - zero) for turn in entry["turns"])
        truth, clip = dialogue.answer.truth, dialogue.answer
        media = read_clip(clip, fps=25, size=(32, 32), sample_rate=16000)
        assert len(media.waveform) == 640 * len(truth["mouth"])
        assert len(truth["mouth"]) % 4 == 1
        assert ([word for word, _, _ in truth["words"]] == (clip.text or "").split()) or truth["backchannels"]
        loudness = media.waveform.reshape(-1, 640).square().mean(-1).sqrt().numpy()
        if dialogue.branch == "listening" and not truth["backchannels"]:
            assert loudness.max() < 0.01
        elif dialogue.branch != "listening":
            assert np.corrcoef(loudness, truth["mouth"])[0, 1] > 0.9


def test_settings_that_make_no_dialogues_are_refused():
    with pytest.raises(ValueError, match="weight above 0"):
        EncounterSettings(single=0, dialogue=0, listening=0, multi_turn=0)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vidchat.data.media.read import Media
from vidchat.dialogue import ChunkClock, Clip, Dialogue, Turn
from vidchat.playground.demo.answers import Acted
from vidchat.playground.demo.listener import dips
from vidchat.playground.demo.measure import Measures, correlation, loudness, percent
from vidchat.playground.demo.people import LONGEST, choose
from vidchat.playground.demo.pixels import MouthReader, NodReader
from vidchat.playground.people.cuts import all_cuts, record
from vidchat.playground.people.encounter import stage
from vidchat.playground.people.face import draw_face
from vidchat.playground.people.render_encounters import EncounterSettings, plan_encounters
from vidchat.playground.people.track import perform_tracks

pytest.importorskip("espeakng_loader", reason="voices need the extra 'demo'")
CLOCK = ChunkClock(fps=25, temporal_stride=4, sample_rate=16000, hop=320)
TESTED = 2


def dialogue_of(line):
    turns = [
        Turn(t["role"], Clip(Path(t["clip"]), t["speaker"], t.get("text"), t["start"], t["end"], truth=t["truth"]))
        for t in line["turns"]
    ]
    return Dialogue(line["id"], tuple(turns), line["branch"])


@pytest.fixture(scope="module")
def encounters():
    """Tracks of encounters by file, and all their cuts as dialogues."""
    tracks, dialogues = {}, []
    for plan in plan_encounters(EncounterSettings(encounters=30, seed=5))[:4]:
        encounter = stage(plan, 25, 16000)
        both = perform_tracks(encounter, 16000)
        for branch, cuts in all_cuts(encounter).items():
            lines = [record(f"{encounter.id}_{branch}_{n}", branch, cut, encounter, both) for n, cut in enumerate(cuts)]
            dialogues += map(dialogue_of, lines)
        tracks |= {Path(f"clips/{encounter.id}_{side}.mp4"): track for side, track in zip("ab", both, strict=True)}
    return tracks, dialogues


def test_chosen_people_answer_and_listen_and_the_readers_meet_others(encounters):
    people = choose(encounters[1], TESTED)
    answering = {dialogue.answer.speaker for dialogue in people.conversations}
    assert len(people.conversations) == len(people.listening) == len(answering) == TESTED
    assert max(len(dialogue.turns) for dialogue in people.conversations) > 2
    for talk, listening in zip(people.conversations, people.listening, strict=True):
        assert len(talk.turns) <= LONGEST
        assert not any(turn.clip.truth["interrupted"] for turn in talk.turns)
        assert talk.answer.path == listening.answer.path
        assert not listening.answer.truth["speaks"]
    assert {clip.truth["speaks"] for clip in people.others} == {True, False}
    assert not answering & {clip.speaker for clip in people.others}


def film(tracks, clip):
    """Media of a clip, as the demo's systems give it: the first frame is the still, audio starts with frame 1."""
    track, (first, last) = tracks[clip.path], (round(clip.start * 25), round(clip.end * 25) - 1)
    frames = np.stack([draw_face(track.speaker.identity, pose, (96, 96)) for pose in track.poses[first : last + 1]])
    waveform = torch.from_numpy(track.waveform[(first + 1) * 640 : (last + 1) * 640])
    return Media(torch.from_numpy(frames).permute(0, 3, 1, 2), waveform, 25, 16000)


@pytest.fixture(scope="module")
def measured(encounters):
    tracks, dialogues = encounters
    people = choose(dialogues, TESTED)
    truth = Acted(
        [[film(tracks, t.clip) for t in d.turns if t.role == "responder"] for d in people.conversations],
        [film(tracks, d.answer) for d in people.listening],
    )
    others = people.others[::3]
    clips = [film(tracks, clip).frames for clip in others]
    mouth = MouthReader().fit(clips, [clip.truth["mouth"] for clip in others])
    nod = NodReader().fit(
        clips, [dips(clip.truth["nods"], len(own), 25) for clip, own in zip(others, clips, strict=True)]
    )
    return Measures(people, truth, (mouth, nod), CLOCK), truth


def test_the_truth_scores_at_the_ceiling(measured):
    measures, truth = measured
    scores = measures.score(truth)
    assert scores.identity == scores.feeling == scores.length == 1
    assert all(share == 1 for share, _ in scores.right.values())
    assert {1, 2} <= scores.right.keys()
    assert scores.mouth > max(0.7, scores.mouth_shuffled + 0.15)
    assert scores.nods > 0.8
    assert scores.shut > 0.95


def test_a_wrong_face_no_words_another_length_and_a_still_listener_score_zero(measured):
    measures, truth = measured
    others = [*truth.answers[1:], truth.answers[0]]
    wrong = [
        [
            Media(other[0].frames[:1].expand(len(clip.frames) + 12, -1, -1, -1), 0 * clip.waveform, 25, 16000)
            for clip in own
        ]
        for own, other in zip(truth.answers, others, strict=True)
    ]
    still = [replace(clip, frames=clip.frames[:1].expand_as(clip.frames)) for clip in truth.listening]
    scores = measures.score(Acted(wrong, still))
    assert scores.identity == scores.mouth == scores.nods == scores.length == 0
    hits = sum(share * count for share, count in scores.right.values())
    assert hits <= 1, "at most the one answer that silence is always taken for"
    assert scores.nodded == ((),) * TESTED


def test_the_correlation_of_mouth_and_audio_falls_with_the_delay(measured):
    measures, truth = measured
    means = []
    for delay in (0, 3, 6, 9):  # frames
        values = []
        for clip in (clip for own in truth.answers for clip in own):
            late = torch.nn.functional.pad(clip.waveform, (delay * 640, 0))[: len(clip.waveform)]
            values.append(correlation(measures.mouths.read(clip.frames)[1:], loudness(late, len(clip.frames) - 1)))
        means.append(float(np.mean(values)))
    assert means == sorted(means, reverse=True)


def test_a_share_comes_with_its_interval():
    assert percent(0.5, 10) == "50 % (24-76)"
    assert percent(0.0, 20) == "0 % (0-16)"

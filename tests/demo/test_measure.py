from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

from vidchat.data.media import Media
from vidchat.data.synthetic.cast import make_speaker
from vidchat.data.synthetic.face import draw_face
from vidchat.data.synthetic.performance import perform
from vidchat.data.synthetic.render import candidate_waveforms
from vidchat.data.synthetic.script import cases
from vidchat.demo.measure import MouthReader, correlation, loudness, percent, score
from vidchat.demo.speech import cepstra, warped_distance

CASES = cases()[:4]


@pytest.fixture(scope="module")
def dyads():
    """Four answers by four people: media from picture 1 on, and everything that `score` asks for."""
    rng = np.random.default_rng(0)
    speakers = [make_speaker(5, number) for number in range(4)]
    media, references, spoken, clips, openings = [], {}, defaultdict(list), [], []
    for speaker, case in zip(speakers, CASES, strict=True):
        turn = perform(speaker, "responder", case.answer, case.expression, rng, 25, 16000)
        drawn = np.stack([draw_face(speaker.identity, pose, (96, 96)) for pose in turn.poses])
        pictures = torch.from_numpy(drawn).permute(0, 3, 1, 2)
        media.append(Media(pictures[1:], torch.from_numpy(turn.waveform)[640:], 25, 16000))
        references[speaker.name] = pictures[0]
        clips.append(pictures)
        openings.append([pose.mouth for pose in turn.poses])
        for text, waveform in candidate_waveforms(turn.truth(), 40000).items():
            spoken[text].append(cepstra(waveform, 16000))
    reader = MouthReader().fit(clips, openings)
    return media, references, [speaker.name for speaker in speakers], CASES, spoken, reader


def scores_of(dyads, media):
    truths, references, speakers, right, spoken, reader = dyads
    return score(media, truths, references, speakers, right, spoken, reader)


def test_the_truth_scores_at_the_ceiling(dyads):
    scores = scores_of(dyads, dyads[0])
    assert scores.identity == scores.answer == scores.topic == scores.feeling == 1
    assert scores.mouth > 0.85
    assert scores.mouth > scores.mouth_shuffled + 0.2


def test_another_face_another_answer_and_a_still_mouth_are_noticed(dyads):
    media, references, speakers = dyads[:3]
    swapped = [
        Media(media[i - 1].pictures, media[i - 1].waveform, 25, 16000) for i in range(len(media))
    ]  # everybody gives the answer of the one before
    scores = scores_of(dyads, swapped)
    assert scores.identity == 0
    assert scores.answer == 0
    still = [
        Media(references[name][None].expand(len(m.pictures), -1, -1, -1), m.waveform, 25, 16000)
        for m, name in zip(media, speakers, strict=True)
    ]
    scores = scores_of(dyads, still)
    assert scores.identity == 1
    assert scores.mouth == 0


def test_silence_is_no_answer(dyads):
    silent = [Media(m.pictures, torch.zeros_like(m.waveform), 25, 16000) for m in dyads[0]]
    scores = scores_of(dyads, silent)
    assert scores.mouth == 0
    assert scores.answer <= 0.25, "at most the one answer that silence is always taken for"


def test_a_later_sound_follows_the_mouth_less_and_less(dyads):
    media, references, speakers, _, _, reader = dyads
    follows = []
    for shift in (0, 3, 6, 9):  # pictures
        values = []
        for m, name in zip(media, speakers, strict=True):
            opening = reader.read(torch.cat([references[name][None], m.pictures]))[1:]
            late = torch.nn.functional.pad(m.waveform, (shift * 640, 0))[: len(m.waveform)]
            values.append(correlation(opening, loudness(late, len(m.pictures))))
        follows.append(float(np.mean(values)))
    assert follows == sorted(follows, reverse=True)


def test_warping_is_a_distance_that_forgives_tempo():
    rng = np.random.default_rng(0)
    word = rng.normal(size=(30, 4))
    slow = word.repeat(2, axis=0)
    assert warped_distance(word, word) == pytest.approx(0, abs=1e-6)
    assert warped_distance(word, slow) == pytest.approx(0, abs=1e-6)
    assert warped_distance(word, rng.normal(size=(30, 4))) > 1
    other = rng.normal(size=(20, 4))
    assert warped_distance(word, other) == pytest.approx(warped_distance(other, word))


def test_warping_equals_the_textbook_recursion():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    cost = np.linalg.norm(a[:, None] - b[None], axis=-1)
    best = np.full((8, 6), np.inf)
    best[0, 0] = 0
    for i in range(1, 8):
        for j in range(1, 6):
            c = cost[i - 1, j - 1]
            best[i, j] = min(best[i - 1, j - 1] + 2 * c, best[i - 1, j] + c, best[i, j - 1] + c)
    assert warped_distance(a, b) == pytest.approx(best[7, 5] / 12)


def test_a_share_comes_with_its_interval():
    assert percent(0.5, 10) == "50 % (24-76)"
    assert percent(0.0, 20) == "0 % (0-16)"

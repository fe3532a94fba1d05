from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

from vidchat.bench.spoken_distance import cepstra
from vidchat.data.media.read import Media
from vidchat.playground.demo.measure import correlation, loudness, percent, score
from vidchat.playground.demo.pixels import MouthReader
from vidchat.playground.people.cast import make_speaker
from vidchat.playground.people.face import draw_face
from vidchat.playground.people.performance import perform
from vidchat.playground.people.render import candidate_waveforms
from vidchat.playground.people.script import cases

CASES = cases()[:4]


@pytest.fixture(scope="module")
def dyads():
    """Four answers by four people: media from frame 1 on, and the other arguments of `score`."""
    rng = np.random.default_rng(0)
    speakers = [make_speaker(5, index) for index in range(4)]
    media, references, spoken, clips, openings = [], {}, defaultdict(list), [], []
    for speaker, case in zip(speakers, CASES, strict=True):
        turn = perform(speaker, "responder", case.answer, case.expression, rng, 25, 16000)
        drawn = np.stack([draw_face(speaker.identity, pose, (96, 96)) for pose in turn.poses])
        frames = torch.from_numpy(drawn).permute(0, 3, 1, 2)
        media.append(Media(frames[1:], torch.from_numpy(turn.waveform)[640:], 25, 16000))
        references[speaker.name] = frames[0]
        clips.append(frames)
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


def test_a_wrong_face_a_wrong_answer_and_a_still_mouth_score_zero(dyads):
    media, references, speakers = dyads[:3]
    swapped = [
        Media(media[i - 1].frames, media[i - 1].waveform, 25, 16000) for i in range(len(media))
    ]  # each gives the answer of the one before
    scores = scores_of(dyads, swapped)
    assert scores.identity == 0
    assert scores.answer == 0
    still = [
        Media(references[name][None].expand(len(m.frames), -1, -1, -1), m.waveform, 25, 16000)
        for m, name in zip(media, speakers, strict=True)
    ]
    scores = scores_of(dyads, still)
    assert scores.identity == 1
    assert scores.mouth == 0


def test_silence_is_no_answer(dyads):
    silent = [Media(m.frames, torch.zeros_like(m.waveform), 25, 16000) for m in dyads[0]]
    scores = scores_of(dyads, silent)
    assert scores.mouth == 0
    assert scores.answer <= 0.25, "at most the one answer that silence is always taken for"


def test_the_correlation_of_mouth_and_audio_falls_with_the_delay(dyads):
    media, references, speakers, _, _, reader = dyads
    means = []
    for delay in (0, 3, 6, 9):  # frames
        values = []
        for m, name in zip(media, speakers, strict=True):
            opening = reader.read(torch.cat([references[name][None], m.frames]))[1:]
            late = torch.nn.functional.pad(m.waveform, (delay * 640, 0))[: len(m.waveform)]
            values.append(correlation(opening, loudness(late, len(m.frames))))
        means.append(float(np.mean(values)))
    assert means == sorted(means, reverse=True)


def test_a_share_comes_with_its_interval():
    assert percent(0.5, 10) == "50 % (24-76)"
    assert percent(0.0, 20) == "0 % (0-16)"

"""Tests each proxy on rendered dyads: a clip that was made worse must score worse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vidchat.bench.faces import CentredFace, FaceDetector
from vidchat.bench.frechet import Gaussian, frechet_distance
from vidchat.bench.metric import bounded_values
from vidchat.bench.pairs import Candidate, Pair
from vidchat.bench.proxy.coherence import NearestSpoken
from vidchat.bench.proxy.drift import LoudnessDrift, SharpnessDrift
from vidchat.bench.proxy.expression import EdgeDirections
from vidchat.bench.proxy.identity import FaceAppearance
from vidchat.bench.proxy.random_features import RandomFrames, RandomMotion
from vidchat.bench.proxy.sync import MAX_LAG, MouthAndLoudness
from vidchat.bench.proxy.voice import PitchAndTimbre
from vidchat.data.media.read import Media, frame_size, read_clip
from vidchat.dialogue import Clip
from vidchat.playground.people.cast import make_speaker
from vidchat.playground.people.face import draw_face
from vidchat.playground.people.performance import perform
from vidchat.playground.people.script import Case
from vidchat.playground.rendered_candidates import rendered_candidates

SPEAKERS = 6
TOPICS = ("tea", "music", "dogs")


def act(number: int, topic: str, expression: str, seed: int = 0) -> tuple[Media, dict]:
    """Returns a clip of a speaker who talks about a topic with an expression, and its ground truth."""
    speaker, case = make_speaker(5, number), Case(topic, expression)
    turn = perform(speaker, "responder", case.answer, expression, np.random.default_rng((seed, number)), 25, 16000)
    drawn = np.stack([draw_face(speaker.identity, pose, (96, 96)) for pose in turn.poses])
    frames = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    return Media(frames[1:], torch.from_numpy(turn.waveform)[640:], 25, 16000), {**turn.truth(), "topic": topic}


@pytest.fixture(scope="module")
def happy():
    return [act(n, TOPICS[n % 3], "happy") for n in range(SPEAKERS)]


@pytest.fixture(scope="module")
def happy_again():
    return [act(n, TOPICS[(n + 1) % 3], "happy", seed=1) for n in range(SPEAKERS)]


@pytest.fixture(scope="module")
def sad():
    return [act(n, TOPICS[n % 3], "sad", seed=2) for n in range(SPEAKERS)]


def still(media: Media) -> Media:
    return Media(media.frames[:1], torch.zeros(640), 25, 16000)


def mean_of(metric, made, truths, column) -> float:
    """Returns the mean over the clips, each compared with its own truth."""
    values = []
    for one, true in zip(made, truths, strict=True):
        features = [metric.read(clip) for clip in (one, true, still(true))]
        ceiling = metric.compare(features[1], *features[1:], None)
        values.append(bounded_values(metric, metric.compare(*features, None), ceiling)[column])
    return float(np.mean(values))


def distance(metric, made, truths) -> float:
    sets = []
    for clips in (made, truths):
        rows = np.concatenate([metric.read(clip)["rows"] for clip in clips])
        sets.append(Gaussian(rows.shape[1]).update(rows))
    return frechet_distance(*sets)


def media_of(acts) -> list[Media]:
    return [media for media, _ in acts]


def blurred(media: Media, width: int) -> Media:
    soft = F.avg_pool2d(media.frames.float(), width, 1, width // 2, count_include_pad=False)
    return replace(media, frames=soft.round().byte())


def test_fid_and_fvd_grow_with_blur(happy):
    clips = media_of(happy)
    for metric in (RandomFrames(), RandomMotion()):
        distances = [distance(metric, [blurred(clip, width) for clip in clips], clips) for width in (1, 3, 9)]
        assert distances[0] == pytest.approx(0, abs=1e-6)
        assert distances == sorted(distances), metric.spec()["backend"]


def test_only_fvd_sees_that_the_order_of_frames_is_wrong(happy):
    clips = media_of(happy)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    chosen = [
        replace(clip, frames=clip.frames[torch.linspace(0, len(clip.frames) - 1, 16).round().long()]) for clip in clips
    ]
    mixed = [replace(clip, frames=clip.frames[order]) for clip in chosen]
    assert distance(RandomFrames(16), mixed, chosen) == pytest.approx(0, abs=1e-6)
    assert distance(RandomMotion(16), mixed, chosen) > 1e-3


def test_random_features_are_the_same_on_every_machine():
    assert RandomFrames().spec()["weights"] == RandomFrames().spec()["weights"]
    video = Media((torch.arange(16 * 3 * 64 * 64) % 251).byte().view(16, 3, 64, 64), torch.zeros(10240), 25, 16000)
    rows = RandomFrames().read(video)["rows"]
    assert rows.shape == (8, 136)
    assert float(rows.sum()) == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = 224.7150


def test_identity_falls_when_faces_are_swapped_and_not_when_they_speak(happy, happy_again):
    metric, truths = FaceAppearance(CentredFace()), media_of(happy)
    own = mean_of(metric, media_of(happy_again), truths, "ArcFace")
    swapped = mean_of(metric, truths[1:] + truths[:1], truths, "ArcFace")
    assert own > 0.9
    assert swapped < own - 0.3
    black = [replace(clip, frames=torch.zeros_like(clip.frames)) for clip in truths]
    assert mean_of(metric, black, truths, "ArcFace") == mean_of(metric, black, truths, "face found") == 0
    assert mean_of(metric, black, truths, "identity drift") == 4, "without a face there is no identity that could last"


def test_a_face_that_becomes_another_drifts(happy):
    metric, clips = FaceAppearance(CentredFace()), media_of(happy)
    turning = []
    for one, two in zip(clips, clips[1:] + clips[:1], strict=True):
        length = min(len(one.frames), len(two.frames))
        share = torch.linspace(0, 1, length)[:, None, None, None]
        turning.append(replace(one, frames=(one.frames[:length] * (1 - share) + two.frames[:length] * share).byte()))
    assert mean_of(metric, clips, clips, "identity drift") == 0
    assert mean_of(metric, turning, clips, "identity drift") > 0.3


def late(media: Media, frames: int) -> Media:
    return replace(media, waveform=F.pad(media.waveform, (640 * frames, 0))[: len(media.waveform)])


def test_sync_falls_as_the_audio_is_shifted_and_the_offset_follows(happy, happy_again, sad):
    metric, clips = MouthAndLoudness(CentredFace()), media_of(happy + happy_again + sad)
    follows = [mean_of(metric, [late(clip, k) for clip in clips], clips, "Sync r") for k in (0, 2, 4, 6, 9)]
    assert follows == sorted(follows, reverse=True)
    assert follows[0] > follows[-1] + 0.3
    offsets = [mean_of(metric, [late(clip, k) for clip in clips], clips, "offset") for k in (0, 5)]
    assert offsets[0] < 2.5
    assert offsets[1] == pytest.approx(5, abs=2)
    confidence = [mean_of(metric, [late(clip, k) for clip in clips], clips, "Sync-C") for k in (0, 5)]
    assert confidence[1] == pytest.approx(confidence[0], abs=0.1), "it forgives an offset, as SyncNet's does"


def test_a_still_mouth_or_silence_is_not_in_sync(happy):
    metric, clips = MouthAndLoudness(CentredFace()), media_of(happy)
    frozen = [replace(clip, frames=clip.frames[:1].expand(len(clip.frames), -1, -1, -1)) for clip in clips]
    silent = [replace(clip, waveform=torch.zeros_like(clip.waveform)) for clip in clips]
    for bad in (frozen, silent):
        for column in metric.columns:
            assert mean_of(metric, bad, clips, column.name) == column.worst, column.name


def test_emotion_tells_another_feeling_from_the_same_one(happy, happy_again, sad):
    metric, truths = EdgeDirections(CentredFace()), media_of(happy)
    assert distance(metric, media_of(sad), truths) > 2 * distance(metric, media_of(happy_again), truths)
    same = mean_of(metric, media_of(happy_again), truths, "expression")
    assert mean_of(metric, media_of(sad), truths, "expression") > 1.3 * same


def test_another_voice_is_heard_and_the_same_one_with_other_words_forgiven(happy, happy_again):
    metric, truths = PitchAndTimbre(), media_of(happy)
    own = mean_of(metric, media_of(happy_again), truths, "SIM-o")
    other = mean_of(metric, truths[1:] + truths[:1], truths, "SIM-o")
    assert mean_of(metric, truths, truths, "SIM-o") == 1
    assert own > 2 * other
    silent = [replace(clip, waveform=torch.zeros_like(clip.waveform)) for clip in truths]
    assert mean_of(metric, silent, truths, "SIM-o") == 0


def test_the_right_answer_scores_highest_and_silence_0(happy, sad, tmp_path):
    metric, nowhere = NearestSpoken(), Path("x.mp4")
    scores = {"right": [], "wrong feeling": [], "wrong topic": [], "silent": []}
    for number, (media, truth) in enumerate(happy[:3]):
        pair = Pair(f"p{number}", Clip(nowhere, "a", "do you like it"), Clip(nowhere, "b", truth=truth), nowhere)
        replies = rendered_candidates(pair, tmp_path)["candidates"]
        candidates = tuple(Candidate(c["text"], c["worth"], tuple(tmp_path / s for s in c["sounds"])) for c in replies)
        assert [candidate.score for candidate in candidates] == [1.0, 0.8, 0.6, 0.4, 0.2]
        pair = replace(pair, candidates=candidates)
        following = ("tea", "music", "snow", "dancing", "pancakes", "dogs")
        topic = following[(following.index(truth["topic"]) + 1) % 6]
        said = {
            "right": media,
            "wrong feeling": sad[number][0],
            "wrong topic": act(number, topic, "happy")[0],
            "silent": replace(media, waveform=torch.zeros_like(media.waveform)),
        }
        for name, clip in said.items():
            scores[name].append(metric.compare(metric.read(clip), {}, {}, pair)["coherence"])
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    assert means == pytest.approx({"right": 1.0, "wrong feeling": 0.8, "wrong topic": 0.6, "silent": 0.0})


def test_drift_sees_a_clip_that_blurs_and_one_that_grows_quiet(happy):
    sharpness, loudness, clips = SharpnessDrift(), LoudnessDrift(), media_of(happy)
    assert mean_of(sharpness, clips, clips, "sharpness drift %") == 0
    worse = []
    for clip in clips:
        half = len(clip.frames) // 2
        frames = torch.cat([clip.frames[:half], blurred(clip, 5).frames[half:]])
        fading = clip.waveform * torch.linspace(1, 0.1, len(clip.waveform))
        worse.append(Media(frames, fading, 25, 16000))
    assert mean_of(sharpness, worse, clips, "sharpness drift %") > 20
    assert mean_of(loudness, worse, clips, "loudness drift dB") > 3


def test_filmed_people_are_in_sync_near_zero_and_less_when_shifted(real_clips):
    detector = real_clips.parents[1] / "weights" / "ultralight_face_rfb320.onnx"
    pytest.importorskip("onnxruntime")
    metric, paths = MouthAndLoudness(FaceDetector(detector)), sorted(real_clips.glob("grid_*.mp4"))
    curves = []
    for path in paths:
        media = read_clip(Clip(path, ""), fps=25, size=frame_size(path), sample_rate=16000)
        curves.append(metric.read(media)["correlation"])
    mean = np.mean(curves, axis=0)
    assert abs(int(np.argmax(mean)) - MAX_LAG) <= 1
    assert mean[MAX_LAG] > 0.5
    later, sooner = mean[MAX_LAG:], mean[MAX_LAG::-1]
    assert later[0] > later[4] > later[8] > later[12]
    assert sooner[0] > sooner[4] > sooner[8]

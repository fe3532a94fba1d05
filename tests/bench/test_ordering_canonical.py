"""Truth >= any answer >= no answer in the canonical metrics, with random weights; every column states its worst."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from vidchat.bench.canonical.arcface import ArcFace
from vidchat.bench.canonical.coherence import NearestBySentence
from vidchat.bench.canonical.dnsmos import Dnsmos
from vidchat.bench.canonical.expression import ExpressionCoefficients
from vidchat.bench.canonical.i3d import I3d
from vidchat.bench.canonical.inception import Inception
from vidchat.bench.canonical.syncnet import SyncNet
from vidchat.bench.canonical.utmos import Utmos
from vidchat.bench.canonical.videomae import VideoMae
from vidchat.bench.canonical.voice import SpeakerSimilarity, XVector
from vidchat.bench.faces import CentredFace
from vidchat.bench.frechet import Gaussian, frechet_distance
from vidchat.bench.listening_metric import Listening
from vidchat.bench.metric import Column, Metric, bounded_values
from vidchat.bench.pairs import Candidate
from vidchat.bench.suite import Backends
from vidchat.data.media.read import Media

FRAMES, SIDE = 24, 48


def colour_clip(seed: int) -> Media:
    """Returns a clip of slowly changing colours with swelling audio."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand((3, 3, 4, 4), generator=rng)
    frames = nn.functional.interpolate(coarse.transpose(0, 1)[None], (FRAMES, SIDE, SIDE), mode="trilinear")[0]
    swell = torch.sin(torch.linspace(0, 6 + seed, 640 * FRAMES)).abs()
    audio = 0.2 * swell * torch.randn(640 * FRAMES, generator=rng)
    return Media((255 * frames.transpose(0, 1)).byte(), audio, 25, 16000)


def answers(truth: Media, other: Media) -> dict[str, Media]:
    """Returns good and absurd answers."""
    noise = torch.randint(0, 256, truth.frames.shape, dtype=torch.uint8)
    still = truth.frames[:1].expand(FRAMES, -1, -1, -1)
    near = (truth.frames.float() + 2 * torch.randn(truth.frames.shape)).clamp(0, 255).byte()
    return {
        "truth": truth,
        "near": Media(near, truth.waveform * 0.98, 25, 16000),
        "other": other,
        "frozen, silent": Media(still, torch.zeros_like(truth.waveform), 25, 16000),
        "noise": Media(noise, 0.3 * torch.randn(truth.waveform.shape), 25, 16000),
        "black": Media(torch.zeros_like(noise), torch.zeros_like(truth.waveform), 25, 16000),
        "white": Media(torch.full_like(noise, 255), truth.waveform.flip(0), 25, 16000),
        "louder": Media(truth.frames.flip(0), (3 * truth.waveform).clamp(-1, 1), 25, 16000),
    }


class RandomVoice(SpeakerSimilarity):
    """The metric of SIM-o over a random embedding of the mean spectrum."""

    def __init__(self):
        super().__init__("cpu")
        self.mix = torch.randn(32, 16)

    def spec(self):
        return {}

    def embed(self, waveform):
        return torch.stack([piece.std() for piece in torch.fft.rfft(waveform).abs().tensor_split(32)]) @ self.mix


class Says:
    """A transcriber that writes letters by loudness."""

    def spec(self):
        return {}

    def __call__(self, media):
        return " ".join("ab"[int(piece.std() > 0.12)] for piece in media.waveform.tensor_split(5))


class RandomText(NearestBySentence):
    """Coherence over a random embedding of letters."""

    def __init__(self):
        self.transcriber, self.device = Says(), "cpu"

    def embed(self, texts):
        counts = torch.tensor([[text.count(letter) + 1.0 for letter in "ab "] for text in texts])
        return nn.functional.normalize(counts @ torch.tensor([[1.0, -1, 0], [-1, 1, 1], [0.2, 0, 1]]), dim=-1)


def canonical(name: str, monkeypatch) -> Metric:
    """Builds a canonical metric with random weights."""
    if name == "inception":
        net = nn.Module()
        net.layers = nn.Sequential(nn.Conv2d(3, 6, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        metric = Inception.__new__(Inception)
        metric.frames, metric.device, metric.net = 8, "cpu", net
        return metric
    if name == "i3d":
        conv = nn.Conv3d(3, 40, 3, 8, 1)
        metric = I3d.__new__(I3d)
        metric.frames, metric.device = 16, "cpu"
        metric.net = lambda x, **_: conv(x / 127.5 - 1).mean([2, 3, 4])
        return metric
    if name == "syncnet":
        lips, ears = torch.randn(3 * 5 * 16, 8) / 500, torch.randn(13 * 20, 8) / 50
        metric = SyncNet.__new__(SyncNet)
        metric.finder, metric.device = CentredFace(), "cpu"
        metric.net = types.SimpleNamespace(
            embed_mouth=lambda x: nn.functional.adaptive_avg_pool3d(x, (5, 4, 4)).flatten(1) @ lips,
            embed_audio=lambda x: x.flatten(1) @ ears,
        )
        return metric
    if name == "utmos":
        weights = torch.randn(3)
        metric = Utmos.__new__(Utmos)
        metric.device = "cpu"
        metric.net = lambda x: 3 + torch.stack([x.std(), x.abs().mean(), x.max()]).matmul(weights)[None]
        return metric
    if name == "expression":
        module = types.ModuleType("random_faces")
        mix = np.random.default_rng(0).normal(size=(12, 64)) / 500

        def coefficients(frames):
            return (frames[:, ::24, ::24].reshape(len(frames), -1) - 128.0) @ mix

        coefficients.protocol = "random"
        module.coefficients = coefficients
        monkeypatch.setitem(sys.modules, "random_faces", module)
        return ExpressionCoefficients("random_faces:coefficients")
    return {"voice": RandomVoice, "coherence": RandomText}[name]()


@pytest.mark.parametrize("name", ["inception", "i3d", "syncnet", "utmos", "expression", "voice", "coherence"])
def test_truth_is_the_ceiling_and_absence_the_floor_with_random_weights(name, monkeypatch):
    metric, truths = canonical(name, monkeypatch), [colour_clip(seed) for seed in range(2)]
    replies = (Candidate("a a b b a", 1.0), Candidate("a a a a a", 0.6), Candidate("b b b b b", 0.2))
    made: dict[str, list] = {}
    for truth, other in zip(truths, truths[::-1], strict=True):
        for kind, media in answers(truth, other).items():
            made.setdefault(kind, []).append(metric.read(media))
    made["nothing"] = [metric.absent(true) for true in made["truth"]] if metric.compares_sets else [{}, {}]
    goods: dict[str, dict[str, float]] = {}
    for kind, features in made.items():
        for column in metric.columns:
            sign = 1 if column.better == "higher" else -1
            value = _value(metric, column, kind, features, made["truth"], replies)
            goods.setdefault(column.name, {})[kind] = sign * value
    for column, good in goods.items():
        assert np.isfinite(list(good.values())).all(), (column, good)
        assert all(good["truth"] >= value - 1e-6 for value in good.values()), (column, good)
        assert all(value >= good["nothing"] - 1e-9 for value in good.values()), (column, good)
        assert good["truth"] > good["nothing"], (column, good)


def _value(metric, column: Column, kind, features, true, replies) -> float:
    if column.kind == "frechet":
        sets = [Gaussian(one[0]["rows"].shape[1]) for one in (features, true)]
        for gaussian, clips in zip(sets, (features, true), strict=True):
            for clip in clips:
                gaussian.update(clip["rows"])
        return frechet_distance(*sets)
    pair = types.SimpleNamespace(candidates=replies)
    values = []
    for one, truth in zip(features, true, strict=True):
        ceiling = metric.compare(truth, truth, {}, pair)
        compared = {} if kind == "nothing" else metric.compare(one, truth, {}, pair)
        values.append(bounded_values(metric, compared, ceiling)[column.name])
    return float(np.mean(values))


def test_every_column_states_a_worst_value_that_no_answer_can_pass():
    metrics = [type(metric) for metric in Backends()()]
    metrics += [
        ArcFace,
        Dnsmos,
        Utmos,
        SyncNet,
        SpeakerSimilarity,
        XVector,
        NearestBySentence,
        Inception,
        I3d,
        VideoMae,
    ]
    assert Listening in metrics
    for metric in metrics:
        for column in metric.columns:
            assert column.better in ("higher", "lower"), column.name
            assert (column.worst is None) == (column.kind == "frechet"), column.name


def test_a_value_lies_between_the_worst_and_the_truths():
    likeness, distance = Column("a", "higher", worst=-1.0), Column("b", "lower", worst=4.0)
    assert [likeness.bounded(value, 0.8) for value in (0.9, 0.5, -3, float("nan"))] == [0.8, 0.5, -1, -1]
    assert [distance.bounded(value, 0.2) for value in (0.1, 0.5, 9, float("nan"))] == [0.2, 0.5, 4, 4]
    assert likeness.bounded(0.0, -2.0) == -1, "a truth cannot be worse than nothing"
    assert np.isnan(likeness.bounded(0.5, float("nan"))), "what the truth cannot have is not asked of an answer"
    assert Column("c", "lower").bounded(7.0, 0.2) == 7

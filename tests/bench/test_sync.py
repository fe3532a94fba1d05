"""Tests the sync proxy on clips whose mouth and audio follow one known function of continuous time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vidchat.bench.faces import MOUTH, CentredFace, region_boxes
from vidchat.bench.proxy.sync import MAX_LAG, MouthAndLoudness
from vidchat.data.media.read import Media, read_clip, write_clip
from vidchat.dialogue import Clip

SIDE, SECONDS = 64, 4


def talking(seed: int, delay: float = 0.0, fps: int = 25, rate: int = 16000) -> Media:
    """Returns a mouth whose opening is a smooth random function of time, and audio as loud as the mouth is fast.

    Args:
        seed: Seed of the function.
        delay: Number of frames by which the audio is later than the motion.
        fps: Frames per second.
        rate: Samples per second.
    """
    rng = np.random.default_rng(seed)
    rates, phases, sizes = rng.uniform(0.3, 3.0, 12), rng.uniform(0, 2 * np.pi, 12), rng.uniform(0.5, 1, 12)

    def opening(time):
        return (sizes * np.sin(2 * np.pi * rates * time[:, None] + phases)).sum(1)

    def speed(time):
        return np.abs((sizes * 2 * np.pi * rates * np.cos(2 * np.pi * rates * time[:, None] + phases)).sum(1))

    boxes = region_boxes(CentredFace()(Media(torch.zeros(1, 3, SIDE, SIDE), torch.zeros(0), fps, rate)).boxes, MOUTH)[0]
    left, top, right, bottom = boxes.round().astype(int)
    frames = SECONDS * fps
    face = torch.from_numpy(rng.uniform(80, 170, (1, 3, SIDE, SIDE))).repeat(frames, 1, 1, 1)
    inside = slice(top + (bottom - top) // 3, bottom - (bottom - top) // 3), slice(left + 6, right - 6)
    face[:, :, *inside] += torch.from_numpy(6 * opening(np.arange(frames) / fps))[:, None, None, None]
    time = np.arange(SECONDS * rate) / rate - delay / fps
    audio = 0.01 * speed(time) * rng.standard_normal(len(time))
    return Media(face.clamp(0, 255).byte(), torch.from_numpy(audio).float(), fps, rate)


def mean_curve(delay: float) -> np.ndarray:
    metric = MouthAndLoudness(CentredFace())
    return np.mean([metric.read(talking(seed, delay))["correlation"] for seed in range(8)], axis=0)


def test_the_mean_over_clips_in_sync_peaks_at_0_and_is_even_about_it():
    """The peak would be off by half a frame if audio *while a frame is shown* were compared with motion *around* it."""
    curve = mean_curve(0)
    assert int(curve.argmax()) == MAX_LAG
    sooner, later = curve[MAX_LAG - 1], curve[MAX_LAG + 1]
    assert abs(later - sooner) < 0.15 * (curve[MAX_LAG] - min(sooner, later)), (sooner, curve[MAX_LAG], later)


@pytest.mark.parametrize("delay", [-3, 2])
def test_the_peak_follows_the_audio(delay):
    curve = mean_curve(delay)
    assert int(curve.argmax()) == MAX_LAG + delay
    assert abs(curve[MAX_LAG + delay + 1] - curve[MAX_LAG + delay - 1]) < 0.1


def test_half_a_frame_lies_between_two_lags():
    curve = mean_curve(0.5)
    assert set(np.argsort(curve)[-2:]) == {MAX_LAG, MAX_LAG + 1}
    assert curve[MAX_LAG] == pytest.approx(curve[MAX_LAG + 1], abs=0.05)


@pytest.mark.parametrize("fps", [24, 25, 30])
def test_the_peak_stays_at_0_through_a_file_of_any_frame_rate(fps, tmp_path):
    """Neither the codec's priming samples nor the choice of frames at 25 a second may move audio against motion."""
    metric, curves = MouthAndLoudness(CentredFace()), []
    for seed in range(4):
        media = talking(seed, fps=fps, rate=48000)
        write_clip(tmp_path / f"{seed}.mp4", media.frames, media.waveform, fps, 48000)
        read = read_clip(Clip(tmp_path / f"{seed}.mp4", ""), fps=25, size=(SIDE, SIDE), sample_rate=16000)
        curves.append(metric.read(read)["correlation"])
    curve = np.mean(curves, axis=0)
    assert int(curve.argmax()) == MAX_LAG
    assert abs(curve[MAX_LAG + 1] - curve[MAX_LAG - 1]) < 0.2

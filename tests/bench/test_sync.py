"""The sync proxy against films whose mouth and audio follow one known function of continuous time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vidchat.bench.faces import MOUTH, Centred, part_of
from vidchat.bench.proxy.sync import REACH, MouthAndLoudness
from vidchat.data.media.read import Media, read_clip, write_clip
from vidchat.dialogue import Clip

SIDE, SECONDS = 64, 4


def talking(seed: int, delay: float = 0.0, fps: int = 25, rate: int = 16000) -> Media:
    """A mouth whose opening is a smooth random function of time, and an audio as loud as the mouth is fast.

    Args:
        seed: Of the function.
        delay: Frames by which the audio is later than the motion.
        fps: Frames per second.
        rate: Samples per second.
    """
    rng = np.random.default_rng(seed)
    rates, phases, sizes = rng.uniform(0.3, 3.0, 12), rng.uniform(0, 2 * np.pi, 12), rng.uniform(0.5, 1, 12)

    def opening(time):
        return (sizes * np.sin(2 * np.pi * rates * time[:, None] + phases)).sum(1)

    def speed(time):
        return np.abs((sizes * 2 * np.pi * rates * np.cos(2 * np.pi * rates * time[:, None] + phases)).sum(1))

    boxes = part_of(Centred()(Media(torch.zeros(1, 3, SIDE, SIDE), torch.zeros(0), fps, rate)).boxes, MOUTH)[0]
    left, top, right, bottom = boxes.round().astype(int)
    frames = SECONDS * fps
    face = torch.from_numpy(rng.uniform(80, 170, (1, 3, SIDE, SIDE))).repeat(frames, 1, 1, 1)
    inside = slice(top + (bottom - top) // 3, bottom - (bottom - top) // 3), slice(left + 6, right - 6)
    face[:, :, *inside] += torch.from_numpy(6 * opening(np.arange(frames) / fps))[:, None, None, None]
    time = np.arange(SECONDS * rate) / rate - delay / fps
    audio = 0.01 * speed(time) * rng.standard_normal(len(time))
    return Media(face.clamp(0, 255).byte(), torch.from_numpy(audio).float(), fps, rate)


def mean_curve(delay: float) -> np.ndarray:
    metric = MouthAndLoudness(Centred())
    return np.mean([metric.read(talking(seed, delay))["correlation"] for seed in range(8)], axis=0)


def test_the_mean_over_clips_in_sync_peaks_at_0_and_is_even_about_it():
    """Not half a frame beside it, as when the audio *while a frame is shown* is set against the motion *around* it."""
    curve = mean_curve(0)
    assert int(curve.argmax()) == REACH
    sooner, later = curve[REACH - 1], curve[REACH + 1]
    assert abs(later - sooner) < 0.15 * (curve[REACH] - min(sooner, later)), (sooner, curve[REACH], later)


@pytest.mark.parametrize("delay", [-3, 2])
def test_the_peak_follows_the_sound(delay):
    curve = mean_curve(delay)
    assert int(curve.argmax()) == REACH + delay
    assert abs(curve[REACH + delay + 1] - curve[REACH + delay - 1]) < 0.1


def test_half_a_frame_lies_between_two_lags():
    curve = mean_curve(0.5)
    assert set(np.argsort(curve)[-2:]) == {REACH, REACH + 1}
    assert curve[REACH] == pytest.approx(curve[REACH + 1], abs=0.05)


@pytest.mark.parametrize("fps", [24, 25, 30])
def test_the_peak_stays_at_0_through_a_file_of_any_frame_rate(fps, tmp_path):
    """Neither the codec's priming samples nor the choice of frames at 25 a second may move audio against motion."""
    metric, curves = MouthAndLoudness(Centred()), []
    for seed in range(4):
        media = talking(seed, fps=fps, rate=48000)
        write_clip(tmp_path / f"{seed}.mp4", media.frames, media.waveform, fps, 48000)
        read = read_clip(Clip(tmp_path / f"{seed}.mp4", ""), fps=25, size=(SIDE, SIDE), sample_rate=16000)
        curves.append(metric.read(read)["correlation"])
    curve = np.mean(curves, axis=0)
    assert int(curve.argmax()) == REACH
    assert abs(curve[REACH + 1] - curve[REACH - 1]) < 0.2

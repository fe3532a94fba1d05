"""Waveform operations on numpy arrays: mixing to mono, placement by time stamp, resampling."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy.signal import resample_poly

GAP = 0.010  # seconds; smaller jumps are rounding of time stamps, and following them would be audible
EDGE = 0.010  # seconds of context that keep the resampling filter's edges out of the result
# Weight of each channel in the mix, after ITU-R BS.775 for 5.1; other channels weigh as much as a front channel.
WEIGHTS = {"FC": 1.0, "BL": 0.5, "BR": 0.5, "SL": 0.5, "SR": 0.5, "BC": 0.5, "LFE": 0.0}
FRONT = 0.7071
CANCELLED = 0.2  # a mix below this share of the first channel's amplitude has cancelled out


def to_float(samples: np.ndarray) -> np.ndarray:
    """Converts samples of any format and shape to float32 in [-1, 1]."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    return samples.astype(np.float32)


def mix_to_mono(samples: np.ndarray, names: list[str]) -> np.ndarray:
    """Mixes (channels, n) to (n,), weighted by the channels' positions and normalised so that nothing clips."""
    if len(names) == 1:
        return samples[0]
    weights = np.array([WEIGHTS.get(name, FRONT) for name in names], np.float32)
    return weights @ samples / max(float(weights.sum()), FRONT)


def edges(rate: int, new_rate: int) -> tuple[int, int]:
    """Returns the samples of context at the old and new rate that span exactly the same time, about `EDGE` seconds."""
    common = math.gcd(rate, new_rate)
    down, up = rate // common, new_rate // common
    times = math.ceil(EDGE * rate / down)
    return times * down, times * up


def uncancelled(lines: np.ndarray) -> np.ndarray:
    """Returns the mix (n,), or the first channel where the channels cancel each other out.

    A microphone of reversed polarity makes the right channel the negated left one, and their mix silent.

    Args:
        lines: Mix (1, n), or mix and first channel (2, n).
    """
    if len(lines) == 1:
        return lines[0]
    mixed, first = (float(np.sqrt(np.square(line, dtype=np.float64).mean())) for line in lines)
    return lines[1] if mixed < CANCELLED * first else lines[0]


def place_frames(frames: Iterable[tuple[float, np.ndarray]], rate: int, length: int) -> np.ndarray:
    """Places frames (lines, n) by their times in seconds into (lines, length) samples from time 0, silent elsewhere.

    A frame continues the one before unless its time stamp differs by more than `GAP`, as containers round time stamps
    to up to a millisecond. In a frame with fewer lines than the first frame, the last line stands for the missing ones.
    """
    placed: np.ndarray | None = None
    cursor: int | None = None
    for time, samples in frames:
        placed = np.zeros((len(samples), length), np.float32) if placed is None else placed
        position = round(time * rate)
        if cursor is None or abs(position - cursor) > GAP * rate:
            cursor = position
        if cursor >= length:
            break
        count = samples.shape[1]
        first, last = max(cursor, 0), min(cursor + count, length)
        if last > first:
            placed[:, first:last] = samples[:, first - cursor : last - cursor][: len(placed)]
        cursor += count
    return np.zeros((1, length), np.float32) if placed is None else placed


def resample(line: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resamples (n,) to (ceil(n * new_rate / rate),), without delay, clipped to [-1, 1]."""
    if rate != new_rate:
        common = math.gcd(rate, new_rate)
        line = resample_poly(line, new_rate // common, rate // common).astype(np.float32)
    return np.clip(line, -1, 1)

"""Audio arithmetic on numpy arrays: any channels to one, frames by timestamp onto a line, any rate to another."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy.signal import resample_poly

GAP = 0.010  # seconds; smaller jumps are rounding of timestamps, and following them would click
EDGE = 0.010  # seconds of context that keeps the resampling filter's edges out of what is used
# How loud a channel is in the mix, as ITU-R BS.775 mixes 5.1 down; a channel not named is as loud as a front one.
WEIGHTS = {"FC": 1.0, "BL": 0.5, "BR": 0.5, "SL": 0.5, "SR": 0.5, "BC": 0.5, "LFE": 0.0}
FRONT = 0.7071
CANCELLED = 0.2  # a mix of less than so much of the first channel's amplitude has lost what the channels hold


def to_float(samples: np.ndarray) -> np.ndarray:
    """Samples of any format to float32 in [-1, 1]."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    return samples.astype(np.float32)


def mix_to_mono(samples: np.ndarray, names: list[str]) -> np.ndarray:
    """(channels, n) to (n,), weighted by the channels' places and normalised so that nothing clips."""
    if len(names) == 1:
        return samples[0]
    weights = np.array([WEIGHTS.get(name, FRONT) for name in names], np.float32)
    return weights @ samples / max(float(weights.sum()), FRONT)


def edges(rate: int, new_rate: int) -> tuple[int, int]:
    """Samples of context at the old and the new rate that span exactly the same time, about `EDGE` seconds."""
    common = math.gcd(rate, new_rate)
    down, up = rate // common, new_rate // common
    times = math.ceil(EDGE * rate / down)
    return times * down, times * up


def heard(lines: np.ndarray) -> np.ndarray:
    """What is listened to: the mix, or the first channel where the others cancel it out.

    A microphone that was wired the wrong way round makes the right channel the left one negated; their mix is silence.

    Args:
        lines: (1, n) the mix, or (2, n) the mix and the first channel.
    """
    if len(lines) == 1:
        return lines[0]
    mixed, first = (float(np.sqrt(np.square(line, dtype=np.float64).mean())) for line in lines)
    return lines[1] if mixed < CANCELLED * first else lines[0]


def lay_out(frames: Iterable[tuple[float, np.ndarray]], rate: int, length: int) -> np.ndarray:
    """Frames (lines, n) with their times in seconds to (lines, length) samples from time 0; silence where none are.

    A frame continues the one before unless its timestamp disagrees by more than `GAP`: containers round timestamps
    to as much as a millisecond. A frame with fewer lines than the first has its last line in the others.
    """
    laid: np.ndarray | None = None
    cursor: int | None = None
    for time, samples in frames:
        laid = np.zeros((len(samples), length), np.float32) if laid is None else laid
        told = round(time * rate)
        if cursor is None or abs(told - cursor) > GAP * rate:
            cursor = told
        if cursor >= length:
            break
        count = samples.shape[1]
        first, last = max(cursor, 0), min(cursor + count, length)
        if last > first:
            laid[:, first:last] = samples[:, first - cursor : last - cursor][: len(laid)]
        cursor += count
    return np.zeros((1, length), np.float32) if laid is None else laid


def resample(line: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """(n,) to (ceil(n * new_rate / rate),), without delay, in [-1, 1]."""
    if rate != new_rate:
        common = math.gcd(rate, new_rate)
        line = resample_poly(line, new_rate // common, rate // common).astype(np.float32)
    return np.clip(line, -1, 1)

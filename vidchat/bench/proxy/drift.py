"""Drift of sharpness and loudness from the beginning of a clip to its end (drift of identity: identity.py)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vidchat.bench.metric import Column, Features, Metric
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.data.media.read import Media

QUIETEST = -60.0  # dB; lower levels count as this
SHARE = 4  # the clip is divided into quarters
BLANK = 0.05  # mean absolute Laplacian below which a frame counts as blank


class SharpnessDrift(Metric):
    """Difference from the truth in the change of sharpness from the first quarter to the last, in percent.

    Sharpness is the mean absolute Laplacian of the grey frame. Its change is relative to the larger of the two
    quarters, so it lies between -100 % and 100 %.
    """

    dimension = "responsiveness"
    columns = (Column("sharpness drift %", "lower", digits=1, worst=200.0),)
    proxy = False

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": "mean absolute Laplacian, last quarter against first, of the larger, distance to the truth's",
            "libraries": versions("torch"),
        }

    def read(self, media: Media, truth: Media | None = None) -> Features:
        sharp = [sharpness(frame) for frame in media.frames]
        quarter = max(1, len(sharp) // SHARE)
        return {"sharp": np.array([np.mean(sharp[:quarter]), np.mean(sharp[-quarter:])])}

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return {"sharpness drift %": abs(_growth(generated["sharp"]) - _growth(truth["sharp"]))}


class LoudnessDrift(Metric):
    """Difference from the truth in the change of loudness from the first half to the last, in dB."""

    dimension = "responsiveness"
    columns = (Column("loudness drift dB", "lower", digits=1, worst=-2 * QUIETEST),)
    proxy = False
    turns = "speaking"

    def spec(self) -> Mapping[str, object]:
        return {"backend": "last half against first, distance to the truth's: RMS of what is not silent"}

    def read(self, media: Media, truth: Media | None = None) -> Features:
        halves = np.array_split(media.waveform.numpy(), 2)
        return {"loud": np.array([_loudness(half) for half in halves])}

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        rises = [features["loud"][1] - features["loud"][0] for features in (generated, truth)]
        silent = any(features["loud"].max() <= QUIETEST for features in (generated, truth))
        return {"loudness drift dB": float("nan") if silent else float(abs(rises[0] - rises[1]))}


def sharpness(frame: Tensor) -> float:
    """Returns the mean absolute Laplacian of a frame (3, H, W) in grey."""
    grey = frame.float().mean(0)
    neighbours = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((4 * grey[1:-1, 1:-1] - neighbours).abs().mean())


def _growth(sharp: NDArray[np.float64]) -> float:
    """Returns the change of two sharpnesses (2,) in percent of the larger; `nan` if both are blank."""
    first, last = map(float, sharp)
    return 100 * (last - first) / max(first, last) if max(first, last) > BLANK else float("nan")


def _loudness(samples: np.ndarray) -> float:
    """Returns the RMS of samples (n,) in dB of full scale, over the windows of 40 ms that are not silent."""
    windows = samples[: len(samples) // 640 * 640].reshape(-1, 640)
    power = (windows.astype(np.float64) ** 2).mean(1)
    spoken = power[power > 10 ** (QUIETEST / 10)]
    return max(QUIETEST, float(10 * np.log10(spoken.mean()))) if len(spoken) else QUIETEST

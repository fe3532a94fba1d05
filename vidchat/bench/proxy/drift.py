"""What becomes of a clip from its beginning to its end: sharpness and loudness. (Identity's is with identity.)"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vidchat.bench.metric import Column, Features, Metric
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.data.media.read import Media

QUIETEST = -60.0  # dB; quieter counts as this
SHARE = 4  # a window is a quarter of the clip
BLANK = 0.05  # mean absolute Laplacian below which a frame shows nothing


class SharpnessDrift(Metric):
    """How far the change of sharpness from first quarter to last is from the truth's own, in percent.

    Sharpness is the mean absolute Laplacian of the grey frame; its change is reckoned in shares of the larger of the
    two quarters, so it lies within 100 % either way.
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
        sharp = []
        for frame in media.frames:
            grey = frame.float().mean(0)
            around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
            sharp.append(float((4 * grey[1:-1, 1:-1] - around).abs().mean()))
        quarter = max(1, len(sharp) // SHARE)
        return {"sharp": np.array([np.mean(sharp[:quarter]), np.mean(sharp[-quarter:])])}

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return {"sharpness drift %": abs(_growth(made["sharp"]) - _growth(true["sharp"]))}


class LoudnessDrift(Metric):
    """How far the change of loudness from first half to last is from the truth's own, in dB."""

    dimension = "responsiveness"
    columns = (Column("loudness drift dB", "lower", digits=1, worst=-2 * QUIETEST),)
    proxy = False
    turns = "speaking"

    def spec(self) -> Mapping[str, object]:
        return {"backend": "last half against first, distance to the truth's: RMS of what is not silent"}

    def read(self, media: Media, truth: Media | None = None) -> Features:
        halves = np.array_split(media.waveform.numpy(), 2)
        return {"loud": np.array([_loudness(half) for half in halves])}

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        rises = [features["loud"][1] - features["loud"][0] for features in (made, true)]
        silent = any(features["loud"].max() <= QUIETEST for features in (made, true))
        return {"loudness drift dB": float("nan") if silent else float(abs(rises[0] - rises[1]))}


def _growth(sharp: NDArray[np.float64]) -> float:
    """Percent of the larger of two sharpnesses; `nan` where nothing was ever to be seen."""
    first, last = map(float, sharp)
    return 100 * (last - first) / max(first, last) if max(first, last) > BLANK else float("nan")


def _loudness(samples: np.ndarray) -> float:
    """RMS in dB of full scale over the 40 ms pieces that are not silent."""
    pieces = samples[: len(samples) // 640 * 640].reshape(-1, 640)
    power = (pieces.astype(np.float64) ** 2).mean(1)
    spoken = power[power > 10 ** (QUIETEST / 10)]
    return max(QUIETEST, float(10 * np.log10(spoken.mean()))) if len(spoken) else QUIETEST

"""What becomes of a clip from its beginning to its end: sharpness and loudness. (Identity's is with identity.)"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vidchat.bench.measure import Column, Features, Measure
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.data.media.read import Media

QUIETEST = -60.0  # dB; quieter counts as this
SHARE = 4  # a window is a quarter of the clip


class Drift(Measure):
    """Change of sharpness from first quarter to last in percent, of loudness from first half to last in dB.

    The truth's own change is subtracted. Sharpness is the mean absolute Laplacian of the grey picture: a clip that
    blurs as it goes on has negative drift.
    """

    dimension = "responsiveness"
    columns = (Column("sharpness drift %", "zero", digits=1), Column("loudness drift dB", "zero", digits=1))
    proxy = False

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": "end against beginning, less the truth's: mean absolute Laplacian of quarters, RMS of halves",
            "libraries": versions("torch"),
        }

    def read(self, media: Media, truth: Media | None = None) -> Features:
        sharp = []
        for picture in media.pictures:
            grey = picture.float().mean(0)
            around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
            sharp.append(float((4 * grey[1:-1, 1:-1] - around).abs().mean()))
        quarter = max(1, len(sharp) // SHARE)
        quarters = np.array([np.mean(sharp[:quarter]), np.mean(sharp[-quarter:])])
        halves = np.array_split(media.waveform.numpy(), 2)
        return {"sharp": quarters, "loud": np.array([_loudness(half) for half in halves])}

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        blur = [100 * (s[1] - s[0]) / s[0] if s[0] > 0.05 else -100.0 for s in (made["sharp"], true["sharp"])]
        rise = [features["loud"][1] - features["loud"][0] for features in (made, true)]
        return {"sharpness drift %": float(blur[0] - blur[1]), "loudness drift dB": float(rise[0] - rise[1])}


def _loudness(samples: np.ndarray) -> float:
    """RMS in dB of full scale over the 40 ms pieces that are not silent."""
    pieces = samples[: len(samples) // 640 * 640].reshape(-1, 640)
    power = (pieces.astype(np.float64) ** 2).mean(1)
    spoken = power[power > 10 ** (QUIETEST / 10)]
    return max(QUIETEST, float(10 * np.log10(spoken.mean()))) if len(spoken) else QUIETEST

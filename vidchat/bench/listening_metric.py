"""Metrics of a responder who only listens: loudness, mouth motion and head motion against the true listener's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from vidchat.bench.faces import MOUTH, FaceFinder, crops, region_boxes
from vidchat.bench.metric import Column, Features, Metric
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.bench.proxy.sync import SIZE, motion, sway
from vidchat.data.media.read import Media

QUIETEST = -60.0  # dB of full scale; lower levels count as this
ROOM = -40.0  # dB; a true answer without text whose loudest 40 ms are below this says nothing
FACE = (48, 48)  # size of the face crop
STILL_MOUTH, STILL_HEAD = 0.002, 0.01  # motion due to camera noise and codec, added to both sides of a ratio
MOST = 6.0  # octaves, a ratio of 64


def is_listening(pair: Pair, truth: Media) -> bool:
    """Returns whether the true answer only listens: by its branch, or because it has neither words nor loud audio."""
    if pair.branch == "listening":
        return True
    windows = truth.waveform[: len(truth.waveform) // 640 * 640].view(-1, 640)
    return not pair.truth.text and (not len(windows) or _level(windows.square().mean(1).max()) < ROOM)


class Listening(Metric):
    """Distances of a listener's loudness, mouth motion and head motion from the true listener's.

    `audio over truth dB` is by how many dB the answer is louder than the truth, which reveals a listener who talks;
    silence counts as 0. `mouth motion` and `head motion` are absolute differences of log2 of the mean motion: 1 means
    twice or half the truth's motion. Whether a nod comes at the right moment is not measured.

    Args:
        finder: Face finder.
    """

    dimension = "listening"
    columns = (
        Column("audio over truth dB", "lower", digits=1, worst=-QUIETEST),
        Column("mouth motion", "lower", digits=2, worst=MOST),
        Column("head motion", "lower", digits=2, worst=MOST),
    )
    proxy = False
    turns = "listening"

    def __init__(self, finder: FaceFinder) -> None:
        self.finder = finder

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": "RMS, mean change of the mouth held still, mean shift of the face, against the true listener's",
            **self.finder.spec(),
            "frames": "all",
            "libraries": versions("torch"),
        }

    def read(self, media: Media, truth: Media | None = None) -> Features:
        boxes = self.finder(media).boxes
        mouth = crops(media.frames, region_boxes(boxes, MOUTH), SIZE).mean(1)
        return {
            "level": np.array(_level(media.waveform.square().mean()) if len(media.waveform) else QUIETEST),
            "mouth": np.array(motion(mouth).mean()),
            "head": np.array(_shifts(crops(media.frames, boxes[:1].repeat(len(boxes), 0), FACE).mean(1))),
        }

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return {
            "audio over truth dB": max(0.0, float(generated["level"] - truth["level"])),
            "mouth motion": _octaves(generated["mouth"], truth["mouth"], STILL_MOUTH),
            "head motion": _octaves(generated["head"], truth["head"], STILL_HEAD),
        }


def _shifts(face: Tensor) -> float:
    """Returns the mean shift between frames, in pixels of the crop, of grey crops (N, h, w) from one fixed box."""
    return float(sway(face).diff(dim=0).norm(dim=1).mean()) if len(face) > 1 else 0.0


def _level(power: Tensor) -> float:
    """Returns a power in dB of full scale."""
    return max(QUIETEST, float(10 * power.clamp(min=1e-12).log10()))


def _octaves(generated: np.ndarray, truth: np.ndarray, still: float) -> float:
    return abs(float(np.log2((generated + still) / (truth + still))))

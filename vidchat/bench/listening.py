"""Listening measured as listening: is the listener as quiet, and mouth and head as still or lively, as the truth's?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from vidchat.bench.faces import MOUTH, FaceFinder, crops, part_of
from vidchat.bench.metric import Column, Features, Metric
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.bench.proxy.sync import SIZE, motion, sway
from vidchat.data.media.read import Media

QUIETEST = -60.0  # dB of full scale; quieter counts as this
ROOM = -40.0  # dB; a truth without text whose loudest 40 ms are below says nothing
FACE = (48, 48)  # of the face's crop
STILL_MOUTH, STILL_HEAD = 0.002, 0.01  # added to both sides of a ratio: what a camera's noise and a codec move
MOST = 6.0  # a ratio of 64


def is_listening(pair: Pair, truth: Media) -> bool:
    """Whether the true answer listens: its dialogue is of that branch, or it has neither words nor anything loud."""
    if pair.branch == "listening":
        return True
    pieces = truth.waveform[: len(truth.waveform) // 640 * 640].view(-1, 640)
    return not pair.truth.text and (not len(pieces) or _level(pieces.square().mean(1).max()) < ROOM)


class Listening(Metric):
    """How far a listener's audio, mouth and head are from the true listener's.

    `audio` is how many dB the answer is louder than the truth: a listener who talks; silence is never too quiet.
    `mouth motion` and `head motion` are distances of log2 of the mean motion: 1 is twice or half the truth's. A frozen
    face moves too little, a talking one too much. Whether a nod comes at the right moment is not measured.

    Args:
        finder: Where the face is.
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
        mouth = crops(media.frames, part_of(boxes, MOUTH), SIZE).mean(1)
        return {
            "level": np.array(_level(media.waveform.square().mean()) if len(media.waveform) else QUIETEST),
            "mouth": np.array(motion(mouth).mean()),
            "head": np.array(_shifts(crops(media.frames, boxes[:1].repeat(len(boxes), 0), FACE).mean(1))),
        }

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return {
            "audio over truth dB": max(0.0, float(made["level"] - true["level"])),
            "mouth motion": _octaves(made["mouth"], true["mouth"], STILL_MOUTH),
            "head motion": _octaves(made["head"], true["head"], STILL_HEAD),
        }


def _shifts(face: Tensor) -> float:
    """Mean shift from frame to frame, in pixels of the crop, of a grey region (N, h, w) that stands still itself."""
    return float(sway(face).diff(dim=0).norm(dim=1).mean()) if len(face) > 1 else 0.0


def _level(power: Tensor) -> float:
    """dB of full scale."""
    return max(QUIETEST, float(10 * power.clamp(min=1e-12).log10()))


def _octaves(made: np.ndarray, true: np.ndarray, still: float) -> float:
    return abs(float(np.log2((made + still) / (true + still))))

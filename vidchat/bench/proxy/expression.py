"""A stand-in for the 64 expression coefficients of Deep3DFaceRecon: how the lines of mouth, eyes and brows run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidchat.bench.faces import FaceFinder, crops, part_of
from vidchat.bench.metric import Column, Features, Metric
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.data.media.read import Media

PARTS = {"mouth": (0.10, 0.50, 0.90, 0.98), "eyes and brows": (0.08, 0.15, 0.92, 0.60)}  # as shares of the face
SIZE, CELLS, DIRECTIONS = (32, 48), 2, 8
STEP = 2


class ExpressionLines(Metric):
    """Fréchet distance over 64 numbers that say how the lines of a face run, less the clip's first frame's.

    The numbers are histograms of edge directions (eight, each way) in two by two fields of the mouth and of the eyes:
    corners of a mouth that rise or fall turn its lines, whereas a head that sways hardly does; subtracting the first
    frame's takes out who it is. `emotion FID` compares sets, so it does not see who smiles, only how many;
    `expression` is the distance from the true answer's mean over the second half, pair by pair.

    Args:
        finder: Where the face is.
    """

    dimension = "emotion"
    doubt = "On filmed people edges of beards, glasses and turning heads weigh as much as those of a smile."
    columns = (Column("emotion FID", "lower", "frechet"), Column("expression", "lower", worst=4.0))

    def __init__(self, finder: FaceFinder) -> None:
        self.finder = finder

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": f"edge directions of {', '.join(PARTS)} ({len(PARTS) * CELLS**2 * DIRECTIONS} numbers)",
            **self.finder.spec(),
            "frames": f"every {STEP}th",
            "libraries": versions("torch"),
        }

    def read(self, media: Media, truth: Media | None = None) -> Features:
        boxes, frames = self.finder(media).boxes[::STEP], media.frames[::STEP]
        parts = [crops(frames, part_of(boxes, part), SIZE).mean(1) for part in PARTS.values()]
        lines = torch.cat([edge_directions(part) for part in parts], dim=1)
        return {"rows": (lines - lines[:1]).numpy()}

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        length = len(true["rows"])
        if len(made["rows"]) <= length // 2:
            return {"expression": float("nan")}  # it ends before a feeling has come
        later = slice(length // 2, length)
        difference = made["rows"][later].mean(0) - true["rows"][later].mean(0)
        return {"expression": float(np.linalg.norm(difference))}

    def absent(self, true: Features) -> Features:
        """Numbers beyond reach: those of a clip are differences of two vectors no longer than sqrt 2, so at most 2."""
        return {"rows": np.full_like(true["rows"], 6 / np.sqrt(true["rows"].shape[1]))}


def edge_directions(grey: Tensor) -> Tensor:
    """(N, 8 * CELLS^2) histograms of edge directions, of length 1, of frames (N, h, w); 0 for a blank one."""
    down = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    right = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    strength = (down.square() + right.square()).sqrt()
    place = torch.atan2(down, right).remainder(math.pi) / math.pi * DIRECTIONS
    fields = []
    for direction in range(DIRECTIONS):
        away = (place - direction).abs()
        share = (1 - torch.minimum(away, DIRECTIONS - away)).clamp(min=0)
        fields.append(F.adaptive_avg_pool2d((strength * share)[:, None], CELLS).flatten(1))
    histogram = torch.cat(fields, dim=1)
    return histogram / (histogram.norm(dim=1, keepdim=True) + 1e-3)

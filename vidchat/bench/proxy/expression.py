"""Proxy of the 64 expression coefficients of Deep3DFaceRecon: edge directions of mouth, eyes and brows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidchat.bench.faces import FaceFinder, crops, region_boxes
from vidchat.bench.metric import Column, Features, Metric
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.data.media.read import Media

PARTS = {"mouth": (0.10, 0.50, 0.90, 0.98), "eyes and brows": (0.08, 0.15, 0.92, 0.60)}  # shares of the face box
SIZE, CELLS, DIRECTIONS = (32, 48), 2, 8
STEP = 2


class EdgeDirections(Metric):
    """Fréchet distance over 64 features that describe the edge directions of a face, relative to the first frame.

    The features are histograms of eight edge directions in two by two cells of the mouth and of the eyes. When the
    corners of a mouth rise or fall, its edges turn; when the head sways, they hardly do. Subtracting the features of
    the first frame removes the identity. `emotion FID` compares sets, so it does not see who smiles, only how many;
    `expression` is the distance from the true answer's mean over the second half, pair by pair.

    Args:
        finder: Face finder.
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
        parts = [crops(frames, region_boxes(boxes, part), SIZE).mean(1) for part in PARTS.values()]
        lines = torch.cat([edge_directions(part) for part in parts], dim=1)
        return {"rows": (lines - lines[:1]).numpy()}

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        length = len(truth["rows"])
        if len(generated["rows"]) <= length // 2:
            return {"expression": float("nan")}  # it ends before an expression has developed
        later = slice(length // 2, length)
        difference = generated["rows"][later].mean(0) - truth["rows"][later].mean(0)
        return {"expression": float(np.linalg.norm(difference))}

    def absent(self, truth: Features) -> Features:
        """Returns features of norm 6; those of a clip have a norm of at most 2 sqrt 2."""
        return {"rows": np.full_like(truth["rows"], 6 / np.sqrt(truth["rows"].shape[1]))}


def edge_directions(grey: Tensor) -> Tensor:
    """Returns normalised histograms of edge directions, (N, 8 * CELLS^2), of frames (N, h, w); 0 for a blank frame."""
    down = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    right = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    strength = (down.square() + right.square()).sqrt()
    angle = torch.atan2(down, right).remainder(math.pi) / math.pi * DIRECTIONS
    cells = []
    for direction in range(DIRECTIONS):
        distance = (angle - direction).abs()
        share = (1 - torch.minimum(distance, DIRECTIONS - distance)).clamp(min=0)
        cells.append(F.adaptive_avg_pool2d((strength * share)[:, None], CELLS).flatten(1))
    histogram = torch.cat(cells, dim=1)
    return histogram / (histogram.norm(dim=1, keepdim=True) + 1e-3)

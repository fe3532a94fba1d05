"""What a drawn face does, read from its pixels by ridge regressions fitted to the renderer's exact truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Floats = NDArray[np.float64]

HEAD = (0.10, 0.85, 0.22, 0.78)  # top, bottom, left and right edge of the head, as shares of the frame
MOUTH = (0.52, 0.78, 0.33, 0.67)  # the same of the mouth, at any sway of the head


def crop(frames: Tensor, box: tuple[float, float, float, float], size: int) -> Tensor:
    """Crops every frame (n, 3, H, W) to a box and resizes it: (n, 3, size, size) in [0, 1]."""
    height, width = frames.shape[-2:]
    top, bottom, left, right = (
        round(share * side) for share, side in zip(box, (height, height, width, width), strict=True)
    )
    region = frames[..., top:bottom, left:right].float() / 255
    return F.interpolate(region, (size, size), mode="area")


class PixelReader:
    """Reads a number from each frame of a clip.

    Args:
        penalty: Weight of the squared coefficients in the regression.
    """

    def __init__(self, penalty: float = 10.0) -> None:
        self.penalty = penalty
        self.weights = torch.zeros(0)

    @staticmethod
    def features(frames: Tensor) -> Tensor:
        """Returns (n, D) features of frames (n, 3, H, W), relative to the first."""
        raise NotImplementedError

    def fit(self, clips: Sequence[Tensor], values: Sequence[Sequence[float]]) -> Self:
        """Fits to clips (n, 3, H, W) whose first frame is at rest, and to the true values (n,) of their frames."""
        x = torch.cat([_with_constant(self.features(clip)) for clip in clips]).double()
        y = torch.cat([torch.as_tensor(value) for value in values]).double()
        self.weights = torch.linalg.solve(x.T @ x + self.penalty * torch.eye(x.shape[1]).double(), x.T @ y).float()
        return self

    def read(self, frames: Tensor) -> Floats:
        """Returns the values (n,) of frames (n, 3, H, W), of which the first is at rest."""
        return (_with_constant(self.features(frames)) @ self.weights).numpy().astype(np.float64)


class MouthReader(PixelReader):
    """Reads the opening of the mouth, 0 (shut) .. 1."""

    @staticmethod
    def features(frames: Tensor) -> Tensor:
        """Returns (n, D) differences from the first frame around the mouth."""
        mouth = crop(frames, MOUTH, 12).flatten(1)
        change = mouth - mouth[:1]
        return torch.cat([change, change.abs()], dim=1)


class NodReader(PixelReader):
    """Reads how far a nod has lowered the head, 0 (not at all) .. 1 (the deepest point of a nod)."""

    SIZE, REACH, ROWS = 72, 8, 3

    def __init__(self, penalty: float = 1.0) -> None:
        super().__init__(penalty)

    @staticmethod
    def features(frames: Tensor) -> Tensor:
        """Returns (n, D) downward shifts of three rows of the head since the first frame, in pixels of the crop."""
        size, reach = NodReader.SIZE, NodReader.REACH
        head = crop(frames, HEAD, size).mean(1)
        first = head[:1, reach:-reach]
        costs = [
            F.adaptive_avg_pool2d(
                (head[:, reach + shift : size - reach + shift] - first).square()[:, None], (NodReader.ROWS, 1)
            )
            for shift in range(-reach, reach + 1)
        ]
        return _lowest(torch.cat(costs, dim=1)).flatten(1) - reach


def _lowest(costs: Tensor) -> Tensor:
    """Returns where the costs (n, D, ...) are lowest along D, to a fraction of a place, by a parabola: (n, ...)."""
    place = costs[:, 1:-1].argmin(1, keepdim=True) + 1
    before, at, after = (costs.gather(1, place + step)[:, 0] for step in (-1, 0, 1))
    bend = before - 2 * at + after
    return place[:, 0] + torch.where(bend > 1e-9, (before - after) / (2 * bend.clamp(min=1e-9)), 0.0).clamp(-0.5, 0.5)


def _with_constant(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones(len(features), 1)], dim=1)

"""Smooth shapes on a PIL image: curves, tapered strokes, and the affine frame that a head tilts in.

Unit coordinates: the shorter side of the frame is 1, (0, 0) is its centre, y points down.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import cos, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = NDArray[np.float64]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `share` (0..1) of the way from a to b."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def darker(colour: Colour, share: float) -> Colour:
    """Towards a deep warm violet rather than black, so that shadows stay alive."""
    return mix(colour, (52, 24, 58), share)


def lighter(colour: Colour, share: float) -> Colour:
    return mix(colour, (255, 250, 240), share)


def ellipse(cx: float, cy: float, rx: float, ry: float, n: int = 28) -> Points:
    """(n, 2) points of an ellipse."""
    return np.array((cx, cy)) + np.array((rx, ry)) * _circle(n)


@cache
def _circle(n: int) -> Points:
    angle = np.linspace(0.0, 2 * np.pi, n, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def curve(points: Points | list[tuple[float, float]], steps: int = 6, closed: bool = False) -> Points:
    """A Catmull-Rom spline through the points: (m, 2)."""
    p = np.asarray(points, dtype=np.float64)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None, :] for i in range(4))
    spline = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.concatenate([spline.reshape(-1, 2), p[-2:-1]])


def ribbon(points: Points, width: float, ends: float = 0.35) -> Points:
    """A stroke along the points as a polygon, full `width` in the middle, `ends` of it at both ends."""
    along = np.gradient(points, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.maximum(np.hypot(*along.T), 1e-9)[:, None]
    taper = ends + (1 - ends) * np.sin(np.linspace(0.0, np.pi, len(points)))
    offset = normal * (taper * width / 2)[:, None]
    return np.concatenate([points + offset, (points - offset)[::-1]])


@dataclass(frozen=True)
class Frame:
    """Unit coordinates turned by `tilt` (radians) about (0, pivot), shifted by (dx, dy), and enlarged by `zoom`."""

    tilt: float = 0.0
    dx: float = 0.0
    dy: float = 0.0
    pivot: float = 0.0
    zoom: float = 1.0

    def apply(self, points: Points) -> Points:
        x, y = points[:, 0], points[:, 1] - self.pivot
        c, s = cos(self.tilt), sin(self.tilt)
        placed = np.empty_like(points)
        placed[:, 0] = c * x - s * y + self.dx
        placed[:, 1] = s * x + c * y + self.pivot + self.dy
        return self.zoom * placed


class Brush:
    """Draws unit-coordinate shapes into an image, through a frame."""

    def __init__(self, image: Image.Image, frame: Frame) -> None:
        self.scale = min(image.size)
        self.centre = np.array([image.width / 2, image.height / 2])
        self.frame = frame
        self.draw = ImageDraw.Draw(image)

    def fill(self, points: Points, colour: Colour) -> None:
        """Fill the polygon."""
        pixels = self.frame.apply(points) * self.scale + self.centre
        self.draw.polygon(pixels.ravel().tolist(), fill=colour)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, colour: Colour) -> None:
        self.fill(ellipse(cx, cy, rx, ry), colour)

    def stroke(self, points: Points, width: float, colour: Colour, ends: float = 0.35) -> None:
        """A smooth stroke, `width` wide in the middle."""
        self.fill(ribbon(points, width, ends), colour)

    def outline(self, points: Points, width: float, colour: Colour) -> None:
        """The closed outline of a polygon."""
        loop = np.concatenate([points, points[:2]])
        pixels = self.frame.apply(loop) * self.scale + self.centre
        self.draw.line(
            pixels.ravel().tolist(),
            fill=colour,
            width=max(1, round(width * self.scale * self.frame.zoom)),
            joint="curve",
        )

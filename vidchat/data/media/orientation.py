"""Orientation of a decoded frame: the transformation to upright that its display matrix specifies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from av import VideoFrame
from av.sidedata.sidedata import SideDataContainer, Type


class Orientation(NamedTuple):
    """Transformation of a stored frame to upright; its steps are applied in this order.

    Attributes:
        transposed: Whether rows and columns are swapped.
        mirrored: Whether left and right are then swapped.
        flipped: Whether top and bottom are then swapped.
    """

    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns (height, width) of the upright frame from those of the stored frame, or the reverse."""
        return (width, height) if self.transposed else (height, width)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Returns a stored frame (H, W, C) upright, as a view."""
        upright = pixels.transpose(1, 0, 2) if self.transposed else pixels
        return upright[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]


def orientation(frame: VideoFrame) -> Orientation:
    """Returns a frame's orientation: of the eight axis-aligned ones, the nearest to its display matrix."""
    matrix = _matrix(frame)
    if matrix is None:
        return Orientation()
    # A stored point (x, y) is shown at (a x + c y, b x + d y).
    a, b, c, d = (int(matrix[k]) for k in (0, 1, 3, 4))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def _matrix(frame: VideoFrame) -> np.ndarray | None:
    """Returns the display matrix by rows in fixed point, (9,); `None` if the frame has none."""
    try:
        # Not `frame.side_data`: its reference cycle would keep frames until the garbage collector runs.
        data = SideDataContainer(frame).get(Type.DISPLAYMATRIX)  # type: ignore[call-arg]
    except ValueError:  # PyAV reads no side data if the type of one entry is unknown
        turns = round(frame.rotation / 90) % 4  # counter-clockwise
        a, b = ((1, 0), (0, -1), (-1, 0), (0, 1))[turns]
        return np.array([a, b, 0, -b, a, 0, 0, 0, 1])
    return None if data is None else np.frombuffer(data, np.int32, 9)

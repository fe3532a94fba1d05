"""How a decoded frame is turned and mirrored to stand upright, as its display matrix says."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from av import VideoFrame
from av.sidedata.sidedata import SideDataContainer, Type


class Orientation(NamedTuple):
    """What makes a stored frame upright, in this order.

    Attributes:
        transposed: Whether rows and columns change places.
        mirrored: Whether left and right then change places.
        flipped: Whether top and bottom then change places.
    """

    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the upright frame from those of the stored one, and back."""
        return (width, height) if self.transposed else (height, width)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """A stored frame (H, W, C) upright; a view."""
        upright = pixels.transpose(1, 0, 2) if self.transposed else pixels
        return upright[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]


def orientation(frame: VideoFrame) -> Orientation:
    """The orientation that a frame's display matrix asks for: the nearest of the eight that keep it a rectangle."""
    matrix = _matrix(frame)
    if matrix is None:
        return Orientation()
    # A stored point (x, y) is shown at (a x + c y, b x + d y).
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def _matrix(frame: VideoFrame) -> np.ndarray | None:
    """(9,) the display matrix by rows, in fixed point; `None` where there is none."""
    try:
        # Not `frame.side_data`, which makes a cycle of references: frames would wait for the garbage collector.
        data = SideDataContainer(frame).get(Type.DISPLAYMATRIX)  # type: ignore[call-arg]
    except ValueError:  # PyAV gives up on all side data where it does not know the type of one
        turns = round(frame.rotation / 90) % 4  # counter-clockwise
        a, b = ((1, 0), (0, -1), (-1, 0), (0, 1))[turns]
        return np.array([a, b, 0, -b, a, 0, 0, 0, 1])
    return None if data is None else np.frombuffer(data, np.int32, 9)

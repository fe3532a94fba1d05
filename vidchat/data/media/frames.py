"""Resampling of decoded frames in time and space: selection at fixed instants, scaling and cropping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TypeVar

import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter

from vidchat.data.media.colours import to_rgb
from vidchat.data.media.orientation import orientation

T = TypeVar("T")


def resample_frames(frames: Iterable[tuple[float, float, T]], fps: int) -> Iterator[T]:
    """Yields the frame shown at each instant 0, 1/fps, 2/fps, ..., up to the end of the last frame.

    This is the nearest frame, but never one more than half a period ahead, so that a frame that lasts a second is shown
    for that second. From 12.5 to 25 frames per second, each frame is shown twice.

    Args:
        frames: (time, duration, frame) in order of time, in seconds; times may be negative.
        fps: Frames per second of the result.
    """
    count, end, shown = 0, 0.0, None
    for time, duration, frame in frames:
        while shown is not None and count / fps < time:
            ahead, behind = time - count / fps, abs(count / fps - shown[0])
            if ahead < min(behind, 0.5 / fps):
                break
            yield shown[1]
            count += 1
        shown, end = (time, frame), time + duration
    while shown is not None and end > 0 and (count == 0 or (count + 0.5) / fps <= end):
        yield shown[1]
        count += 1


def cover(
    frame: VideoFrame, size: tuple[int, int], pixel_aspect: Fraction, reformatter: VideoReformatter
) -> np.ndarray:
    """Scales a frame to cover `size`, crops its centre and turns it upright: (3, H, W) uint8.

    Args:
        frame: Decoded frame with its display matrix.
        size: (height, width) of the result.
        pixel_aspect: Width over height of the frame's pixels.
        reformatter: Scaler, reused from frame to frame because creating one is slow.
    """
    turn = orientation(frame)
    height, width = turn.size(*size)
    shown_width = float(frame.width * pixel_aspect)
    scale = max(height / frame.height, width / shown_width)
    new_height, new_width = max(height, round(frame.height * scale)), max(width, round(shown_width * scale))
    scaled = to_rgb(frame, new_height, new_width, reformatter)
    top, left = (new_height - height) // 2, (new_width - width) // 2
    upright = turn.apply(scaled[top : top + height, left : left + width])
    return np.ascontiguousarray(upright.transpose(2, 0, 1))


def crop(
    frame: VideoFrame,
    box: tuple[float, float, float, float],
    pixel_aspect: Fraction,
    longest_side: int | None,
    reformatter: VideoReformatter,
) -> np.ndarray:
    """Crops an upright frame to a box, with square pixels and even sides: (3, H, W) uint8.

    Args:
        frame: Decoded frame with its display matrix.
        box: Left, upper, right and lower edge as shares of the upright frame, 0 to 1.
        pixel_aspect: Width over height of the frame's pixels.
        longest_side: Longest side of the result in pixels; larger crops are scaled down.
        reformatter: Scaler, reused from frame to frame.
    """
    turn = orientation(frame)
    height, width = frame.height, round(frame.width * pixel_aspect)
    upright = turn.size(height, width)
    x1, y1, x2, y2 = box
    scale = 1.0
    if longest_side is not None:
        scale = min(1.0, longest_side / max((x2 - x1) * upright[1], (y2 - y1) * upright[0], 1.0))
    full_size = (max(2, round(height * scale)), max(2, round(width * scale)))
    pixels = turn.apply(to_rgb(frame, *full_size, reformatter))
    (top, bottom), (left, right) = _even(y1, y2, pixels.shape[0]), _even(x1, x2, pixels.shape[1])
    return np.ascontiguousarray(pixels[top:bottom, left:right].transpose(2, 0, 1))


def _even(first: float, last: float, size: int) -> tuple[int, int]:
    """Returns the pixel range [begin, end) between two edges: even in length, at least two, within the frame."""
    begin = min(max(0, round(first * size)), max(0, size - 2))
    count = max(2, min(round(last * size), size) - begin)
    return begin, begin + count - count % 2

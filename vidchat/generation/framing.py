"""The frame size of an answer, and warnings about what is cropped from its input files.

As in training, a frame is scaled until it covers the model's frame size, and then cropped at its centre; it is never
padded. A model that was trained on both orientations (`data.allow_portrait=true`) answers in that of the reference.
"""

from __future__ import annotations

import logging
from pathlib import Path

from vidchat.data.media.read import frame_size, is_wide
from vidchat.release import Release

log = logging.getLogger(__name__)
VISIBLE = 0.02  # fraction of a side; a smaller crop causes no warning


def answer_size(release: Release, reference: Path) -> tuple[int, int]:
    """Returns the (height, width) of an answer.

    Raises:
        MediaError: the reference cannot be read.
    """
    height, width = release.size
    if not release.allow_portrait or height == width:
        return height, width
    turned = is_wide(reference) != (width > height)  # as in `ClipEncoder`: a square counts as portrait
    return (width, height) if turned else (height, width)


def warn_of_cropping(name: str, path: Path, size: tuple[int, int]) -> None:
    """Logs a warning if a visible part of a file's frames is cropped.

    Args:
        name: Role of the file, e.g. `reference`.
        path: The file.
        size: The (height, width) of the answer.

    Raises:
        MediaError: the file cannot be read.
    """
    height, width = frame_size(path)
    scale = max(size[0] / height, size[1] / width)
    cropped = {"height": 1 - size[0] / (scale * height), "width": 1 - size[1] / (scale * width)}
    side = max(cropped, key=lambda side: cropped[side])
    if cropped[side] >= VISIBLE:
        log.warning(
            "%s=%s is %dx%d (height x width) and the answer is %dx%d: %.0f %% of its %s is cropped, half at each end; "
            "crop the file yourself to choose the visible part",
            name, path, height, width, *size, 100 * cropped[side], side,
        )  # fmt: skip

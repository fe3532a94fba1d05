"""The frame that an answer has, and what of the files it starts from lies outside.

One rule, the one of training: a frame is scaled until it covers the model's, and cropped at its centre. Nothing is ever
padded. A model that was trained on both orientations (`data.allow_portrait=true`) answers in that of the reference.
"""

from __future__ import annotations

import logging
from pathlib import Path

from vidchat.data.media.read import frame_size, is_wide
from vidchat.release import Release

log = logging.getLogger(__name__)
VISIBLE = 0.02  # of a side: what less than this is cut off is not worth a word


def frame_of(release: Release, reference: Path) -> tuple[int, int]:
    """(height, width) of an answer; raises `MediaError` if the reference cannot be read."""
    height, width = release.size
    if not release.allow_portrait or height == width:
        return height, width
    turned = is_wide(reference) != (width > height)  # as `ClipEncoder` has it: what is square counts as high
    return (width, height) if turned else (height, width)


def warn_of_cropping(name: str, path: Path, frame: tuple[int, int]) -> None:
    """Says how much of a file's frames is not seen by a model of this frame, if that is visible.

    Args:
        name: What the file is, e.g. `reference`.
        path: The file.
        frame: (height, width) of the model's.

    Raises:
        MediaError: it cannot be read.
    """
    height, width = frame_size(path)
    scale = max(frame[0] / height, frame[1] / width)
    lost = {"height": 1 - frame[0] / (scale * height), "width": 1 - frame[1] / (scale * width)}
    side = max(lost, key=lambda side: lost[side])
    if lost[side] >= VISIBLE:
        log.warning(
            "%s=%s is %dx%d (height x width) and the answer %dx%d: %.0f %% of its %s is cropped, half at each end; "
            "crop it yourself to choose what is seen",
            name, path, height, width, *frame, 100 * lost[side], side,
        )  # fmt: skip

"""Assigns the true answers' lengths to a system's answers for distances between sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from vidchat.data.media.read import MediaError, length_of
from vidchat.dialogue import Clip


def assign_spans(lengths: Sequence[int], spans: Sequence[int]) -> list[int]:
    """Assigns spans to answers so that the fewest frames are missing in total, with as few exchanges as possible.

    So the same clips in another order miss nothing, and are the same set. Answers that are all long enough, or all too
    short, keep their own spans.

    Args:
        lengths: Number of frames of each answer.
        spans: Number of frames of each answer's own truth, as many.

    Returns:
        A permutation of `spans`.
    """
    count = len(spans)
    missing = np.maximum(0, np.array(spans)[None] - np.array(lengths)[:, None])
    if not missing.diagonal().any():
        return list(spans)
    moved = 1 - np.eye(count, dtype=np.int64)
    _, chosen = linear_sum_assignment(missing * (count + 1) + moved)  # all exchanges weigh less than one frame
    return [spans[index] for index in chosen]


def count_frames(clip: Clip, fps: int, longest: float | None) -> int:
    """Returns the number of frames of a clip that count, by its header; 0 if it cannot be opened.

    Args:
        clip: Clip.
        fps: Frame rate at which it is scored.
        longest: Length in seconds beyond which nothing counts; `None` for no limit.
    """
    try:
        end = length_of(clip.path) if clip.end is None else clip.end
    except (MediaError, OSError):
        return 0
    seconds = end - clip.start
    return max(0, round(fps * (seconds if longest is None else min(seconds, longest))))

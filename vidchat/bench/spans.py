"""Which of the true answers' lengths counts of which answer, where only the set of all answers counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from vidchat.data.media.read import MediaError, length_of
from vidchat.dialogue import Clip


def assign_spans(lengths: Sequence[int], spans: Sequence[int]) -> list[int]:
    """Deals spans out to answers so that least is lacking in all; where nothing is gained, each keeps its own.

    So the same clips in another order lack nothing, and are the same set; answers that are all long enough, or all
    too short, keep their own spans.

    Args:
        lengths: Frames of each answer.
        spans: Frames of each answer's own truth; as many.

    Returns:
        A permutation of `spans`.
    """
    count = len(spans)
    lack = np.maximum(0, np.array(spans)[None] - np.array(lengths)[:, None])
    if not lack.diagonal().any():
        return list(spans)
    moved = 1 - np.eye(count, dtype=np.int64)
    _, chosen = linear_sum_assignment(lack * (count + 1) + moved)  # all moves together weigh less than one frame
    return [spans[place] for place in chosen]


def frames_of(clip: Clip, fps: int, longest: float | None) -> int:
    """How many frames of a clip can count, by its header; 0 if it cannot be opened.

    Args:
        clip: The clip.
        fps: Frames per second at which it is scored.
        longest: Seconds beyond which nothing counts.
    """
    try:
        end = length_of(clip.path) if clip.end is None else clip.end
    except (MediaError, OSError):
        return 0
    seconds = end - clip.start
    return max(0, round(fps * (seconds if longest is None else min(seconds, longest))))

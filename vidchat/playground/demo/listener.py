"""Scores of a listener: nods that follow what is heard, a mouth that stays shut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scipy.signal import find_peaks

from vidchat.playground.people.listening import NOD_SECONDS

Floats = NDArray[np.float64]

DEEP = 0.17
"""Reading of `NodReader` above which a dip is a nod; speech dips less, and a tokenizer flattens nods by 25 %."""
REST = 1.0
"""Seconds over which the median is the head's position at rest."""
TOLERANCE = 0.5
"""Seconds after the end of a phrase in which a nod follows it."""
OPEN = 0.35
"""Reading of `MouthReader` above which a mouth is open."""


def find_nods(lowered: Floats, fps: int) -> Floats:
    """Returns the starts of nods, in seconds, from readings (n,) of how far the head is lowered."""
    dips = lowered - median_filter(lowered, round(REST * fps), mode="nearest")
    deepest, _ = find_peaks(dips, height=DEEP, distance=max(1, round(NOD_SECONDS * fps)))
    return np.asarray(deepest / fps - NOD_SECONDS / 2)


def dips(nods: Sequence[Sequence[float]], frames: int, fps: int) -> Floats:
    """Returns how far nods (start and end, in seconds) lower the head at each frame (frames,): 0 .. 1."""
    time = np.arange(frames) / fps
    phases = [np.clip((time - start) / (end - start), 0, 1) for start, end in nods]
    return np.asarray(sum((np.sin(np.pi * phase) ** 2 for phase in phases), np.zeros(frames)))


def follow(nods: Sequence[float], ends: Sequence[float]) -> int:
    """Returns how many phrase ends are followed by a nod of their own, all in seconds."""
    left, followed = sorted(nods), 0
    for end in sorted(ends):
        nod = next((nod for nod in left if -NOD_SECONDS / 4 <= nod - end <= TOLERANCE), None)
        if nod is not None:
            left.remove(nod)
            followed += 1
    return followed


def nod_f1(nods: Sequence[Sequence[float]], ends: Sequence[Sequence[float]]) -> float:
    """Returns the F1 score of the listeners' nods against the ends of the phrases that each of them hears."""
    followed = sum(follow(one, other) for one, other in zip(nods, ends, strict=True))
    count = sum(map(len, nods)) + sum(map(len, ends))
    return 2 * followed / count if count else 0.0


def nod_f1_shuffled(nods: Sequence[Sequence[float]], ends: Sequence[Sequence[float]]) -> float:
    """Returns the mean F1 score against the phrase ends of every other dialogue: what nods at any time reach."""
    turns = range(1, len(ends))
    return float(np.mean([nod_f1(nods, [*ends[turn:], *ends[:turn]]) for turn in turns])) if turns else 0.0


def shut_share(openings: Sequence[Floats]) -> float:
    """Returns the share of frames with the mouth shut, of the readings (n,) of several clips."""
    return float(np.mean(np.concatenate(list(openings)) < OPEN))

"""The cleaned audio track of a person: the same, with the others silenced where only they talk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FADE = 0.010  # seconds; a cut without one clicks

Span = tuple[float, float]


def others(speech: Iterable[Mapping[str, Any]], voice: str | None) -> list[Span]:
    """Returns the spans in which others talk and the owner of the voice does not: in seconds, ordered and disjoint.

    Args:
        speech: Diarised intervals (`start_s`, `end_s`, `speaker`), which may overlap.
        voice: Voice of the track's owner; for a name that nobody has (`None`, `A_None`) everybody is another.
    """
    intervals = list(speech)
    own = union((s["start_s"], s["end_s"]) for s in intervals if s["speaker"] == voice)
    return minus(union((s["start_s"], s["end_s"]) for s in intervals if s["speaker"] != voice), own)


def union(spans: Iterable[Span]) -> list[Span]:
    """Returns spans in order, with those that touch joined."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif end > start:
            joined.append((start, end))
    return joined


def minus(spans: Sequence[Span], without: Sequence[Span]) -> list[Span]:
    """Returns the parts of spans that lie in none of others; both are ordered and disjoint."""
    left: list[Span] = []
    for start, end in spans:
        for first, last in without:
            if last <= start or first >= end:
                continue
            if first > start:
                left.append((start, first))
            start = max(start, last)
        if end > start:
            left.append((start, end))
    return left


def silence(waveform: NDArray[np.float32], spans: Iterable[Span], sample_rate: int) -> NDArray[np.float32]:
    """Returns the waveform (n,) with the spans silenced; it fades outside of them, so that nothing of them is left.

    Args:
        waveform: Samples, (n,).
        spans: Spans in seconds from the beginning.
        sample_rate: Samples per second.
    """
    gain, fade = np.ones(len(waveform), np.float32), max(1, round(FADE * sample_rate))
    ramp = np.linspace(1, 0, fade + 2, dtype=np.float32)[1:-1]
    for start, end in spans:
        first, last = max(0, round(start * sample_rate)), min(len(waveform), round(end * sample_rate))
        if last <= first:
            continue
        gain[first:last] = 0
        before, after = gain[max(0, first - fade) : first], gain[last : last + fade]
        np.minimum(before, ramp[fade - len(before) :], out=before)
        np.minimum(after, ramp[::-1][: len(after)], out=after)
    return waveform * gain

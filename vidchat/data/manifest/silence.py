"""Cleaned audio of a person: silent where only other_speech talk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FADE = 0.010  # seconds; an abrupt cut is audible as a click

Span = tuple[float, float]


def other_speech(speech: Iterable[Mapping[str, Any]], voice: str | None) -> list[Span]:
    """Returns the spans, in seconds, in which others talk and the owner of a voice does not; ordered and disjoint.

    Args:
        speech: Diarised intervals (`start_s`, `end_s`, `speaker`), which may overlap.
        voice: Voice of the track's owner; with one that nobody has (`None`, `A_None`), all speech is other speech.
    """
    intervals = list(speech)
    own = union((s["start_s"], s["end_s"]) for s in intervals if s["speaker"] == voice)
    return minus(union((s["start_s"], s["end_s"]) for s in intervals if s["speaker"] != voice), own)


def union(spans: Iterable[Span]) -> list[Span]:
    """Returns the union of spans; ordered and disjoint."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif end > start:
            joined.append((start, end))
    return joined


def minus(spans: Sequence[Span], without: Sequence[Span]) -> list[Span]:
    """Returns `spans` without the spans `without`; all are ordered and disjoint."""
    rest: list[Span] = []
    for start, end in spans:
        for first, last in without:
            if last <= start or first >= end:
                continue
            if first > start:
                rest.append((start, first))
            start = max(start, last)
        if end > start:
            rest.append((start, end))
    return rest


def silence(waveform: NDArray[np.float32], spans: Iterable[Span], sample_rate: int) -> NDArray[np.float32]:
    """Returns the waveform (n,) with the spans silenced, and short fades outside them.

    Args:
        waveform: Waveform, (n,).
        spans: Spans (start, end) in seconds.
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

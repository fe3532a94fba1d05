"""Draws a sheet of frames: the systems' answers to a few pairs, below the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidchat.bench.pairs import Pair
from vidchat.bench.truth_sizes import truth_sizes
from vidchat.data.atomic_path import atomic_path
from vidchat.data.media.read import MediaError, read_clip
from vidchat.dialogue import Clip
from vidchat.reports.sheet import Panel, contact_sheet, strip

FPS = 25


def draw_sheet(
    pairs: Sequence[Pair], systems: Mapping[str, Path], output: Path, count: int = 3, moments: int = 6
) -> None:
    """Draws a PNG with a line for the truth and for each system, which shows frames of the first pairs' answers.

    Args:
        pairs: Pairs, the first of which are shown; if no true answer can be opened, nothing is drawn.
        systems: Folders of clips ID.mp4, by name; clips that cannot be read are drawn grey.
        output: Path of the PNG.
        count: Number of pairs.
        moments: Number of frames of each answer, evenly spaced from its first to its last.
    """
    sizes = truth_sizes(pairs)
    if not sizes:
        return
    shown, size = pairs[:count], max(sizes, key=lambda size: len(sizes[size]))
    lines = {"truth": [pair.truth for pair in shown]}
    lines |= {name: [Clip(folder / f"{pair.id}.mp4", "") for pair in shown] for name, folder in systems.items()}
    rows = [
        [Panel(name, np.concatenate([_moments(clip, size, moments) for clip in clips], axis=1))]
        for name, clips in lines.items()
    ]
    with atomic_path(output) as partial:
        contact_sheet(rows).save(partial, format="PNG")


def _moments(clip: Clip, size: tuple[int, int], moments: int) -> NDArray[np.uint8]:
    """Returns frames of a clip side by side, (H, moments * W, 3); grey if the clip cannot be read."""
    try:
        return strip(read_clip(clip, fps=FPS, size=size, sample_rate=16000, audio=False).frames, moments)
    except (MediaError, OSError):
        return np.full((size[0], moments * size[1], 3), 128, dtype=np.uint8)

"""Rows of frames: what the systems' answers to a few pairs look like, under the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidchat.bench.pairs import Pair
from vidchat.bench.sizes import sizes_of
from vidchat.data.atomic_path import atomic_path
from vidchat.data.media.read import MediaError, read_clip
from vidchat.dialogue import Clip
from vidchat.reports.sheet import Panel, contact_sheet, strip

FPS = 25


def draw_sheet(
    pairs: Sequence[Pair], systems: Mapping[str, Path], output: Path, count: int = 3, moments: int = 6
) -> None:
    """Draws a PNG: a line for the truth and for each system, and in it so many moments of so many pairs' answers.

    Args:
        pairs: The pairs, the first of which are shown; where no true answer can be opened, nothing is drawn.
        systems: Folders of clips ID.mp4, by name; what cannot be read stays grey.
        output: The PNG.
        count: Number of pairs shown.
        moments: Number of frames of each answer, evenly from its first to its last.
    """
    sizes = sizes_of(pairs)
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
    """(H, moments * W, 3) of a clip, grey if it cannot be read."""
    try:
        return strip(read_clip(clip, fps=FPS, size=size, sample_rate=16000, audio=False).frames, moments)
    except (MediaError, OSError):
        return np.full((size[0], moments * size[1], 3), 128, dtype=np.uint8)

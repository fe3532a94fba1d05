"""Rows of pictures: what the systems' answers to a few pairs look like, under the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vidchat.bench.pairs import Pair
from vidchat.bench.sizes import sizes_of
from vidchat.data.media.read import MediaError, read_clip
from vidchat.data.whole import whole
from vidchat.dialogue import Clip

FPS = 25
LABEL = 18  # pixels of the line with a system's name


def draw_sheet(
    pairs: Sequence[Pair], systems: Mapping[str, Path], output: Path, count: int = 3, moments: int = 6
) -> None:
    """Draws a PNG: a line for the truth and for each system, and in it so many moments of so many pairs' answers.

    Args:
        pairs: Of which the first are shown; where no true answer can be opened, nothing is drawn.
        systems: Folders of clips ID.mp4, by name; what cannot be read stays grey.
        output: The PNG.
        count: Pairs.
        moments: Of each, evenly from its first picture to its last.
    """
    sizes = sizes_of(pairs)
    if not sizes:
        return
    shown, size = pairs[:count], max(sizes, key=lambda size: len(sizes[size]))
    lines = {"truth": [pair.truth for pair in shown]}
    lines |= {name: [Clip(folder / f"{pair.id}.mp4", "") for pair in shown] for name, folder in systems.items()}
    sheet = Image.new("RGB", (len(shown) * moments * size[1], len(lines) * (LABEL + size[0])), "white")
    pencil, font = ImageDraw.Draw(sheet), ImageFont.load_default(LABEL * 0.7)
    for line, (name, clips) in enumerate(lines.items()):
        top = line * (LABEL + size[0])
        pencil.text((2, top + 1), name, "black", font)
        row = np.concatenate([_moments(clip, size, moments) for clip in clips], axis=1)
        sheet.paste(Image.fromarray(row), (0, top + LABEL))
    with whole(output) as partial:
        sheet.save(partial, format="PNG")


def _moments(clip: Clip, size: tuple[int, int], moments: int) -> NDArray[np.uint8]:
    """(H, moments * W, 3) of a clip, grey if it cannot be read."""
    try:
        media = read_clip(clip, fps=FPS, size=size, sample_rate=16000, audio=False)
    except (MediaError, OSError):
        return np.full((size[0], moments * size[1], 3), 128, dtype=np.uint8)
    chosen = np.linspace(0, len(media.pictures) - 1, moments).round().astype(int)
    return np.concatenate(list(media.pictures[chosen].permute(0, 2, 3, 1).numpy()), axis=1)

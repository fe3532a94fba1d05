"""Contact sheets: strips of frames side by side, each under its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LINE, GAP, MARGIN = 22, 6, 10  # pixels: height of a caption, space between panels, space around the sheet
NARROWEST = 900
LONGEST = 300  # characters of a caption


class Panel(NamedTuple):
    """A caption and the strip (H, W, 3) uint8 below it; a heading has no strip."""

    caption: str
    strip: NDArray[np.uint8] | None = None


def strip(frames: Tensor, moments: int) -> NDArray[np.uint8]:
    """Returns a strip (H, moments * W, 3) of evenly spaced frames, side by side.

    Args:
        frames: (N, 3, H, W) uint8.
        moments: Number of frames in the strip, from the first to the last.
    """
    chosen = np.linspace(0, len(frames) - 1, moments).round().astype(int)
    return np.concatenate(list(frames[chosen].permute(0, 2, 3, 1).numpy()), axis=1)


def contact_sheet(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Draws rows of panels; captions are cut at the width of their panel."""
    heights = [LINE + max((GAP + len(p.strip) for p in row if p.strip is not None), default=0) for row in rows]
    width = max([NARROWEST, *(sum(_width(panel) + GAP for panel in row) for row in rows)])
    sheet = Image.new("RGB", (width + 2 * MARGIN, sum(heights) + 2 * MARGIN), "white")
    pencil, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(size=14), MARGIN
    for row, height in zip(rows, heights, strict=True):
        left = MARGIN
        for panel in row:
            room = width if len(row) == 1 else _width(panel)
            caption = " ".join(panel.caption[:LONGEST].split())
            while caption and pencil.textlength(caption, font) > room:
                caption = caption[:-1]
            pencil.text((left, top), caption, "#1f2333" if panel.strip is not None else "#2e5fd0", font)
            if panel.strip is not None:
                sheet.paste(Image.fromarray(panel.strip), (left, top + LINE))
            left += _width(panel) + GAP
        top += height
    return sheet


def _width(panel: Panel) -> int:
    return 0 if panel.strip is None else panel.strip.shape[1]

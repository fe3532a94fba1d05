"""Draws docs/architecture.svg: `python docs/architecture.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

GREY, BLUE, ORANGE, GREEN, PURPLE = "#eceff1", "#dbe9f6", "#fde8cf", "#e0f0dd", "#ebe3f5"
INK = "#263238"


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, size: float = 8.5) -> None:
    """Draws a rounded box with its text in the middle."""
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", facecolor=colour, edgecolor=INK, linewidth=0.9
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=INK, linespacing=1.35)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    """Draws an arrow, bent if asked."""
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, connectionstyle=style, color=INK, linewidth=1)
    )


def note(axes: Axes, x: float, y: float, text: str, size: float = 7.5) -> None:
    """Writes a note."""
    axes.text(x, y, text, fontsize=size, color=INK, va="center")


def draw() -> plt.Figure:
    """Draws the path from the initiator's clip to chunk t of the answer, and back into the backbone."""
    figure, axes = plt.subplots(figsize=(11, 5.4))
    axes.set_xlim(0, 22)
    axes.set_ylim(0, 10.8)
    axes.axis("off")

    columns = (
        (0.3, 3.3, "conditions\ntext, thinker,\nvoice, scores", PURPLE),
        (3.9, 3.9, "initiator's clip\n(video, audio)", GREEN),
        (8.1, 2.3, "reference\n(chunk 0)", ORANGE),
        (10.7, 1.6, "chunk 1", ORANGE),
        (13.1, 2.2, "chunk t-1", ORANGE),
    )
    for x, width, text, colour in columns:
        box(axes, x, 0.4, width, 1.5, text, colour)
        arrow(axes, (x + width / 2, 1.95), (x + width / 2, 3.35))
    axes.text(12.7, 1.15, "...", ha="center", va="center", fontsize=12, color=INK)
    note(axes, 6.0, 2.6, "video VAE,\naudio codec")
    box(
        axes, 0.3, 3.4, 15.0, 1.5,
        "backbone: block-causal transformer over chunks\n(Qwen3's blocks, rotary positions, key/value cache)",
        BLUE,
    )  # fmt: skip
    axes.plot([5.2, 5.2], [4.9, 5.55], color=INK, linewidth=1)
    note(axes, 8.3, 5.45, "outputs at chunk t-1 predict chunk t")

    box(axes, 0.3, 6.2, 4.4, 1.9, "depth transformer\nF x K codes, codec frame\nafter codec frame", BLUE)
    box(axes, 5.7, 6.2, 4.4, 1.9, "spatial transformer\nS visual tokens in N sets,\nrandom order", BLUE)
    box(axes, 11.1, 6.2, 4.2, 1.9, "flow head\nper-token MLP,\nnoise to latent", BLUE)
    axes.plot([2.5, 7.9], [5.55, 5.55], color=INK, linewidth=1)
    arrow(axes, (2.5, 5.55), (2.5, 6.15))
    arrow(axes, (7.9, 5.55), (7.9, 6.15))
    arrow(axes, (4.75, 7.15), (5.65, 7.15))
    axes.text(5.2, 7.45, "codes", fontsize=7.5, ha="center", color=INK)
    arrow(axes, (10.15, 7.4), (11.05, 7.4))
    arrow(axes, (11.05, 6.8), (10.15, 6.8))

    box(axes, 16.9, 6.2, 2.0, 1.9, "chunk t\nlatents\nand codes", ORANGE)
    arrow(axes, (15.35, 7.15), (16.85, 7.15))
    axes.plot([2.5, 2.5, 17.9], [8.15, 8.7, 8.7], color=INK, linewidth=1)
    arrow(axes, (17.9, 8.7), (17.9, 8.15))
    axes.plot([17.9, 17.9], [6.15, 1.15], color=INK, linewidth=1)
    arrow(axes, (17.9, 1.15), (15.35, 1.15))
    note(axes, 18.05, 3.0, "fed back: the finished\nchunk, its latents mixed\nwith noise in training")
    box(axes, 19.7, 6.2, 2.1, 1.9, "streaming\ndecoders\n4 frames,\n160 ms", GREY)
    arrow(axes, (18.95, 7.15), (19.65, 7.15))
    axes.text(
        0.3,
        10.2,
        "One chunk of the answer: audio first, then video, then back into the backbone",
        fontsize=10.5,
        color=INK,
    )
    axes.text(
        0.3,
        9.5,
        "Lips are drawn knowing the audio they make: the codes of chunk t condition its video.",
        fontsize=8.5,
        color=INK,
    )
    return figure


if __name__ == "__main__":
    target = Path(__file__).with_name("architecture.svg")
    draw().savefig(target, bbox_inches="tight", metadata={"Date": None})

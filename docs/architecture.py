"""Draws docs/architecture.svg: `python docs/architecture.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

GREY, BLUE, ORANGE, GREEN, PURPLE, WHITE = "#eceff1", "#dbe9f6", "#fde8cf", "#e0f0dd", "#ebe3f5", "#ffffff"
INK = "#263238"
FIRST, STEP = 4.5, 1.62  # left edge of step 0, and the distance between steps


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


def note(axes: Axes, x: float, y: float, text: str, size: float = 7.5, align: str = "left") -> None:
    """Writes a note."""
    axes.text(x, y, text, fontsize=size, color=INK, va="center", ha=align)


def clock(axes: Axes) -> None:
    """Draws the sequence: a question, an answer, an interruption in which both speak, and the next answer."""
    heard = {step: f"heard {step}" for step in (1, 2, 3, 6, 7, 8)}
    said = {0: "reference", 3: "still", 4: "said 4", 5: "said 5", 6: "said 6", 8: "still", 9: "said 9"}
    box(axes, 0.3, 0.95, 2.7, 1.65, "conditions\ntext, thinker,\nvoice, scores", PURPLE)
    arrow(axes, (1.65, 2.7), (1.65, 4.1))
    note(axes, FIRST - 0.12, 2.2, "heard", align="right")
    note(axes, FIRST - 0.12, 1.3, "said", align="right")
    for step in range(10):
        x = FIRST + STEP * step
        note(axes, x + STEP / 2 - 0.06, 0.6, f"step {step}", align="center")
        for y, chunk, colour in ((1.85, heard.get(step), GREEN), (0.95, said.get(step), ORANGE)):
            shown = colour if chunk not in ("reference", "still") else WHITE
            if chunk is not None:
                box(axes, x, y, STEP - 0.12, 0.75, chunk, shown, 7.5)
        if step in heard or step in said:
            arrow(axes, (x + STEP / 2 - 0.06, 2.7), (x + STEP / 2 - 0.06, 4.1))
        if step in said and step + 1 in said and said[step + 1] != "still":  # what its outputs predict
            arrow(axes, (x + STEP / 2, 0.22), (x + 1.5 * STEP - 0.12, 0.22))
    note(
        axes,
        FIRST,
        -0.25,
        "outputs at a said chunk, or at the still before a turn, predict the turn's next chunk",
    )


def chunk(axes: Axes) -> None:
    """Draws what becomes of the outputs at a said chunk: the next chunk, which is fed back."""
    axes.plot([FIRST + 4.5 * STEP - 0.06] * 2, [5.6, 6.2], color=INK, linewidth=1)
    note(
        axes,
        FIRST + 4.5 * STEP - 0.2,
        5.9,
        "outputs at said 4 predict chunk 5, and whether 4 is the turn's last",
        align="right",
    )
    axes.plot([2.5, FIRST + 4.5 * STEP - 0.06], [6.2, 6.2], color=INK, linewidth=1)
    for x, text in (
        (0.3, "depth transformer\nF x K codes, codec frame\nafter codec frame"),
        (5.7, "spatial transformer\nS visual tokens in N sets,\nrandom order"),
        (11.1, "flow head\nper-token MLP,\nnoise to latent"),
    ):
        box(axes, x, 6.85, 4.4, 1.9, text, BLUE)
    arrow(axes, (2.5, 6.2), (2.5, 6.8))
    arrow(axes, (7.9, 6.2), (7.9, 6.8))
    arrow(axes, (4.75, 7.8), (5.65, 7.8))
    note(axes, 5.2, 8.1, "codes", align="center")
    arrow(axes, (10.15, 8.05), (11.05, 8.05))
    arrow(axes, (11.05, 7.45), (10.15, 7.45))
    box(axes, 16.4, 6.85, 2.1, 1.9, "said 5\nlatents\nand codes", ORANGE)
    arrow(axes, (15.55, 7.8), (16.35, 7.8))
    axes.plot([2.5, 2.5, 17.45], [8.8, 9.3, 9.3], color=INK, linewidth=1)
    arrow(axes, (17.45, 9.3), (17.45, 8.8))
    box(axes, 19.1, 6.85, 2.3, 1.9, "streaming\ndecoders\n4 frames,\n160 ms", GREY)
    arrow(axes, (18.55, 7.8), (19.05, 7.8))
    axes.plot([17.45, 17.45, 21.2, 21.2], [6.8, 6.2, 6.2, 1.3], color=INK, linewidth=1)
    arrow(axes, (21.2, 1.3), (FIRST + 10 * STEP - 0.1, 1.3))
    note(axes, 17.6, 6.45, "fed back as a said chunk")


def draw() -> plt.Figure:
    """Draws two people on one clock, and the path from the outputs of a step to the responder's next chunk."""
    figure, axes = plt.subplots(figsize=(11, 5.9))
    axes.set_xlim(0, 22)
    axes.set_ylim(-0.5, 11.3)
    axes.axis("off")
    clock(axes)
    box(
        axes, 0.3, 4.15, 20.3, 1.4,
        "backbone: block-causal transformer, a step is a block: it sees itself, all earlier steps and the conditions\n"
        "(Qwen3's blocks, rotary positions in real time, key/value cache with a window)",
        BLUE,
    )  # fmt: skip
    chunk(axes)
    axes.text(
        0.3,
        10.9,
        "Two people on one clock: a step (160 ms) holds a chunk of whoever has one",
        fontsize=10.5,
        color=INK,
    )
    axes.text(
        0.3, 10.2,
        "Here a question, its answer, an interruption in which both speak, and the next answer. In a chunk, audio "
        "comes before video.",
        fontsize=8.5, color=INK,
    )  # fmt: skip
    return figure


if __name__ == "__main__":
    target = Path(__file__).with_name("architecture.svg")
    draw().savefig(target, bbox_inches="tight", metadata={"Date": None})

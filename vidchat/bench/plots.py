"""Small plots as SVG text, without a plotting library."""

from __future__ import annotations

import html

from vidchat.bench.results import Number
from vidchat.bench.systems import BUILT_IN
from vidchat.bench.table import ARROWS, Table, figure

WIDTH, LEFT, RIGHT, LINE, TOP = 340, 140, 16, 20, 26
LETTERS = 22  # of a name


def whiskers(table: Table, column: Number) -> str:
    """A dot and its interval for every system that has a number in the column."""
    cells = [(name, table.cell(name, column)) for name in table.systems]
    shown = [(name, number) for name, number in cells if number is not None and number.count]
    low = min(min(number.low, number.value) for _, number in shown)
    high = max(max(number.high, number.value) for _, number in shown)
    room = (high - low) or 1.0
    height = TOP + LINE * len(shown) + 18

    def x(value: float) -> float:
        return LEFT + (value - low) / room * (WIDTH - LEFT - RIGHT)

    title = f"{table.head(column)} {ARROWS[column.column.better]}"
    parts = [
        f"<svg viewBox='0 0 {WIDTH} {height}' role=img aria-label='{html.escape(title, quote=True)}'>",
        f"<text x=6 y=15 class=title>{html.escape(title)}</text>",
        f"<line x1={LEFT} y1={height - 16} x2={WIDTH - RIGHT} y2={height - 16} class=axis />",
    ]
    for value, anchor in ((low, "start"), (high, "end")):
        tick = f"{value:.{column.column.digits}f}"
        parts.append(f"<text x={x(value):.1f} y={height - 3} class=tick text-anchor={anchor}>{tick}</text>")
    for place, (name, number) in enumerate(shown):
        label = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
        y = TOP + LINE * place + LINE / 2
        kind = "builtin" if name in BUILT_IN else "system"
        parts.append(
            f"<g class={kind}><title>{html.escape(name)}: {figure(number)}</title>"
            f"<text x={LEFT - 8} y={y + 4:.1f} text-anchor=end>{html.escape(label)}</text>"
            f"<line x1={x(number.low):.1f} y1={y:.1f} x2={x(number.high):.1f} y2={y:.1f} />"
            f"<circle cx={x(number.value):.1f} cy={y:.1f} r=4 /></g>"
        )
    return "".join([*parts, "</svg>"])

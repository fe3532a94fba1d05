"""Numbers of many systems in one table, as Markdown, LaTeX and plain text. A column is one protocol string."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vidchat.bench.results import Number, Result, SystemResult
from vidchat.bench.systems import BUILT_IN

DAGGER = r"$^\dagger$"  # marks proxies in LaTeX
ARROWS = {"higher": "↑", "lower": "↓", "zero": "→0", "truth": "≈truth"}
LATEX_ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$", "zero": r"$\to 0$", "truth": r"$\approx$"}
DIMENSIONS = (
    "video quality", "identity", "dialogue coherence", "audio-visual sync", "emotion", "voice", "responsiveness",
)  # fmt: skip


class TableError(ValueError):
    """Results that cannot stand in one table, in one sentence."""


@dataclass(frozen=True)
class Table:
    """Systems down, protocol strings across.

    Attributes:
        columns: One number of each column, for its head; columns of one name differ in their protocol.
        systems: Names, in order.
        cells: (system, protocol string) to number.
    """

    columns: Sequence[Number]
    systems: Sequence[str]
    cells: dict[tuple[str, str], Number]

    def head(self, column: Number) -> str:
        """The column's name, with a number if another protocol has a column of that name."""
        alike = [other.protocol for other in self.columns if other.column.name == column.column.name]
        return column.column.name if len(alike) == 1 else f"{column.column.name} ({alike.index(column.protocol) + 1})"

    def cell(self, system: str, column: Number) -> Number | None:
        return self.cells.get((system, column.protocol))

    def best(self, column: Number, leave_out: Sequence[str]) -> str | None:
        """The best in a column of those that have it for the most pairs, less those left out; `None` without rivals."""
        numbers = {name: number for name in self.systems if (number := self.cell(name, column)) is not None}
        most = max((number.count for name, number in numbers.items() if name not in leave_out), default=0)
        rivals = {n: number.value for n, number in numbers.items() if n not in leave_out and number.count == most}
        if len(rivals) < 2 or column.column.better not in ("higher", "lower", "zero"):
            return None
        rank = {"higher": lambda v: -v, "lower": lambda v: v, "zero": abs}[column.column.better]
        return min(rivals, key=lambda name: rank(rivals[name]))


def make_table(results: Sequence[Result]) -> Table:
    """One table of several runs.

    Raises:
        TableError: A system has two different numbers under one protocol string.
    """
    cells: dict[tuple[str, str], Number] = {}
    heads: dict[str, Number] = {}
    systems = [system for result in results for system in result.systems]
    for system in systems:
        for number in system.numbers:
            place = (system.name, number.protocol)
            if place in cells and not math.isclose(cells[place].value, number.value, rel_tol=1e-9, abs_tol=1e-12):
                raise TableError(
                    f"'{system.name}' has {cells[place].value:g} and {number.value:g} for one protocol "
                    f"({number.protocol[:80]}...); score one of the two under another name"
                )
            cells[place] = number
            heads.setdefault(number.protocol, number)
    order = {name: place for place, name in enumerate(DIMENSIONS)}
    columns = sorted(heads.values(), key=lambda number: order.get(number.dimension, len(order)))
    return Table(columns, list(dict.fromkeys(system.name for system in systems)), cells)


def figure(number: Number, interval: bool = True) -> str:
    """The value as it is printed, with its interval, and how many pairs it is of if not of all."""
    digits = number.column.digits
    parts = [f"{number.value:.{digits}f}"]
    if interval and number.low != number.high:
        parts.append(f"[{number.low:.{digits}f}, {number.high:.{digits}f}]")
    if interval and number.count < number.pairs:
        parts.append(f"({number.count} of {number.pairs})")
    return " ".join(parts)


def markdown(results: Sequence[Result]) -> str:
    """The table, one block a dimension, with protocols, bad clips and warnings below it."""
    table = make_table(results)
    lines = ["# VidChatBench", ""]
    for dimension in dict.fromkeys(column.dimension for column in table.columns):
        columns = [column for column in table.columns if column.dimension == dimension]
        heads = [f"{table.head(c)}{' *proxy*' if c.proxy else ''} {ARROWS[c.column.better]}" for c in columns]
        lines += [f"## {dimension}", "", f"| system | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(columns)}"]
        for system in table.systems:
            cells = [table.cell(system, column) for column in columns]
            lines.append(f"| {_cell_text(system)} | {' | '.join('' if c is None else figure(c) for c in cells)} |")
        lines.append("")
    lines += [
        "In brackets: 95 % intervals, bootstrap over pairs. A *proxy* stands in for the canonical measure; its values",
        "compare only with each other.",
        "",
    ]
    lines += ["## Clips", "", *_clips(results), "", *_rules(results)]
    if warnings := list(dict.fromkeys(w for result in results for w in result.warnings)):
        lines += ["## Warnings", "", *(f"- {warning}" for warning in warnings), ""]
    lines += ["## Protocols", "", *(f"- **{table.head(c)}**: `{c.protocol}`" for c in table.columns), ""]
    return "\n".join(lines)


def _cell_text(text: str) -> str:
    return text.replace("|", "\\|")


def _rules(results: Sequence[Result]) -> list[str]:
    return [line for rule in dict.fromkeys(result.rule for result in results) for line in (rule, "")]


def _clips(results: Sequence[Result]) -> list[str]:
    lines = []
    for result in results:
        for system in result.systems:
            lines.append(f"- **{system.name}** ({result.protocol}): {counted(system)}")
            if system.name in BUILT_IN:
                continue
            lines += [
                f"  - `{name}`: {', '.join(score.statuses)} ({score.note})" for name, score in system.bad().items()
            ]
    return lines


def counted(system: SystemResult) -> str:
    """`24 good, 3 missing`."""
    return ", ".join(f"{count} {status}" for status, count in system.counts().items())


def latex(results: Sequence[Result]) -> str:
    """Rows for a paper's table, a comment above them that says what the columns are."""
    table = make_table(results)
    heads = [
        f"{_escaped(table.head(c))}{DAGGER if c.proxy else ''} {LATEX_ARROWS[c.column.better]}" for c in table.columns
    ]
    lines = [
        f"% {table.head(c)}{' (proxy, marked by a dagger)' if c.proxy else ''}: {c.protocol}" for c in table.columns
    ]
    lines.append(" & ".join(["System", *heads]) + r" \\")
    for system in table.systems:
        cells = [table.cell(system, column) for column in table.columns]
        texts = ["--" if c is None else f"${figure(c, interval=False)}$" for c in cells]
        lines.append(" & ".join([_escaped(system), *texts]) + r" \\")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)

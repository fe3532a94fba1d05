"""Numbers of many systems in one table, as Markdown, LaTeX and plain text. A column is one protocol string."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vidchat.bench.comparison import STATED, surely_better, worth
from vidchat.bench.results import Number, Result, SystemResult
from vidchat.bench.systems import BUILT_IN

ARROWS = {"higher": "↑", "lower": "↓"}
LATEX_ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$"}
PROXIES = (
    "A column proxy-X stands in for the canonical measure X, whose weights were not given: its values compare only "
    "with each other, never with published values of X."
)
DIMENSIONS = (
    "video quality", "identity", "dialogue coherence", "audio-visual sync", "emotion", "voice", "listening",
    "responsiveness",
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
        values: (system, protocol string) to the values of pairs by id, of means.
    """

    columns: Sequence[Number]
    systems: Sequence[str]
    cells: Mapping[tuple[str, str], Number]
    values: Mapping[tuple[str, str], Mapping[str, float]]

    def head(self, column: Number) -> str:
        """The column's name, with a number if another protocol has a column of that name."""
        alike = [other.protocol for other in self.columns if other.column.name == column.column.name]
        return column.column.name if len(alike) == 1 else f"{column.column.name} ({alike.index(column.protocol) + 1})"

    def cell(self, system: str, column: Number) -> Number | None:
        """The number, also one that could not be had; `None` where the system was not scored by this protocol."""
        return self.cells.get((system, column.protocol))

    def best(self, column: Number) -> str | None:
        """The system that is surely better than every other, and has the number for the most pairs, if there is one."""
        return self._bests[column.protocol]

    @cached_property
    def _bests(self) -> dict[str, str | None]:
        return {column.protocol: self._best(column) for column in self.columns}

    def _best(self, column: Number) -> str | None:
        rivals = {name: cell for name in self.systems if (cell := self._rival(name, column)) is not None}
        if len(rivals) < 2:
            return None
        most = max(cell.count for cell in rivals.values())
        full = {name: cell for name, cell in rivals.items() if cell.count == most}
        first = max(full, key=lambda name: float(worth(full[name].value, column.column.better)))
        others = [name for name in rivals if name != first]
        return first if all(self._beats(first, other, column) for other in others) else None

    def missing(self) -> dict[str, str]:
        """Why the columns in which no system has a number have none, by head."""
        numbers = {self.head(c): [n for s in self.systems if (n := self.cell(s, c)) is not None] for c in self.columns}
        return {head: cells[0].reason for head, cells in numbers.items() if not any(cell.count for cell in cells)}

    def doubts(self) -> dict[str, str]:
        """What columns cannot tell of filmed people, by head."""
        return {self.head(column): column.doubt for column in self.columns if column.doubt}

    def _rival(self, name: str, column: Number) -> Number | None:
        cell = None if name in BUILT_IN else self.cell(name, column)
        return cell if cell is not None and cell.count else None

    def _beats(self, first: str, other: str, column: Number) -> bool:
        mine, theirs = (first, column.protocol), (other, column.protocol)
        return surely_better(
            self.cells[mine], self.cells[theirs], self.values.get(mine, {}), self.values.get(theirs, {})
        )


def make_table(results: Sequence[Result]) -> Table:
    """One table of several runs.

    Raises:
        TableError: A system has two different numbers under one protocol string.
    """
    cells: dict[tuple[str, str], Number] = {}
    values: dict[tuple[str, str], Mapping[str, float]] = {}
    heads: dict[str, Number] = {}
    systems = [system for result in results for system in result.systems]
    for system in systems:
        for number in system.numbers:
            place = (system.name, number.protocol)
            if place in cells and not _alike(cells[place], number):
                raise TableError(_two_numbers(system.name, cells[place], number))
            cells[place] = number
            heads.setdefault(number.protocol, number)
            name = number.column.name
            if number.column.kind == "mean":
                values[place] = {pair: s.values[name] for pair, s in system.scores.items() if name in s.values}
    have = {cell.column.name for cell in cells.values() if cell.count}
    full = {cell.protocol for cell in cells.values() if cell.count}
    order = {name: place for place, name in enumerate(DIMENSIONS)}
    shown = [number for number in heads.values() if number.protocol in full or number.column.name not in have]
    columns = sorted(shown, key=lambda number: order.get(number.dimension, len(order)))
    return Table(columns, list(dict.fromkeys(system.name for system in systems)), cells, values)


def _alike(a: Number, b: Number) -> bool:
    """Equal as far as two machines' arithmetic is."""
    return a.count == b.count and (not a.count or math.isclose(a.value, b.value, rel_tol=1e-5, abs_tol=1e-8))


def _two_numbers(name: str, a: Number, b: Number) -> str:
    what = f"'{name}' has {a.value:g} and {b.value:g} for one protocol ({a.protocol[:80]}...)"
    if name in BUILT_IN:
        return f"{what}, so the machines that scored them compute differently; score all systems on one of them"
    return (
        f"{what}: its clips or logs changed between the runs; score one of its folders again under another name, by "
        f"systems.OTHERNAME=FOLDER (the other systems' features are kept, so it is fast)"
    )


def figure(number: Number, interval: bool = True) -> str:
    """The value as it is printed, with its interval, and how many pairs it is of if not of all; a dash for none."""
    if not number.count:
        return "–"
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
        heads = [f"{table.head(c)} {ARROWS[c.column.better]}" for c in columns]
        lines += [f"## {dimension}", "", f"| system | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(columns)}"]
        for system in table.systems:
            cells = [_marked(table, system, column) for column in columns]
            lines.append(f"| {_cell_text(system)} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"In brackets: 95 % intervals, bootstrap over pairs. {STATED}", "", PROXIES, ""]
    lines += [*_listed("Not measured", table.missing()), *_listed("Doubtful on filmed people", table.doubts())]
    lines += ["## Clips", "", *_clips(results), "", *_rules(results)]
    if warnings := list(dict.fromkeys(w for result in results for w in result.warnings)):
        lines += ["## Warnings", "", *(f"- {warning}" for warning in warnings), ""]
    lines += ["## Protocols", "", *(f"- **{table.head(c)}**: `{c.protocol}`" for c in table.columns), ""]
    return "\n".join(lines)


def _marked(table: Table, system: str, column: Number) -> str:
    cell = table.cell(system, column)
    if cell is None:
        return ""
    return f"**{figure(cell)}**" if table.best(column) == system else figure(cell)


def _listed(title: str, entries: Mapping[str, str]) -> list[str]:
    return [f"## {title}", "", *(f"- **{head}**: {why}" for head, why in entries.items()), ""] if entries else []


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
    heads = [f"{_escaped(table.head(c))} {LATEX_ARROWS[c.column.better]}" for c in table.columns]
    lines = [f"% {STATED}", *(f"% {table.head(c)}: {c.protocol}" for c in table.columns)]
    lines += [f"% {head}: not measured: {why}" for head, why in table.missing().items()]
    lines.append(" & ".join(["System", *heads]) + r" \\")
    for system in table.systems:
        texts = [_latex_cell(table, system, column) for column in table.columns]
        lines.append(" & ".join([_escaped(system), *texts]) + r" \\")
    return "\n".join(lines) + "\n"


def _latex_cell(table: Table, system: str, column: Number) -> str:
    cell = table.cell(system, column)
    if cell is None or not cell.count:
        return "--"
    value = figure(cell, interval=False)
    return f"$\\mathbf{{{value}}}$" if table.best(column) == system else f"${value}$"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)

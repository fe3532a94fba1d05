"""Tables of the numbers of several systems, as Markdown and LaTeX; a column has one protocol string."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vidchat.bench.comparison import STATED, oriented, surely_better
from vidchat.bench.results import Number, Result, SystemResult
from vidchat.bench.systems import BUILT_IN

ARROWS = {"higher": "↑", "lower": "↓"}
LATEX_ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$"}
PROXIES = (
    "A column proxy-X stands in for the canonical metric X, whose weights were not given: its values compare only "
    "with each other, never with published values of X."
)
DIMENSIONS = (
    "video quality", "identity", "dialogue coherence", "audio-visual sync", "emotion", "voice", "listening",
    "responsiveness",
)  # fmt: skip


class TableError(ValueError):
    """Error about results that do not fit into one table; its message is one sentence."""


@dataclass(frozen=True)
class Table:
    """A table with a row for each system and a column for each protocol string.

    Attributes:
        columns: One number of each column, for its head; columns of the same name differ in their protocol.
        systems: Names of the systems, in order.
        cells: Numbers by (system, protocol string).
        values: Values of the pairs by id, by (system, protocol string), for columns that are means.
    """

    columns: Sequence[Number]
    systems: Sequence[str]
    cells: Mapping[tuple[str, str], Number]
    values: Mapping[tuple[str, str], Mapping[str, float]]

    def head(self, column: Number) -> str:
        """Returns the name of a column, numbered if another protocol has a column of that name."""
        protocols = [other.protocol for other in self.columns if other.column.name == column.column.name]
        return (
            column.column.name
            if len(protocols) == 1
            else f"{column.column.name} ({protocols.index(column.protocol) + 1})"
        )

    def cell(self, system: str, column: Number) -> Number | None:
        """Returns a number, which may have no value, or `None` if the system was not scored by this protocol."""
        return self.cells.get((system, column.protocol))

    def best(self, column: Number) -> str | None:
        """Returns the system that is significantly better than every other and has values of the most pairs, if any."""
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
        first = max(full, key=lambda name: float(oriented(full[name].value, column.column.better)))
        others = [name for name in rivals if name != first]
        return first if all(self._beats(first, other, column) for other in others) else None

    def missing(self) -> dict[str, str]:
        """Returns the reasons for the columns in which no system has a value, by head."""
        numbers = {self.head(c): [n for s in self.systems if (n := self.cell(s, c)) is not None] for c in self.columns}
        return {head: cells[0].reason for head, cells in numbers.items() if not any(cell.count for cell in cells)}

    def doubts(self) -> dict[str, str]:
        """Returns the limitations of columns on filmed people, by head."""
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
    """Combines several runs to one table.

    Raises:
        TableError: A system has two different numbers with the same protocol string.
    """
    cells: dict[tuple[str, str], Number] = {}
    values: dict[tuple[str, str], Mapping[str, float]] = {}
    heads: dict[str, Number] = {}
    systems = [system for result in results for system in result.systems]
    for system in systems:
        for number in system.numbers:
            key = (system.name, number.protocol)
            if key in cells and not _close(cells[key], number):
                raise TableError(_conflict_message(system.name, cells[key], number))
            cells[key] = number
            heads.setdefault(number.protocol, number)
            name = number.column.name
            if number.column.kind == "mean":
                values[key] = {pair: s.values[name] for pair, s in system.scores.items() if name in s.values}
    have = {cell.column.name for cell in cells.values() if cell.count}
    full = {cell.protocol for cell in cells.values() if cell.count}
    order = {name: index for index, name in enumerate(DIMENSIONS)}
    shown = [number for number in heads.values() if number.protocol in full or number.column.name not in have]
    columns = sorted(shown, key=lambda number: order.get(number.dimension, len(order)))
    return Table(columns, list(dict.fromkeys(system.name for system in systems)), cells, values)


def _close(a: Number, b: Number) -> bool:
    """Returns whether two numbers are equal up to the rounding of different machines."""
    return a.count == b.count and (not a.count or math.isclose(a.value, b.value, rel_tol=1e-5, abs_tol=1e-8))


def _conflict_message(name: str, a: Number, b: Number) -> str:
    what = f"'{name}' has {a.value:g} and {b.value:g} for one protocol ({a.protocol[:80]}...)"
    if name in BUILT_IN:
        return f"{what}, so the machines that scored them compute differently; score all systems on one of them"
    return (
        f"{what}: its clips or logs changed between the runs; score one of its folders again under another name, by "
        f"systems.OTHERNAME=FOLDER (the other systems' features are cached, so it is fast)"
    )


def format_number(number: Number, interval: bool = True) -> str:
    """Formats a value with its interval, and the number of its pairs if these are not all; a dash for no value."""
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
    """Returns the table as Markdown: a section for each dimension, then bad clips, rules, warnings and protocols."""
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
    return f"**{format_number(cell)}**" if table.best(column) == system else format_number(cell)


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
            lines.append(f"- **{system.name}** ({result.protocol}): {status_counts(system)}")
            if system.name in BUILT_IN:
                continue
            lines += [
                f"  - `{name}`: {', '.join(score.statuses)} ({score.note})" for name, score in system.bad().items()
            ]
    return lines


def status_counts(system: SystemResult) -> str:
    """Returns the number of clips by status as text, such as `24 good, 3 missing`."""
    return ", ".join(f"{count} {status}" for status, count in system.counts().items())


def latex(results: Sequence[Result]) -> str:
    """Returns rows for a table in LaTeX, below a comment that states the protocols of the columns."""
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
    value = format_number(cell, interval=False)
    return f"$\\mathbf{{{value}}}$" if table.best(column) == system else f"${value}$"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)

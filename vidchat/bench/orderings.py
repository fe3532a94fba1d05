"""Which of the paper's comparisons between rows of its Table 2 come out for systems of one's own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidchat.bench.ablation import COLUMNS, PUBLISHED, SWITCHES, Place, Row, published
from vidchat.bench.intervals import mean_interval


@dataclass(frozen=True)
class Ordering:
    """Whether a row is better than another by a column, in the paper and here.

    Attributes:
        before: Row with fewer switches on.
        after: Row with more switches on.
        column: Column by which the rows are compared.
        published: Published result of the second row: `better`, `worse` or `equal`.
        here: Result of the second row here; `equal` where the two cannot be told apart.
    """

    before: Place
    after: Place
    column: str
    published: str
    here: str

    @property
    def outcome(self) -> str:
        """`yes`, `no`, or `not told apart`."""
        if self.published == self.here:
            return "yes"
        return "not told apart" if self.here == "equal" else "no"


def orderings(rows: Sequence[Row]) -> list[Ordering]:
    """Every comparison that the paper's table makes and these rows can repeat.

    Compared are rows next to each other within a protocol, and the two protocols with all switches on.
    """
    own = {row.place: row for row in rows}
    places = [Place(*key) for key in PUBLISHED]
    steps = [(a, b) for a, b in itertools.pairwise(places) if a.protocol == b.protocol]
    steps.append((Place("conditioned", SWITCHES), Place("dyadic", SWITCHES)))
    found = []
    for before, after in steps:
        if before not in own or after not in own:
            continue
        for column, old, new in zip(COLUMNS, published(before), published(after), strict=True):
            if old is not None and new is not None and (gap := _gap(own[before], own[after], column)) is not None:
                sign = -1 if own[before].numbers[column].column.better == "lower" else 1
                told = _verdict(sign * (new - old))
                found.append(Ordering(before, after, column, told, _verdict(*sorted(sign * end for end in gap))))
    return found


def _gap(before: Row, after: Row, column: str) -> tuple[float, float] | None:
    """The 95 % interval of how much higher the second row is; `None` where one of them has no such number.

    Of means over pairs by bootstrap over the pairs' differences, since both answered the same ones. Of distances
    between sets from the two intervals alone, which is cautious.
    """
    if column not in before.numbers or column not in after.numbers:
        return None
    a, b = before.numbers[column], after.numbers[column]
    if a.column.kind != "mean":
        return b.low - a.high, b.high - a.low
    shared = [name for name in before.scores if name in after.scores]
    heads = [(row, number.column.name) for row, number in ((before, a), (after, b))]
    values = np.array([[row.scores[name].values.get(head, np.nan) for name in shared] for row, head in heads])
    differences = values[1] - values[0]
    differences = differences[~np.isnan(differences)]
    return mean_interval(differences) if len(differences) else None


def _verdict(low: float, high: float | None = None) -> str:
    high = low if high is None else high
    return "better" if low > 0 else "worse" if high < 0 else "equal"


def orderings_text(found: Sequence[Ordering]) -> str:
    """Markdown: each comparison, and how many come out."""
    lines = [
        "## Which of the paper's orderings come out",
        "",
        "Is the second row better or worse than the first? Means over pairs are told apart where the 95 % interval of",
        "the pairs' differences leaves out 0; distances (FID, FVD, emotion FID) where their intervals do not overlap.",
        "",
        "| rows | column | published | here | comes out |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in found:
        rows = f"{one.before.protocol} {one.before.name} → {one.after.protocol} {one.after.name}"
        lines.append(f"| {rows} | {one.column} | {one.published} | {one.here} | {one.outcome} |")
    outcomes = [one.outcome for one in found]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("yes", "not told apart", "no"))
    return "\n".join([*lines, "", f"Of {len(found)}: {counts}.", ""])

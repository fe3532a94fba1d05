"""Checks which orderings of the rows in the paper's Table 2 hold for one's own systems."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidchat.bench.ablation import COLUMNS, PUBLISHED, SWITCHES, Row, RowKey, published
from vidchat.bench.intervals import mean_interval


@dataclass(frozen=True)
class Ordering:
    """Comparison of two rows by one column, in the paper and here.

    Attributes:
        before: Row with fewer switches on.
        after: Row with more switches on.
        column: Column by which the rows are compared.
        published: Published result of the second row: `better`, `worse` or `equal`.
        here: Result of the second row here; `equal` where the two cannot be told apart.
    """

    before: RowKey
    after: RowKey
    column: str
    published: str
    here: str

    @property
    def outcome(self) -> str:
        """Returns `yes`, `no`, or `not told apart`."""
        if self.published == self.here:
            return "yes"
        return "not told apart" if self.here == "equal" else "no"


def orderings(rows: Sequence[Row]) -> list[Ordering]:
    """Returns every comparison for which both the paper and these rows have numbers.

    Adjacent rows of one protocol are compared, and the two protocols with all switches on.
    """
    own = {row.key: row for row in rows}
    keys = [RowKey(*key) for key in PUBLISHED]
    steps = [(a, b) for a, b in itertools.pairwise(keys) if a.protocol == b.protocol]
    steps.append((RowKey("conditioned", SWITCHES), RowKey("dyadic", SWITCHES)))
    comparisons = []
    for before, after in steps:
        if before not in own or after not in own:
            continue
        for column, old, new in zip(COLUMNS, published(before), published(after), strict=True):
            if old is not None and new is not None and (gap := _gap(own[before], own[after], column)) is not None:
                sign = -1 if own[before].numbers[column].column.better == "lower" else 1
                in_paper = _verdict(sign * (new - old))
                here = _verdict(*sorted(sign * end for end in gap))
                comparisons.append(Ordering(before, after, column, in_paper, here))
    return comparisons


def _gap(before: Row, after: Row, column: str) -> tuple[float, float] | None:
    """Returns the 95 % interval of the second row's value minus the first's; `None` if one of them has no value.

    The interval of a mean comes from a bootstrap over the differences of pairs, since both rows answered the same
    pairs. The interval of a distance between sets comes from the intervals of the two rows, which is conservative.
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


def orderings_text(comparisons: Sequence[Ordering]) -> str:
    """Returns all comparisons as Markdown, with the number of each outcome."""
    lines = [
        "## Which of the paper's orderings come out",
        "",
        "Is the second row better or worse than the first? Means over pairs are told apart where the 95 % interval of",
        "the pairs' differences leaves out 0; distances (FID, FVD, emotion FID) where their intervals do not overlap.",
        "",
        "| rows | column | published | here | comes out |",
        "| --- | --- | --- | --- | --- |",
    ]
    for item in comparisons:
        rows = f"{item.before.protocol} {item.before.name} → {item.after.protocol} {item.after.name}"
        lines.append(f"| {rows} | {item.column} | {item.published} | {item.here} | {item.outcome} |")
    outcomes = [item.outcome for item in comparisons]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("yes", "not told apart", "no"))
    return "\n".join([*lines, "", f"Of {len(comparisons)}: {counts}.", ""])

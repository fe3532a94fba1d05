"""The rows of the paper's Table 2 with trained releases of one's own, beside the published numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidchat.bench.results import Number, ResultError, read_result
from vidchat.bench.table import figure

SWITCHES = ("audio", "spatial", "noise")
COLUMNS = ("FID", "FVD", "PSNR", "SSIM", "ArcFace", "Sync-C", "emotion FID")
PUBLISHED_PAIRS = 500
PUBLISHED: Mapping[tuple[str, tuple[str, ...]], tuple[float | None, ...]] = {
    ("conditioned", ()): (56.82, 55.06, 15.26, 0.62, 0.638, None, None),
    ("conditioned", SWITCHES): (34.72, 30.43, 17.39, 0.65, 0.758, 2.655, 3.23),
    ("dyadic", ()): (49.97, 47.23, 15.74, 0.62, 0.637, None, None),
    ("dyadic", ("audio",)): (49.86, 36.90, None, None, 0.635, None, None),
    ("dyadic", ("audio", "spatial")): (35.67, 31.28, None, None, 0.749, None, None),
    ("dyadic", SWITCHES): (32.35, 28.82, 17.55, 0.66, 0.772, 2.698, 3.22),
}
"""SpeakerVid-5M (arXiv 2507.09862), Table 2: protocol and switches to the columns."""
FORM = "PROTOCOL:SWITCHES=SCORES.json:SYSTEM, such as dyadic:audio,spatial=runs/a/scores.json:ours, or dyadic:none=..."


@dataclass(frozen=True)
class Row:
    """One trained release's numbers.

    Attributes:
        protocol: `conditioned` or `dyadic`.
        switches: Which of `SWITCHES` are on, in that order.
        system: Its name in the results.
        pairs: How many were asked.
        numbers: By column.
    """

    protocol: str
    switches: tuple[str, ...]
    system: str
    pairs: int
    numbers: Mapping[str, Number]


def read_row(text: str) -> Row:
    """A row as it is named on the command line.

    Raises:
        ResultError: It is not of the form, or the file has no such system, or was scored by the other protocol.
    """
    found = re.fullmatch(r"(conditioned|dyadic):([a-z,]+)=(.+):([^:]+)", text)
    if found is None:
        raise ResultError(f"'{text}' is not of the form {FORM}")
    protocol, words, path, name = found.groups()
    given = [] if words == "none" else words.split(",")
    if unknown := set(given) - set(SWITCHES):
        raise ResultError(
            f"'{text}': there is no switch {sorted(unknown)[0]}; there are {', '.join(SWITCHES)}, or none"
        )
    result = read_result(Path(path))
    system = next((system for system in result.systems if system.name == name), None)
    if system is None:
        raise ResultError(f"{path}: has no system '{name}'; it has {', '.join(s.name for s in result.systems)}")
    if result.protocol != protocol:
        raise ResultError(f"{path}: was scored as {result.protocol}, not as {protocol}")
    numbers = {number.column.name: number for number in system.numbers}
    return Row(protocol, tuple(s for s in SWITCHES if s in given), name, len(result.pairs), numbers)


def ablation_table(rows: Sequence[Row]) -> str:
    """Markdown: each published row, under it those of the same protocol and switches, and how they differ."""
    lines = [
        "# Ablations, beside SpeakerVid-5M's Table 2",
        "",
        f"| | {' | '.join(SWITCHES)} | {' | '.join(COLUMNS)} |",
        f"| --- |{' :---: |' * len(SWITCHES)}{' ---: |' * len(COLUMNS)}",
    ]
    places = [*PUBLISHED, *dict.fromkeys((row.protocol, row.switches) for row in rows)]
    for place in dict.fromkeys(places):
        protocol, on = place
        marks = " | ".join("yes" if switch in on else "-" for switch in SWITCHES)
        if place in PUBLISHED:
            cells = ["" if value is None else f"{value:g}" for value in PUBLISHED[place]]
            lines.append(f"| {protocol}, published | {marks} | {' | '.join(cells)} |")
        for row in rows:
            if (row.protocol, row.switches) == place:
                cells = [_cell(row.numbers.get(column)) for column in COLUMNS]
                lines.append(f"| {protocol}, **{row.system}** | {marks} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_differences(rows), ""])


def _cell(number: Number | None) -> str:
    return "" if number is None else figure(number) + (" *proxy*" if number.proxy else "")


def _differences(rows: Sequence[Row]) -> list[str]:
    """What stands between the two kinds of rows."""
    lines = [
        "The published rows are not of the same protocol: the paper does not say which weights, frames or resize "
        "filters it used, its 500 pairs are other clips, and its models had 0.8 B parameters. Compare differences "
        "between rows of one kind, not the kinds."
    ]
    strings: dict[str, set[str]] = {}
    for row in rows:
        for column in COLUMNS:
            if (number := row.numbers.get(column)) is not None:
                strings.setdefault(column, set()).add(_without_protocol(number.protocol))
    for row in rows:
        if row.pairs != PUBLISHED_PAIRS:
            lines.append(f"- {row.system} ({row.protocol}): {row.pairs} pairs, published {PUBLISHED_PAIRS}.")
    for column, told in strings.items():
        if len(told) > 1:
            lines.append(f"- **{column}: the rows above were scored by different protocols and cannot be compared:**")
        lines += [f"- {column}: `{one}`" for one in sorted(told)]
    return lines


def _without_protocol(string: str) -> str:
    """The string without `protocol=`, which is the row's own column."""
    return "; ".join(part for part in string.split("; ") if not part.startswith("protocol="))


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same as plain data."""
    return [
        {
            "protocol": row.protocol,
            "switches": list(row.switches),
            "system": row.system,
            "pairs": row.pairs,
            "published": dict(zip(COLUMNS, PUBLISHED.get((row.protocol, row.switches), (None,) * 7), strict=True)),
            "numbers": {
                column: {"value": n.value, "low": n.low, "high": n.high, "proxy": n.proxy, "protocol": n.protocol}
                for column in COLUMNS
                if (n := row.numbers.get(column)) is not None
            },
        }
        for row in rows
    ]

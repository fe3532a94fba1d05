"""The rows of the paper's Table 2 for one's own trained systems, next to the published numbers."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidchat.bench.clips import SUFFIXES
from vidchat.bench.metric import PROXY
from vidchat.bench.results import Number, PairScore, Result
from vidchat.bench.table import format_number

SWITCHES = ("audio", "spatial", "noise")
OWN_SWITCHES = ("fine", "resample")
"""Switches that the paper does not have: what is heard is read finely; training continues the model's own chunks."""
ALL_SWITCHES = (*SWITCHES, *OWN_SWITCHES)
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
"""Table 2 of SpeakerVid-5M (arXiv 2507.09862): values of `COLUMNS` by protocol and switches."""
FORM = "PROTOCOL:SWITCHES=FOLDER, such as rows.dyadic:audio,spatial=runs/a or rows.dyadic:none=runs/b"


class AblationError(ValueError):
    """Error about a row that cannot be read or generated; its message is one sentence that says what to do."""


@dataclass(frozen=True, order=True)
class RowKey:
    """Protocol and switches that identify a row of the table.

    Attributes:
        protocol: `conditioned` or `dyadic`.
        switches: Those of `ALL_SWITCHES` that are on, in that order.
    """

    protocol: str
    switches: tuple[str, ...]

    @property
    def name(self) -> str:
        """Returns the name of the row's system in results and folders."""
        return "+".join(self.switches) or "none"


@dataclass(frozen=True)
class Row:
    """Numbers of one trained system.

    Attributes:
        key: Protocol and switches of the row.
        pairs: Number of pairs.
        numbers: Numbers by column.
        scores: Score of each pair, by its id.
    """

    key: RowKey
    pairs: int
    numbers: Mapping[str, Number]
    scores: Mapping[str, PairScore]


def parse_row(text: str) -> tuple[RowKey, Path]:
    """Parses a row and its folder, as they are given on the command line.

    Raises:
        AblationError: The text does not have the form, or there is no such folder.
    """
    match = re.fullmatch(r"(conditioned|dyadic):([a-z,]+)=(.+)", text)
    if match is None:
        raise AblationError(f"'{text}' is not of the form {FORM}")
    protocol, words, path = match.groups()
    chosen = [] if words == "none" else words.split(",")
    if unknown := set(chosen) - set(ALL_SWITCHES):
        raise AblationError(
            f"'{text}': there is no switch {sorted(unknown)[0]}; there are {', '.join(ALL_SWITCHES)}, or none"
        )
    if not Path(path).is_dir():
        raise AblationError(f"'{text}': there is no folder {path}")
    return RowKey(protocol, tuple(switch for switch in ALL_SWITCHES if switch in chosen)), Path(path)


def generate(template: str, release: Path, pairs: Path, output: Path) -> str:
    """Runs the command that answers the pairs with one system.

    If the command fails after it has written some clips, these are scored, and the other clips count as missing.

    Args:
        template: Command line in which {release}, {pairs} and {output} stand for folders.
        release: Folder of the trained system.
        pairs: Folder of the benchmark.
        output: Folder in which the command writes ID.mp4 for each pair.

    Returns:
        A message to the user if the command failed, else an empty string.

    Raises:
        AblationError: The command cannot be run, or failed and wrote no clip.
    """
    folders = {"release": str(release), "pairs": str(pairs), "output": str(output)}
    try:
        words = [word.format(**folders) for word in shlex.split(template)]
        subprocess.run(words, check=True)
    except (KeyError, IndexError, ValueError) as error:
        raise AblationError(f"generate replaces {{release}}, {{pairs}} and {{output}}, but not {error}") from error
    except OSError as error:
        raise AblationError(f"generate: {error}") from error
    except subprocess.CalledProcessError as error:
        failure = f"{release}: code {error.returncode} of the command {shlex.join(words)}"
        clips = sum(path.suffix in SUFFIXES for path in output.iterdir()) if output.is_dir() else 0
        if not clips:
            raise AblationError(failure) from error
        return f"{failure}; its {clips} clips are scored, the others as missing"
    return ""


def result_rows(result: Result) -> list[Row]:
    """Returns the rows of a result: its systems whose names are combinations of switches."""
    names = {RowKey(result.protocol, on).name: RowKey(result.protocol, on) for on in _switch_subsets()}
    return [
        Row(names[system.name], len(result.pairs), _by_metric(system.numbers), system.scores)
        for system in result.systems
        if system.name in names
    ]


def _by_metric(numbers: Sequence[Number]) -> dict[str, Number]:
    """Returns the numbers by metric; a proxy is put under the metric that it stands in for, and marked in the table."""
    return {number.column.name.removeprefix(PROXY): number for number in numbers if number.count}


def _switch_subsets() -> list[tuple[str, ...]]:
    return [on for size in range(len(ALL_SWITCHES) + 1) for on in itertools.combinations(ALL_SWITCHES, size)]


def ablation_table(rows: Sequence[Row]) -> str:
    """Returns the table as Markdown: each published row, our row of the same key below it, and how they differ."""
    used = {switch for row in rows for switch in row.key.switches}
    switches = [*SWITCHES, *(switch for switch in OWN_SWITCHES if switch in used)]
    lines = [
        "# Ablations, beside SpeakerVid-5M's Table 2",
        "",
        f"| | {' | '.join(switches)} | {' | '.join(COLUMNS)} |",
        f"| --- |{' :---: |' * len(switches)}{' ---: |' * len(COLUMNS)}",
    ]
    known = [RowKey(*key) for key in PUBLISHED]
    for key in dict.fromkeys([*known, *(row.key for row in rows)]):
        marks = " | ".join("yes" if switch in key.switches else "-" for switch in switches)
        if key in known:
            cells = ["" if value is None else f"{value:g}" for value in published(key)]
            lines.append(f"| {key.protocol}, published | {marks} | {' | '.join(cells)} |")
        for row in rows:
            if row.key == key:
                cells = [_cell(row.numbers.get(column)) for column in COLUMNS]
                lines.append(f"| {key.protocol}, **here** | {marks} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_differences(rows), ""])


def published(key: RowKey) -> tuple[float | None, ...]:
    """Returns the paper's values of a row in the order of `COLUMNS`; `None` for values that it does not report."""
    return PUBLISHED.get((key.protocol, key.switches), (None,) * len(COLUMNS))


def _cell(number: Number | None) -> str:
    return "" if number is None else format_number(number) + (" *proxy*" if number.proxy else "")


def _differences(rows: Sequence[Row]) -> list[str]:
    """Returns the section that says why published rows and ours cannot be compared directly."""
    lines = [
        "## How the rows differ from the published ones",
        "",
        "The published rows are not of the same protocol: the paper does not say which weights, frames or resize "
        "filters it used, its 500 pairs are other clips, and its models had 0.8 B parameters. Compare differences "
        "between rows of one kind, not the kinds.",
        "",
    ]
    strings: dict[str, set[str]] = {}
    for row in rows:
        for column in COLUMNS:
            if (number := row.numbers.get(column)) is not None:
                strings.setdefault(column, set()).add(_without_protocol(number.protocol))
    for pairs in sorted({row.pairs for row in rows} - {PUBLISHED_PAIRS}):
        lines.append(f"- {pairs} pairs, published {PUBLISHED_PAIRS}.")
    for column, protocols in strings.items():
        if len(protocols) > 1:
            lines.append(f"- **{column}: the rows above were scored by different protocols and cannot be compared:**")
        lines += [f"- {column}: `{protocol}`" for protocol in sorted(protocols)]
    return lines


def _without_protocol(string: str) -> str:
    """Removes `protocol=` from a protocol string, since it is part of the row's key."""
    return "; ".join(part for part in string.split("; ") if not part.startswith("protocol="))


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the rows as plain data."""
    return [
        {
            "protocol": row.key.protocol,
            "switches": list(row.key.switches),
            "pairs": row.pairs,
            "published": dict(zip(COLUMNS, published(row.key), strict=True)),
            "numbers": {
                column: {"value": n.value, "low": n.low, "high": n.high, "proxy": n.proxy, "protocol": n.protocol}
                for column in COLUMNS
                if (n := row.numbers.get(column)) is not None
            },
        }
        for row in rows
    ]

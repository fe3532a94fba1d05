"""The rows of the paper's Table 2 with trained systems of one's own, beside the published numbers."""

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
FORM = "PROTOCOL:SWITCHES=FOLDER, such as rows.dyadic:audio,spatial=runs/a or rows.dyadic:none=runs/b"


class AblationError(ValueError):
    """A row that cannot be read or made, and what to do about it, in one sentence."""


@dataclass(frozen=True, order=True)
class Place:
    """A row of the table.

    Attributes:
        protocol: `conditioned` or `dyadic`.
        switches: Which of `SWITCHES` are on, in that order.
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
        place: Row of the table.
        pairs: Number of pairs.
        numbers: Numbers by column.
        scores: Score of each pair, by its id.
    """

    place: Place
    pairs: int
    numbers: Mapping[str, Number]
    scores: Mapping[str, PairScore]


def read_place(text: str) -> tuple[Place, Path]:
    """Returns a row and its folder, as named on the command line.

    Raises:
        AblationError: The text does not have the form, or there is no such folder.
    """
    found = re.fullmatch(r"(conditioned|dyadic):([a-z,]+)=(.+)", text)
    if found is None:
        raise AblationError(f"'{text}' is not of the form {FORM}")
    protocol, words, path = found.groups()
    given = [] if words == "none" else words.split(",")
    if unknown := set(given) - set(SWITCHES):
        raise AblationError(
            f"'{text}': there is no switch {sorted(unknown)[0]}; there are {', '.join(SWITCHES)}, or none"
        )
    if not Path(path).is_dir():
        raise AblationError(f"'{text}': there is no folder {path}")
    return Place(protocol, tuple(switch for switch in SWITCHES if switch in given)), Path(path)


def generate(template: str, release: Path, pairs: Path, output: Path) -> str:
    """Runs the command that answers the pairs with one system.

    A command that fails over some pairs has answered the others: what it wrote is scored, the rest as missing.

    Args:
        template: Command line in which {release}, {pairs} and {output} stand for folders.
        release: Folder of the trained system.
        pairs: Folder of the benchmark.
        output: Folder in which the command writes ID.mp4 for each pair.

    Returns:
        What to tell the user, if it failed; else nothing.

    Raises:
        AblationError: The command cannot be run, or failed and wrote no clip.
    """
    places = {"release": str(release), "pairs": str(pairs), "output": str(output)}
    try:
        words = [word.format(**places) for word in shlex.split(template)]
        subprocess.run(words, check=True)
    except (KeyError, IndexError, ValueError) as error:
        raise AblationError(f"generate knows {{release}}, {{pairs}} and {{output}}, and not {error}") from error
    except OSError as error:
        raise AblationError(f"generate: {error}") from error
    except subprocess.CalledProcessError as error:
        failure = f"{release}: code {error.returncode} of the command {shlex.join(words)}"
        clips = sum(path.suffix in SUFFIXES for path in output.iterdir()) if output.is_dir() else 0
        if not clips:
            raise AblationError(failure) from error
        return f"{failure}; its {clips} clips are scored, the others as missing"
    return ""


def rows_of(result: Result) -> list[Row]:
    """The rows among a result's systems: those that are named as rows are."""
    names = {Place(result.protocol, on).name: Place(result.protocol, on) for on in _subsets()}
    return [
        Row(names[system.name], len(result.pairs), _by_measure(system.numbers), system.scores)
        for system in result.systems
        if system.name in names
    ]


def _by_measure(numbers: Sequence[Number]) -> dict[str, Number]:
    """Numbers by the column of the table that they stand in; a proxy's stands in its measure's, and is marked there."""
    return {number.column.name.removeprefix(PROXY): number for number in numbers if number.count}


def _subsets() -> list[tuple[str, ...]]:
    return [on for size in range(len(SWITCHES) + 1) for on in itertools.combinations(SWITCHES, size)]


def ablation_table(rows: Sequence[Row]) -> str:
    """Markdown: each published row, under it ours of the same protocol and switches, and how they differ."""
    lines = [
        "# Ablations, beside SpeakerVid-5M's Table 2",
        "",
        f"| | {' | '.join(SWITCHES)} | {' | '.join(COLUMNS)} |",
        f"| --- |{' :---: |' * len(SWITCHES)}{' ---: |' * len(COLUMNS)}",
    ]
    known = [Place(*key) for key in PUBLISHED]
    for place in dict.fromkeys([*known, *(row.place for row in rows)]):
        marks = " | ".join("yes" if switch in place.switches else "-" for switch in SWITCHES)
        if place in known:
            cells = ["" if value is None else f"{value:g}" for value in published(place)]
            lines.append(f"| {place.protocol}, published | {marks} | {' | '.join(cells)} |")
        for row in rows:
            if row.place == place:
                cells = [_cell(row.numbers.get(column)) for column in COLUMNS]
                lines.append(f"| {place.protocol}, **here** | {marks} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_differences(rows), ""])


def published(place: Place) -> tuple[float | None, ...]:
    """The paper's numbers of a row, by `COLUMNS`."""
    return PUBLISHED.get((place.protocol, place.switches), (None,) * len(COLUMNS))


def _cell(number: Number | None) -> str:
    return "" if number is None else figure(number) + (" *proxy*" if number.proxy else "")


def _differences(rows: Sequence[Row]) -> list[str]:
    """What stands between the two kinds of rows."""
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
    for column, told in strings.items():
        if len(told) > 1:
            lines.append(f"- **{column}: the rows above were scored by different protocols and cannot be compared:**")
        lines += [f"- {column}: `{one}`" for one in sorted(told)]
    return lines


def _without_protocol(string: str) -> str:
    """The string without `protocol=`, which is the row's own column."""
    return "; ".join(part for part in string.split("; ") if not part.startswith("protocol="))


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the rows as plain data."""
    return [
        {
            "protocol": row.place.protocol,
            "switches": list(row.place.switches),
            "pairs": row.pairs,
            "published": dict(zip(COLUMNS, published(row.place), strict=True)),
            "numbers": {
                column: {"value": n.value, "low": n.low, "high": n.high, "proxy": n.proxy, "protocol": n.protocol}
                for column in COLUMNS
                if (n := row.numbers.get(column)) is not None
            },
        }
        for row in rows
    ]

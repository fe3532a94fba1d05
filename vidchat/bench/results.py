"""What scoring gives, as dataclasses and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidchat.bench.measure import Column

FORMAT = 1


class ResultError(ValueError):
    """A file that does not hold results, in one sentence."""


@dataclass(frozen=True)
class Number:
    """One cell of the table.

    Attributes:
        column: What is measured.
        dimension: Of the seven.
        proxy: Whether it stands in for the canonical measure.
        protocol: Everything that it depends on.
        value: The number.
        low: Of its 95 % interval.
        high: Of its 95 % interval.
        count: Pairs behind it; fewer than `pairs` where some cannot have the number at all.
        pairs: That were asked.
    """

    column: Column
    dimension: str
    proxy: bool
    protocol: str
    value: float
    low: float
    high: float
    count: int
    pairs: int


@dataclass(frozen=True)
class PairScore:
    """What one system's answer to one pair scored.

    Attributes:
        values: By column.
        statuses: What was wrong with the clip; `good` alone if nothing was.
        note: The same in words.
        seconds: The clip's length.
        clip: `path`, `start`, `end` of the clip, or `None`.
    """

    values: Mapping[str, float]
    statuses: tuple[str, ...]
    note: str
    seconds: float
    clip: Mapping[str, Any] | None


@dataclass(frozen=True)
class SystemResult:
    """One line of the table, and what is behind it."""

    name: str
    numbers: Sequence[Number]
    scores: Mapping[str, PairScore]

    def counts(self) -> dict[str, int]:
        """How many clips had which status."""
        every = [status for score in self.scores.values() for status in score.statuses]
        return {status: every.count(status) for status in dict.fromkeys(every)}

    def bad(self) -> dict[str, PairScore]:
        """The pairs whose clips or logs were not good."""
        return {name: score for name, score in self.scores.items() if score.statuses != ("good",) or score.note}


@dataclass(frozen=True)
class Result:
    """A run of `vidchat bench score`.

    Attributes:
        protocol: `conditioned` or `dyadic`.
        pairs: What was asked, in order.
        rule: By which bad clips were scored.
        systems: In the order of the table.
        warnings: That a reader of the numbers must know.
    """

    protocol: str
    pairs: Sequence[Mapping[str, Any]]
    rule: str
    systems: Sequence[SystemResult]
    warnings: Sequence[str]

    def write(self, path: Path) -> None:
        """Writes JSON; a value that is no number becomes null."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_plain({"format": FORMAT, **asdict(self)}), indent=1, ensure_ascii=False)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)


def read_result(path: Path) -> Result:
    """Reads what `Result.write` wrote.

    Raises:
        ResultError: The file holds something else.
    """
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        if told["format"] != FORMAT:
            raise ResultError(f"{path}: has format {told['format']}, this version reads {FORMAT}; score again")
        systems = [
            SystemResult(
                system["name"],
                [Number(**{**number, "column": Column(**number["column"])}) for number in system["numbers"]],
                {name: _score(score) for name, score in system["scores"].items()},
            )
            for system in told["systems"]
        ]
        return Result(told["protocol"], told["pairs"], told["rule"], systems, told["warnings"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ResultError(f"{path}: holds no results of `vidchat bench score` ({error!r})") from None


def _score(told: Mapping[str, Any]) -> PairScore:
    values = {name: math.nan if value is None else value for name, value in told["values"].items()}
    return PairScore(values, tuple(told["statuses"]), told["note"], told["seconds"], told["clip"])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

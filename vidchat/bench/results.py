"""The results of scoring, as dataclasses and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidchat.bench.metric import Column
from vidchat.bench.protocol import text_hash
from vidchat.runtime.atomic import write_text

FORMAT = 2
NOT_SCORED = ("not scored",)  # statuses of a pair that could not be scored for any system


class ResultError(ValueError):
    """Error about a file that does not hold valid results; its message is one sentence."""


@dataclass(frozen=True)
class Number:
    """One cell of the table.

    Attributes:
        column: Column of the table.
        dimension: Dimension of the benchmark.
        proxy: Whether it stands in for the canonical metric.
        protocol: Everything that the number depends on, as text.
        value: Value of the cell.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        count: Number of pairs behind the value; fewer than `pairs` where some cannot have one, 0 where none can.
        pairs: Number of pairs of the benchmark.
        reason: Reason why there is no number, if there is none (`count` is 0, `value` is `nan`).
        draws: Values of a set distance on resampled pairs, the same resamples for every system of one protocol.
        doubt: Limit of the number on filmed people, as a sentence.
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
    reason: str = ""
    draws: Sequence[float] = ()
    doubt: str = ""


@dataclass(frozen=True)
class PairScore:
    """Scores of one system's answer to one pair.

    Attributes:
        values: Values by column.
        statuses: Faults of the clip; `good` alone if it has none.
        note: Faults of the clip in words.
        seconds: Length of the clip in seconds.
        clip: `path`, `start`, `end` of the clip, or `None`.
    """

    values: Mapping[str, float]
    statuses: tuple[str, ...]
    note: str
    seconds: float
    clip: Mapping[str, Any] | None


@dataclass(frozen=True)
class SystemResult:
    """One line of the table, and the scores behind it."""

    name: str
    numbers: Sequence[Number]
    scores: Mapping[str, PairScore]

    def counts(self) -> dict[str, int]:
        """Returns the number of clips by status."""
        statuses = [status for score in self.scores.values() for status in score.statuses]
        return {status: statuses.count(status) for status in dict.fromkeys(statuses)}

    def bad(self) -> dict[str, PairScore]:
        """Returns the scores of the pairs whose clips or logs were not good."""
        return {name: score for name, score in self.scores.items() if score.statuses != ("good",) or score.note}


@dataclass(frozen=True)
class Result:
    """A run of `vidchat bench score`.

    Attributes:
        protocol: `conditioned` or `dyadic`.
        pairs: Pairs of the benchmark, in order.
        rule: Rule by which bad clips were scored.
        systems: Results of the systems, in the order of the table.
        warnings: Warnings for readers of the numbers.
        date: Time of scoring, as text; empty where it was not recorded.
    """

    protocol: str
    pairs: Sequence[Mapping[str, Any]]
    rule: str
    systems: Sequence[SystemResult]
    warnings: Sequence[str]
    date: str = ""

    def write(self, path: Path) -> None:
        """Writes JSON with a hash of its content; values that are not finite become null."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = _without_nan({"format": FORMAT, **asdict(self)})
        write_text(path, json.dumps({"hash": _content_hash(content), **content}, indent=1) + "\n")


def read_result(path: Path) -> Result:
    """Reads what `Result.write` wrote.

    Raises:
        ResultError: The file holds something else, or was changed after it was written.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ResultError(f"{path}: has format {content['format']}, this version reads {FORMAT}; score again")
        if content.pop("hash") != _content_hash(content):
            raise ResultError(f"{path}: was changed after it was written (its hash differs); score again")
        systems = [
            SystemResult(
                system["name"],
                [_number(number) for number in system["numbers"]],
                {name: _score(score) for name, score in system["scores"].items()},
            )
            for system in content["systems"]
        ]
        return Result(
            content["protocol"], content["pairs"], content["rule"], systems, content["warnings"], content["date"]
        )
    except (OSError, KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        if isinstance(error, ResultError):
            raise
        why = f"{type(error).__name__}: {error}"[:200]  # the text of a UnicodeDecodeError may be the whole file
        raise ResultError(f"{path}: holds no results of `vidchat bench score` ({why})") from None


def _content_hash(content: Mapping[str, Any]) -> str:
    return text_hash([json.dumps(content, sort_keys=True)])


def _number(entry: Mapping[str, Any]) -> Number:
    missing = {name: math.nan for name in ("value", "low", "high") if entry[name] is None}
    return Number(**{**entry, **missing, "column": Column(**entry["column"]), "draws": tuple(entry["draws"])})


def _score(entry: Mapping[str, Any]) -> PairScore:
    values = {name: math.nan if value is None else value for name, value in entry["values"].items()}
    return PairScore(values, tuple(entry["statuses"]), entry["note"], entry["seconds"], entry["clip"])


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

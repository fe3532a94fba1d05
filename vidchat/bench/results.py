"""What scoring gives, as dataclasses and as JSON."""

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
NOT_SCORED = ("not scored",)  # the status of a pair that could be scored for no system


class ResultError(ValueError):
    """A file that does not hold results, in one sentence."""


@dataclass(frozen=True)
class Number:
    """One cell of the table.

    Attributes:
        column: Column of the table.
        dimension: One of the seven dimensions.
        proxy: Whether it stands in for the canonical measure.
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
        """Writes JSON with a hash of itself; a value that is no number becomes null."""
        path.parent.mkdir(parents=True, exist_ok=True)
        told = _plain({"format": FORMAT, **asdict(self)})
        write_text(path, json.dumps({"hash": _content_hash(told), **told}, indent=1) + "\n")


def read_result(path: Path) -> Result:
    """Reads what `Result.write` wrote.

    Raises:
        ResultError: The file holds something else, or was changed since.
    """
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        if told["format"] != FORMAT:
            raise ResultError(f"{path}: has format {told['format']}, this version reads {FORMAT}; score again")
        if told.pop("hash") != _content_hash(told):
            raise ResultError(f"{path}: was changed after it was written (its hash differs); score again")
        systems = [
            SystemResult(
                system["name"],
                [_number(number) for number in system["numbers"]],
                {name: _score(score) for name, score in system["scores"].items()},
            )
            for system in told["systems"]
        ]
        return Result(told["protocol"], told["pairs"], told["rule"], systems, told["warnings"], told["date"])
    except (OSError, KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        if isinstance(error, ResultError):
            raise
        why = f"{type(error).__name__}: {error}"[:200]  # of a UnicodeDecodeError, `repr` is the whole file
        raise ResultError(f"{path}: holds no results of `vidchat bench score` ({why})") from None


def _content_hash(content: Mapping[str, Any]) -> str:
    return text_hash([json.dumps(content, sort_keys=True)])


def _number(told: Mapping[str, Any]) -> Number:
    missing = {name: math.nan for name in ("value", "low", "high") if told[name] is None}
    return Number(**{**told, **missing, "column": Column(**told["column"]), "draws": tuple(told["draws"])})


def _score(told: Mapping[str, Any]) -> PairScore:
    values = {name: math.nan if value is None else value for name, value in told["values"].items()}
    return PairScore(values, tuple(told["statuses"]), told["note"], told["seconds"], told["clip"])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Values of pairs to numbers of systems, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vidchat.bench.frechet import Gaussian, frechet_distance
from vidchat.bench.intervals import mean_interval, spread_interval
from vidchat.bench.measure import Column, Measure
from vidchat.bench.pairs import Pair, candidates_hash
from vidchat.bench.responsiveness import COLUMNS
from vidchat.bench.results import Number, PairScore, SystemResult
from vidchat.bench.store import Store
from vidchat.bench.systems import TRUTH

Scored = dict[str, tuple[PairScore, dict[int, str]]]
"""By system: the pair's score, and by measure the key of its features."""
SAME = 1e-9
HELD = 1 << 28  # bytes of features that are held in memory; more is read from the disk again


@dataclass
class Summary:
    """Makes the table's lines.

    Attributes:
        measures: Whose columns there are.
        specs: Of the measures, as strings.
        pairs: What was asked.
        scored: Of every pair.
        store: Where the features lie.
        prefix: What all protocol strings of this run share.
        resamples: For the intervals of Fréchet distances.
        warnings: That a reader must know, gathered on the way.
    """

    measures: Sequence[Measure]
    specs: Sequence[str]
    pairs: Sequence[Pair]
    scored: Sequence[Scored]
    store: Store
    prefix: str
    resamples: int
    warnings: list[str] = field(default_factory=list)
    _held: dict[str, np.ndarray] = field(default_factory=dict)

    def of(self, name: str) -> SystemResult:
        scores = [scored[name][0] for scored in self.scored]
        numbers = []
        for index, measure in enumerate(self.measures):
            spec = self.specs[index]
            if measure.needs_candidates:
                spec = f"{spec}; candidates={candidates_hash(self.pairs)}"
            for column in measure.columns:
                number = self._number(name, index, column, scores)
                if number is not None:
                    value, low, high, count = number
                    string = f"metric={column.name}; {spec}; {self.prefix}"
                    numbers.append(
                        Number(
                            column, measure.dimension, measure.proxy, string, value, low, high, count, len(self.pairs)
                        )
                    )
        for column in COLUMNS:
            if (found := self._mean(column, scores)) is not None:
                string = f"metric={column.name}; backend=the generator's log; {self.prefix}"
                numbers.append(Number(column, "responsiveness", False, string, *found, len(self.pairs)))
        return SystemResult(name, numbers, dict(zip((pair.id for pair in self.pairs), scores, strict=True)))

    def _number(
        self, name: str, index: int, column: Column, scores: Sequence[PairScore]
    ) -> tuple[float, float, float, int] | None:
        return self._mean(column, scores) if column.kind == "mean" else self._distance(name, index, column)

    def _mean(self, column: Column, scores: Sequence[PairScore]) -> tuple[float, float, float, int] | None:
        values = np.array([score.values.get(column.name, np.nan) for score in scores])
        values = values[~np.isnan(values)]
        return (float(values.mean()), *mean_interval(values), len(values)) if len(values) else None

    def _distance(self, name: str, index: int, column: Column) -> tuple[float, float, float, int]:
        rows = {who: [scored[who][1][index] for scored in self.scored] for who in (TRUTH, name)}

        def distance(chosen: Sequence[int]) -> float:
            true, made = (self._gaussian(rows[who], chosen) for who in (TRUTH, name))
            return frechet_distance(true, made)

        everything = range(len(self.pairs))
        gaussian = self._gaussian(rows[name], everything)
        self._warn(column, gaussian.count, len(gaussian.mean))
        value = distance(everything)
        if value < SAME:  # the same set, in whatever order: other pairs would give 0 again
            return value, value, value, len(self.pairs)
        low, high = spread_interval(value, lambda chosen: distance(chosen.tolist()), len(self.pairs), self.resamples)
        return value, low, high, len(self.pairs)

    def _gaussian(self, keys: Sequence[str], chosen: Sequence[int]) -> Gaussian:
        gaussian = None
        for index in chosen:
            rows = self._rows(keys[index])
            gaussian = Gaussian(rows.shape[1]) if gaussian is None else gaussian
            gaussian.update(rows)
        assert gaussian is not None, "there are pairs"
        return gaussian

    def _rows(self, key: str) -> np.ndarray:
        if key not in self._held:
            features = self.store.load(key)
            if features is None:
                raise ValueError(f"{self.store.folder}: features vanished while they were scored; run it again")
            if sum(rows.nbytes for rows in self._held.values()) + features["rows"].nbytes > HELD:
                return features["rows"]
            self._held[key] = features["rows"]
        return self._held[key]

    def _warn(self, column: Column, count: int, dimensions: int) -> None:
        warning = (
            f"{column.name}: {count} features of {dimensions} dimensions, so the covariance is singular and the "
            "distance is biased upwards; compare it only with numbers of as many features"
        )
        if count <= dimensions and warning not in self.warnings:
            self.warnings.append(warning)

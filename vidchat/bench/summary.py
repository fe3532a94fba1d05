"""Combines the values of pairs to the numbers of systems, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vidchat.bench.feature_cache import FeatureCache
from vidchat.bench.frechet import Gaussian, frechet_distance
from vidchat.bench.intervals import mean_interval, resamples, spread_interval
from vidchat.bench.metric import NO_TURNS, Column, Metric, column_title
from vidchat.bench.pairs import Pair, candidates_hash
from vidchat.bench.responsiveness import COLUMNS as LOGGED
from vidchat.bench.results import Number, PairScore, SystemResult
from vidchat.bench.systems import BUILT_IN, TRUTH

Scored = dict[str, tuple[PairScore, dict[int, str]]]
"""Results of one pair by system: its score, and the cache keys of its features by index of the metric."""
COVERAGE = Column("coverage", "higher")
NO_LOG = "no answer has a log beside it (ID.json, see docs/reference/bench.md)"
ZERO_DISTANCE = 1e-9
MAX_CACHED = 1 << 28  # bytes of features that stay in memory; others are read from disk again


@dataclass
class Summary:
    """Computes the lines of the table.

    Attributes:
        metrics: Metrics whose columns the table has.
        specs: Specifications of the metrics, as strings.
        pairs: Pairs of the benchmark.
        scored: Results of every pair.
        store: Store of the features.
        prefix: Part of the protocol string that all columns of this run share.
        resamples: Number of resamples for the intervals of Fréchet distances.
        warnings: Warnings for readers of the numbers, collected on the way.
    """

    metrics: Sequence[Metric]
    specs: Sequence[str]
    pairs: Sequence[Pair]
    scored: Sequence[Scored]
    store: FeatureCache
    prefix: str
    resamples: int
    warnings: list[str] = field(default_factory=list)
    _cached: dict[str, np.ndarray] = field(default_factory=dict)
    _draws: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def system_result(self, name: str) -> SystemResult:
        """Returns a system's line; a column without a value states the reason."""
        scores = [scored[name][0] for scored in self.scored]
        numbers = []
        for index, metric in enumerate(self.metrics):
            spec = self.specs[index]
            if metric.needs_candidates:
                spec = f"{spec}; candidates={candidates_hash(self.pairs)}"
            for column in metric.columns:
                titled = replace(column, name=column_title(column.name, metric.proxy))
                statistics = (
                    self._mean(titled, scores) if column.kind == "mean" else self._distance(name, index, titled)
                )
                string = f"metric={titled.name}; {spec}; {self.prefix}"
                number = Number(titled, metric.dimension, metric.proxy, string, *statistics, len(self.pairs))
                number = replace(number, doubt=metric.doubt if metric.proxy else "")
                numbers.append(number if number.count else replace(number, reason=self._reason(metric, titled, scores)))
        for column in (COVERAGE, *(LOGGED if name not in BUILT_IN else ())):
            backend = "the span that counts" if column is COVERAGE else "the generator's log"
            string = f"metric={column.name}; backend={backend}; {self.prefix}"
            number = Number(column, "responsiveness", False, string, *self._mean(column, scores), len(self.pairs))
            numbers.append(number if number.count else replace(number, reason=NO_LOG))
        drawn = [replace(n, draws=self._draws.get((name, n.column.name), ())) for n in numbers]
        return SystemResult(name, drawn, dict(zip((pair.id for pair in self.pairs), scores, strict=True)))

    def _reason(self, metric: Metric, column: Column, scores: Sequence[PairScore]) -> str:
        """Returns why a column has no value."""
        if metric.needs_candidates and not any(len(pair.candidates) > 1 for pair in self.pairs):
            return "no pair has candidate replies; `vidchat bench candidates` makes them"
        if column.kind == "frechet" and not metric.needs:
            return "a distance between sets needs more clips than this benchmark has pairs"
        if not metric.needs and any(column.name in score.values for score in scores):
            return "no true answer has a value of it (too short, or without a voice, motion or a face)"
        return metric.needs or NO_TURNS[metric.turns]

    def _mean(self, column: Column, scores: Sequence[PairScore]) -> tuple[float, float, float, int]:
        values = np.array([score.values.get(column.name, np.nan) for score in scores])
        values = values[~np.isnan(values)]
        return (float(values.mean()), *mean_interval(values), len(values)) if len(values) else (*3 * (np.nan,), 0)

    def _distance(self, name: str, index: int, column: Column) -> tuple[float, float, float, int]:
        keys = [(scored[TRUTH][1], scored[name][1]) for scored in self.scored]
        known = [{TRUTH: true[index], name: own[index]} for true, own in keys if index in true and index in own]
        rows = {system: [pair[system] for pair in known] for system in (TRUTH, name)}

        def distance(chosen: Sequence[int]) -> float:
            return frechet_distance(*(self._gaussian(rows[system], chosen) for system in (TRUTH, name)))

        everything = range(len(known))
        if not known or min(self._gaussian(rows[system], everything).count for system in (TRUTH, name)) < 2:
            return *3 * (np.nan,), 0
        gaussian = self._gaussian(rows[name], everything)
        self._warn(column, gaussian.count, len(gaussian.mean))
        value = distance(everything)
        if value < ZERO_DISTANCE:  # equal sets: resamples would give 0 too
            self._draws[name, column.name] = [value] * self.resamples
            return value, value, value, len(known)
        drawn = [distance(chosen.tolist()) for chosen in resamples(len(known), self.resamples)]
        self._draws[name, column.name] = drawn
        return value, *spread_interval(value, drawn, len(known)), len(known)

    def _gaussian(self, keys: Sequence[str], chosen: Sequence[int]) -> Gaussian:
        gaussian = None
        for index in chosen:
            rows = self._rows(keys[index])
            gaussian = Gaussian(rows.shape[1]) if gaussian is None else gaussian
            gaussian.update(rows)
        assert gaussian is not None, "there are pairs"
        return gaussian

    def _rows(self, key: str) -> np.ndarray:
        if key not in self._cached:
            features = self.store.load(key)
            if features is None:
                raise ValueError(f"{self.store.folder}: features vanished while they were scored; run it again")
            if sum(rows.nbytes for rows in self._cached.values()) + features["rows"].nbytes > MAX_CACHED:
                return features["rows"]
            self._cached[key] = features["rows"]
        return self._cached[key]

    def _warn(self, column: Column, count: int, dimensions: int) -> None:
        warning = (
            f"{column.name}: {count} features of {dimensions} dimensions, so the covariance is singular and the "
            "distance is biased upwards; compare it only with numbers of as many features"
        )
        if count <= dimensions and warning not in self.warnings:
            self.warnings.append(warning)

"""Confidence intervals by a bootstrap over pairs, with a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
SEED = 0
RESAMPLES = 1000  # for means, which are cheap
FRECHET_RESAMPLES = 100  # for Fréchet distances, each of which passes over all features


def resamples(pairs: int, times: int) -> Iterator[NDArray[np.int64]]:
    """Yields indices (pairs,) drawn with replacement, `times` times, the same ones in every run."""
    rng = np.random.default_rng((SEED, pairs))
    for _ in range(times):
        yield rng.integers(pairs, size=pairs)


def mean_interval(values: NDArray[np.float64], times: int = RESAMPLES) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean of values (n,)."""
    if len(values) < 2:
        return float(values.mean()), float(values.mean())
    means = np.array([values[chosen].mean() for chosen in resamples(len(values), times)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def spread_interval(value: float, drawn: Sequence[float], pairs: int) -> tuple[float, float]:
    """Returns the 95 % interval of a distance between sets, around its value.

    A resample holds some pairs twice, so its covariance is too small and its distance too large. Therefore the interval
    is the spread of the resamples about their own mean, laid around the value. It tells how much the value would change
    with as many other pairs, not how far it lies above the distance of infinitely many pairs.

    Args:
        value: Distance over all pairs.
        drawn: Distances over resampled pairs.
        pairs: Number of pairs.
    """
    if pairs < 3 or len(drawn) < 2:
        return value, value
    distances = np.array(drawn)
    low, high = np.quantile(distances - distances.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return max(0.0, value + float(low)), value + float(high)

"""Tests whether one system is better than another in one column, by a paired bootstrap over their common pairs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vidchat.bench.intervals import LEVEL, RESAMPLES, resamples
from vidchat.bench.metric import Better
from vidchat.bench.results import Number

ENOUGH_PAIRS = 6  # with fewer pairs, not even a sign test is significant at 95 %
ENOUGH_DRAWS = 20
STATED = (
    "Bold: better than every other system by a paired bootstrap over the pairs that both answered "
    f"({100 * LEVEL:.0f} %, each rival by itself; means and distances between sets alike; at least {ENOUGH_PAIRS} "
    "pairs). Without bold, the systems were not told apart."
)


def oriented(value: float | NDArray[np.float64], better: Better) -> NDArray[np.float64]:
    """Returns the values with the sign that makes higher better."""
    values = np.asarray(value, dtype=np.float64)
    return values if better == "higher" else -values


def surely_better(
    mine: Number, theirs: Number, my_values: Mapping[str, float], their_values: Mapping[str, float]
) -> bool:
    """Returns whether the 95 % interval of the difference lies above 0.

    Args:
        mine: Number of a system in one column.
        theirs: Number of another system in the same column.
        my_values: Values of the first system's pairs by id; unused for a distance between sets.
        their_values: Values of the other system's pairs.
    """
    if mine.column.kind == "frechet":
        return _nearer(mine, theirs)
    shared = [name for name in my_values if not np.isnan([my_values[name], their_values.get(name, np.nan)]).any()]
    if len(shared) < ENOUGH_PAIRS:
        return False
    values = np.array([[values[name] for name in shared] for values in (my_values, their_values)])
    mean_mine, mean_theirs = values[:, np.stack(list(resamples(len(shared), RESAMPLES)))].mean(2)
    better = mine.column.better
    return bool(_lower_end(oriented(mean_mine, better) - oriented(mean_theirs, better)) > 0)


def _nearer(mine: Number, theirs: Number) -> bool:
    """Compares two distances between sets on the same resamples.

    Resampled distances are biased upwards, and all alike, so the spread of their differences is laid around the
    difference of the distances over all pairs.
    """
    drawn = min(len(mine.draws), len(theirs.draws))
    if drawn < ENOUGH_DRAWS or min(mine.count, theirs.count) < ENOUGH_PAIRS:
        return False
    gains = np.array(theirs.draws[:drawn]) - np.array(mine.draws[:drawn])
    return bool(_lower_end(gains - gains.mean()) + theirs.value - mine.value > 0)


def _lower_end(values: NDArray[np.float64]) -> float:
    return float(np.quantile(values, (1 - LEVEL) / 2))

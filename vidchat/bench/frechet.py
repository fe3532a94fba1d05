"""Computes the Fréchet distance of two sets of features in one pass, also for fewer features than dimensions.

|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2) (Dowson and Landau 1982). With triangular factors, C = R'R, the last
trace is the sum of the singular values of R1 R2', since R1'R1 R2'R2 and (R1 R2')'(R1 R2') have the same non-zero
eigenvalues. So no root of a possibly singular matrix is taken, and no precision is lost by squaring.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Floats = NDArray[np.float64]

BLOCK = 4  # features are absorbed once 4 D of them are pending: QR is cheapest for many rows at once


class Gaussian:
    """Mean and covariance of features that arrive in batches; memory does not grow with their number.

    Args:
        dimensions: Dimension D of the features.

    Attributes:
        mean: Mean of the features absorbed so far, (D,).
        factor: Triangular factor R of their scatter matrix R'R about the mean, (at most D, D).
    """

    def __init__(self, dimensions: int) -> None:
        self.mean: Floats = np.zeros(dimensions)
        self.factor: Floats = np.zeros((0, dimensions))
        self._absorbed = 0
        self._pending: list[Floats] = []

    @property
    def count(self) -> int:
        """Returns the number of features so far."""
        return self._absorbed + sum(map(len, self._pending))

    def update(self, features: NDArray[np.floating]) -> Gaussian:
        """Adds features, (n, D).

        Raises:
            ValueError: The features have another dimension, or are not finite.
        """
        rows = np.atleast_2d(np.asarray(features, np.float64))
        if rows.shape[1] != len(self.mean):
            raise ValueError(f"features have {rows.shape[1]} dimensions, those before had {len(self.mean)}")
        if not np.isfinite(rows).all():
            raise ValueError("features hold a number that is not finite; check the backend that computed them")
        self._pending.append(rows)
        if sum(map(len, self._pending)) >= BLOCK * len(self.mean):
            self._absorb()
        return self

    def _absorb(self) -> None:
        if not self._pending:
            return
        rows, self._pending = np.concatenate(self._pending), []
        mean, total = rows.mean(0), self._absorbed + len(rows)
        between = math.sqrt(self._absorbed * len(rows) / total) * (mean - self.mean)
        stacked = np.concatenate([self.factor, rows - mean, between[None]])
        self.factor = linalg.qr(stacked, mode="economic", overwrite_a=True, check_finite=False)[1]
        self.mean = self.mean + (mean - self.mean) * (len(rows) / total)
        self._absorbed = total

    def root(self) -> Floats:
        """Returns R, (at most D, D), with R'R equal to the unbiased covariance.

        Raises:
            ValueError: There are fewer than two features.
        """
        self._absorb()
        if self.count < 2:
            raise ValueError(f"a covariance needs two features or more, there are {self.count}")
        return self.factor / math.sqrt(self.count - 1)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Returns the squared Fréchet distance, as FID and FVD report it; 0 for equal sets."""
    root_a, root_b = a.root(), b.root()
    shared = linalg.svdvals(root_a @ root_b.T, check_finite=False).sum()
    distance = ((a.mean - b.mean) ** 2).sum() + (root_a**2).sum() + (root_b**2).sum() - 2 * shared
    return max(0.0, float(distance))

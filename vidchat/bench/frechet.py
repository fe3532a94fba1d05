"""The Fréchet distance of two sets of features, in one pass over them, also when there are fewer than dimensions.

|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2) (Dowson and Landau 1982). With triangular factors, C = R'R, the last
trace is the sum of the singular values of R1 R2': the eigenvalues of R1'R1 R2'R2 are those of (R1 R2')'(R1 R2'). So no
root of a (perhaps singular) matrix is taken, and no precision is lost by squaring.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Floats = NDArray[np.float64]

BLOCK = 4  # times D features are kept before they are absorbed: QR of many rows at once costs least


class Gaussian:
    """Mean and covariance of features that come in pieces; memory does not grow with their number.

    Args:
        dimensions: D, numbers in a feature.

    Attributes:
        mean: (D,), of the features absorbed so far.
        factor: (at most D, D), whose product with itself is their scatter about the mean.
    """

    def __init__(self, dimensions: int) -> None:
        self.mean: Floats = np.zeros(dimensions)
        self.factor: Floats = np.zeros((0, dimensions))
        self._absorbed = 0
        self._waiting: list[Floats] = []

    @property
    def count(self) -> int:
        """Features so far."""
        return self._absorbed + sum(map(len, self._waiting))

    def update(self, features: NDArray[np.floating]) -> Gaussian:
        """Adds (n, D) features.

        Raises:
            ValueError: They have another number of dimensions, or are not finite.
        """
        rows = np.atleast_2d(np.asarray(features, np.float64))
        if rows.shape[1] != len(self.mean):
            raise ValueError(f"features have {rows.shape[1]} dimensions, those before had {len(self.mean)}")
        if not np.isfinite(rows).all():
            raise ValueError("features hold a number that is not finite; the backend that made them is at fault")
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= BLOCK * len(self.mean):
            self._absorb()
        return self

    def _absorb(self) -> None:
        if not self._waiting:
            return
        rows, self._waiting = np.concatenate(self._waiting), []
        mean, total = rows.mean(0), self._absorbed + len(rows)
        between = math.sqrt(self._absorbed * len(rows) / total) * (mean - self.mean)
        stacked = np.concatenate([self.factor, rows - mean, between[None]])
        self.factor = linalg.qr(stacked, mode="economic", overwrite_a=True, check_finite=False)[1]
        self.mean = self.mean + (mean - self.mean) * (len(rows) / total)
        self._absorbed = total

    def root(self) -> Floats:
        """R (at most D, D) with R'R = the unbiased covariance.

        Raises:
            ValueError: There are fewer than two features.
        """
        self._absorb()
        if self.count < 2:
            raise ValueError(f"a covariance needs two features or more, there are {self.count}")
        return self.factor / math.sqrt(self.count - 1)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The (squared) Fréchet distance, which is what FID and FVD report; 0 for equal sets."""
    root_a, root_b = a.root(), b.root()
    shared = linalg.svdvals(root_a @ root_b.T, check_finite=False).sum()
    distance = ((a.mean - b.mean) ** 2).sum() + (root_a**2).sum() + (root_b**2).sum() - 2 * shared
    return max(0.0, float(distance))

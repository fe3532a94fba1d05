"""Compares with independent float64 references: matrix roots, and the definition of a covariance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from vidchat.bench.frechet import Gaussian, frechet_distance
from vidchat.bench.intervals import mean_interval, resamples, spread_interval


def gaussian(features, pieces=1):
    result = Gaussian(features.shape[1])
    for piece in np.array_split(features, pieces):
        result.update(piece)
    return result


def reference(a, b):
    """tr (C1 C2)^(1/2) by the eigenvalues of C1^(1/2) C2 C1^(1/2), in the space that both span."""
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = linalg.eigh(c1)
    keep = values > values.max() * 1e-12
    root = vectors[:, keep] * np.sqrt(values[keep])
    shared = linalg.eigvalsh(root.T @ c2 @ root)
    shared = shared[shared > shared.max() * 1e-14]
    return mean + np.trace(c1) + np.trace(c2) - 2 * np.sqrt(shared).sum()


@pytest.mark.parametrize(("n", "m", "dimensions"), [(400, 300, 16), (20, 30, 64), (5, 200, 40), (2, 3, 8)])
def test_it_equals_an_independent_float64_reference(n, m, dimensions):
    rng = np.random.default_rng(n)
    mixing = rng.normal(size=(dimensions, dimensions))
    a, b = rng.normal(size=(n, dimensions)) @ mixing, rng.normal(size=(m, dimensions)) * 2 + 0.5
    assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(reference(a, b), rel=1e-6)


def test_it_equals_the_matrix_root_where_that_is_well_defined():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(500, 10)), rng.normal(size=(500, 10)) @ rng.normal(size=(10, 10)) + 1
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(linalg.sqrtm(c1 @ c2))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
    assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(expected, rel=1e-9)


def test_known_distance_of_two_normal_lines():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 1))
    x = (x - x.mean()) / x.std(ddof=1)
    assert frechet_distance(gaussian(x), gaussian(3 * x + 4)) == pytest.approx(16 + (3 - 1) ** 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(1, 30), st.integers(1, 7), st.integers(0, 1000))
def test_pieces_give_the_mean_and_covariance_of_the_whole(n, dimensions, pieces, seed):
    features = np.random.default_rng(seed).normal(size=(n, dimensions)) * 100 + 1000
    streamed = gaussian(features, min(pieces, n))
    root = streamed.root()
    covariance = np.atleast_2d(np.cov(features, rowvar=False))
    assert streamed.count == n
    assert root.shape[0] <= dimensions + 1
    np.testing.assert_allclose(streamed.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(root.T @ root, covariance, rtol=1e-9, atol=1e-6)


def test_memory_does_not_grow_with_the_number_of_features():
    streamed = Gaussian(8)
    sizes = []
    for _ in range(40):
        streamed.update(np.random.default_rng(0).normal(size=(50, 8)))
        sizes.append(streamed.factor.size + sum(rows.size for rows in streamed._pending))
    assert max(sizes) <= 8 * 8 + 4 * 8 * 8 + 50 * 8


def test_equal_sets_are_at_distance_0_in_any_order():
    features = np.random.default_rng(0).normal(size=(30, 50))
    assert frechet_distance(gaussian(features), gaussian(features[::-1], 3)) == pytest.approx(0, abs=1e-9)


def test_features_without_a_covariance_are_refused():
    with pytest.raises(ValueError, match="two features"):
        Gaussian(3).update(np.zeros((1, 3))).root()
    with pytest.raises(ValueError, match="not finite"):
        Gaussian(2).update(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="dimensions"):
        Gaussian(2).update(np.zeros((1, 3)))


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(150):
        low, high = mean_interval(rng.normal(size=40), times=200)
        inside += low <= 0 <= high
    assert 0.88 < inside / 150 < 0.99


def test_intervals_are_the_same_every_time():
    values = np.random.default_rng(1).normal(size=20)
    assert mean_interval(values) == mean_interval(values)

    drawn = [[float(values[chosen].var()) for chosen in resamples(20, 200)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    low, high = spread_interval(float(values.var()), drawn[0], 20)
    assert low < values.var() < high

"""Principal components, against the eigenvectors of the covariance."""

import numpy as np
import pytest

from scoresens.statistics import principal_components

RNG = np.random.default_rng(0)


def test_components_are_the_directions_of_most_variance():
    x = RNG.normal(size=(500, 2, 2)) * np.array([[1, 5], [0.1, 3]]) + 7
    found = np.abs(principal_components(x, 2))
    np.testing.assert_allclose(found, [[0, 1, 0, 0], [0, 0, 0, 1]], atol=0.1)


@pytest.mark.parametrize("count", [3, 12])  # fewer points than entries, and more
def test_components_are_eigenvectors_of_the_covariance(count):
    x = RNG.normal(size=(count, 6)).astype(np.float32)
    found = principal_components(x, 2)
    values, vectors = np.linalg.eigh(np.cov(x.T.astype(float)))
    inner = np.abs(found @ vectors[:, ::-1])
    np.testing.assert_allclose(inner, np.eye(2, 6), atol=1e-6)
    assert found.dtype == np.float64 and values[-1] > values[-2]


def test_there_are_no_more_than_points_or_entries():
    assert principal_components(RNG.normal(size=(3, 2, 4)), 9).shape == (3, 8)

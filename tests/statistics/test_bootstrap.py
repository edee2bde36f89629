"""The bootstrap against what theory says of means."""

import numpy as np
import pytest

from scoresens.statistics import Estimate, percentiles, resampled_rows


def test_the_interval_of_a_mean_is_normal():
    """Within 5 standard errors of a 97.5 percentile of 4000 resamples, whose density is 0.058 a
    standard deviation there."""
    draws = np.random.default_rng(0).normal(size=2000)
    rows = resampled_rows(2000, 4000, 1)
    assert rows.shape == (4000, 2000) and rows.min() == 0 and rows.max() == 1999
    found = percentiles(draws.mean(), draws[rows].mean(1))
    error = draws.std() / np.sqrt(2000)
    reach = 5 * np.sqrt(0.025 * 0.975 / 4000) / 0.058
    assert found.value == draws.mean()
    assert (found.high - found.value) / error == pytest.approx(1.96, abs=reach)
    assert (found.value - found.low) / error == pytest.approx(1.96, abs=reach)


def test_a_seed_draws_what_its_generator_draws():
    rng = np.random.default_rng(3)
    np.testing.assert_array_equal(resampled_rows(5, 4, 3), resampled_rows(5, 4, rng))
    assert (resampled_rows(5, 4, 3) != resampled_rows(5, 4, rng)).any()  # it has moved on


def test_without_resamples_a_number_is_its_own_interval():
    assert percentiles(0.5, np.zeros(0)) == Estimate(0.5, 0.5, 0.5)

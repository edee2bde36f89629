"""Quantiles that hold for a group never seen."""

from fractions import Fraction

import numpy as np
import pytest

from scoresens.statistics.conformal import unseen_quantile


def by_definition(groups, level):
    """The least score at which enough of the weight is reached, in exact fractions."""
    for score in sorted({float(s) for group in groups for s in group}):
        parts = [Fraction(int(np.sum(group <= score)), len(group)) for group in groups]
        if sum(parts) / (len(groups) + 1) >= level:
            return score
    return float("inf")


@pytest.mark.parametrize("level", ["1/2", "4/5", "9/10"])
def test_it_is_the_least_score_that_reaches_the_level(level):
    rng, level = np.random.default_rng(0), Fraction(level)
    for count in (1, 2, 3, 9, 10, 30):
        sizes = rng.integers(1, 12, count)
        groups = [rng.integers(0, 6, size) + rng.random() for size in sizes]
        groups[0] = groups[-1][: sizes[0]]  # equal scores in two groups
        assert unseen_quantile(groups, float(level)) == by_definition(groups, level)


def test_too_few_groups_know_nothing_and_enough_know_the_most():
    groups = [np.array([float(k)]) for k in range(9)]
    assert unseen_quantile(groups, 0.9) == 8.0
    assert unseen_quantile(groups[:8], 0.9) == float("inf")


def test_unseen_groups_hold_as_often_as_promised_whatever_their_laws():
    """Groups of their own places, widths and sizes: of draws pooled as if they were alike the
    promise would not hold."""
    rng, trials, held = np.random.default_rng(1), 3000, []
    for _ in range(trials):
        sizes = rng.integers(1, 30, 15)
        groups = [
            rng.standard_cauchy() + rng.exponential() * rng.normal(size=size) for size in sizes
        ]
        q = unseen_quantile(groups[:-1], 0.8)
        held.append(np.mean(groups[-1] <= q))
    error = np.std(held) / trials**0.5
    assert 0.8 - 3 * error <= np.mean(held) <= 0.8 + 1 / 15 + 3 * error


@pytest.mark.parametrize(
    ("groups", "level", "says"),
    [
        ([], 0.9, "needs groups of one score or more"),
        ([np.zeros(3), np.zeros(0)], 0.9, r"needs groups of one score or more, got \[3, 0\]"),
        ([np.array([0.0, np.nan])], 0.9, "got 1 NaN"),
        ([np.zeros(3)], 1.0, "level must lie above 0 and below 1, got 1.0"),
    ],
)
def test_what_is_no_group_is_refused(groups, level, says):
    with pytest.raises(ValueError, match=says):
        unseen_quantile(groups, level)

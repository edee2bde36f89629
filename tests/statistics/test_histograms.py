"""Histograms and the distances between them, against closed forms and other solvers."""

import math
import subprocess
import sys

import jax.numpy as jnp
import jaxtyping
import laws
import numpy as np
import ot
import pytest
from scipy.optimize import linear_sum_assignment, linprog
from scipy.spatial.distance import cdist

from scoresens.statistics import _pot, histograms
from scoresens.statistics.histograms import (
    Grid,
    histogram,
    sampling_floor,
    wasserstein_interval,
    wasserstein_of_histograms,
)

SMALL = Grid(half_width=1.5, bins=4)
EXACT = 1e-9  # relative: the other solvers' own feasibility and rounding
ZERO = 1e-7  # of the largest distance: the root of a squared distance's rounding error


@pytest.fixture
def unchecked_annotations():
    """People run without beartype: the library's own checks must speak."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def points(grid):
    """The grid's points `[bins^2, 2]`, columns x and y, in the order of raveled counts."""
    return np.stack(np.meshgrid(grid.axis, grid.axis), -1).reshape(-1, 2)


def by_linear_program(weights, others, cost):
    """The least cost over all couplings, written out as equations on every entry."""
    rows = np.kron(np.eye(len(weights)), np.ones(len(others)))
    columns = np.kron(np.ones(len(weights)), np.eye(len(others)))
    marginals = np.concatenate([weights / weights.sum(), others / others.sum()])
    return linprog(cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=marginals).fun


def of_quantiles(values, others):
    """W_2 of as many numbers as others: the sorted are paired."""
    return np.sqrt(np.mean((np.sort(values) - np.sort(others)) ** 2))


# ------------------------------------------------------------------ histograms


def test_grid_is_the_reference_one():
    grid = Grid()
    laws.close(grid.spacing, 1 / 9, relative=1e-15)
    laws.close(grid.axis, np.arange(64) / 9 - 3.5, absolute=1e-14)


@pytest.mark.parametrize("kind", [np.float64, np.float32, jnp.float32])
@pytest.mark.parametrize("clip", [False, True])
def test_histogram_counts_nearest_points(kind, clip, monkeypatch):
    monkeypatch.setattr(histograms, "BLOCK", 100)  # several blocks, the last one short
    grid = Grid(half_width=1.0, bins=6)
    x = np.random.default_rng(0).normal(size=(970, 2)) * [0.5, 1.0]
    x[3, 0], x[950, 1], x[7, 1], x[8, 0] = np.nan, np.nan, np.inf, 1.0
    found = histogram(kind(x), grid, clip=clip)
    kept = x[~np.isnan(x).any(1)] if clip else x[(np.abs(x) < 1).all(1)]
    nearest = np.argmin(cdist(np.clip(kept, -9, 9), points(grid)), 1)
    expected = np.bincount(nearest, minlength=36).reshape(6, 6)
    np.testing.assert_array_equal(found.counts, expected)
    assert found.counts.dtype == np.int64
    assert found.dropped == 970 - len(kept) and type(found.dropped) is int


def test_histogram_drops_what_lies_on_the_edge_and_has_y_first():
    edge = Grid(half_width=3.5)
    x = np.array([[3.5, 0.0], [0.0, -3.5], [3.4999, -3.4999], [-0.06, 0.06]])
    found = histogram(x, edge)
    assert found.dropped == 2 and found.counts[0, 63] == 1 and found.counts[32, 31] == 1
    clipped = histogram(x, edge, clip=True)
    assert clipped.dropped == 0 and clipped.counts[0].sum() == 2


@pytest.mark.parametrize("shift", [(0, 1), (3, 0), (-2, 4), (5, -5)])
def test_a_shift_costs_its_length(shift):
    grid = Grid(half_width=2.0, bins=16)
    a, b = np.zeros((2, 16, 16))
    block = np.random.default_rng(1).exponential(size=(5, 5))
    a[5:10, 5:10] = block
    b[5 + shift[0] : 10 + shift[0], 5 + shift[1] : 10 + shift[1]] = 3 * block
    expected = math.hypot(*shift) * grid.spacing
    laws.close(wasserstein_of_histograms(a, b, grid), expected, relative=1e-12)


@pytest.mark.parametrize("kept", [1.0, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_histograms_against_a_linear_program(seed, kept):
    rng = np.random.default_rng(seed)
    a, b = rng.exponential(size=(2, 4, 4)) * (rng.random((2, 4, 4)) < kept)
    a[1, 2] += 1.0
    b[3, 0] += 1.0
    cost = cdist(points(SMALL), points(SMALL), "sqeuclidean")
    expected = np.sqrt(by_linear_program(a.ravel(), b.ravel(), cost))
    laws.close(wasserstein_of_histograms(a, b, SMALL), expected, relative=EXACT)


def test_histograms_against_all_pairs_of_bins():
    """With weights over many orders of magnitude, and empty bins."""
    rng, grid = np.random.default_rng(15), Grid(half_width=5.5, bins=12)
    cost = cdist(points(grid), points(grid), "sqeuclidean")
    for _ in range(20):
        a, b = np.exp(8 * rng.normal(size=(2, 12, 12))) * (rng.random((2, 12, 12)) < 0.7)
        a[0], b[:, 3] = 0, 0
        expected = ot.emd2(a.ravel() / a.sum(), b.ravel() / b.sum(), cost, numItermax=10**7)
        laws.close(wasserstein_of_histograms(a, b, grid), np.sqrt(expected), relative=1e-12)


def test_product_laws_on_the_full_grid():
    """W_2^2 of products is the sum over the axes, and on an axis quantiles are paired."""
    rng, grid = np.random.default_rng(2), Grid()
    draws = rng.integers(0, 64, (4, 300)) // [[1], [2], [3], [1]]
    masses = [np.bincount(draw, minlength=64) for draw in draws]
    a, b = np.outer(masses[0], masses[1]), np.outer(masses[2], masses[3])
    pairs = [(draws[0], draws[2]), (draws[1], draws[3])]
    expected = grid.spacing * math.hypot(*[of_quantiles(*pair) for pair in pairs])
    laws.close(wasserstein_of_histograms(a, b, grid), expected, relative=1e-12)


def test_it_is_a_distance():
    rng, grid = np.random.default_rng(3), Grid(half_width=1.0, bins=7)
    wide = Grid(half_width=2.5, bins=7)
    for _ in range(5):
        a, b, c = rng.integers(0, 9, (3, 7, 7)).astype(np.uint32)
        ab, bc, ac, ba = (
            wasserstein_of_histograms(*pair, grid) for pair in [(a, b), (b, c), (a, c), (b, a)]
        )
        assert type(ab) is float and 0 < ac <= ab + bc
        laws.close(ba, ab, relative=1e-12)
        laws.close(wasserstein_of_histograms(a, b, wide), 2.5 * ab, relative=1e-12)
        laws.close(wasserstein_of_histograms(a, 5 * a, grid), 0.0, absolute=ZERO * 2 * math.sqrt(2))


def test_histograms_agree_with_samples():
    rng, grid = np.random.default_rng(4), Grid(half_width=1.0, bins=8)
    x, y = grid.axis[rng.integers(0, 6, (2, 50, 2))] * 0.999  # nearest to the points they are near
    rounded = [np.round((v + 1) / grid.spacing) * grid.spacing - 1 for v in (x, y)]
    cost = cdist(rounded[0], rounded[1], "sqeuclidean")
    expected = math.sqrt(cost[linear_sum_assignment(cost)].mean())
    found = wasserstein_of_histograms(histogram(x, grid).counts, histogram(y, grid).counts, grid)
    laws.close(found, expected, relative=1e-12)


# ------------------------------------------------------------------ sampling


PAIR = Grid(half_width=0.5, bins=2)  # two of its points, 1 apart: W_2 = sqrt |p_a - p_b|


def two_points(first, second):
    return np.array([[first, second], [0, 0]])


def test_interval_is_as_wide_as_the_delta_method_says():
    """Within 5 standard errors of a standard deviation from 400 resamples."""
    a, b = two_points(7000, 3000), two_points(8000, 12000)
    value = math.sqrt(0.7 - 0.4)
    std = math.sqrt(0.7 * 0.3 / 10_000 + 0.4 * 0.6 / 20_000) / (2 * value)
    found = wasserstein_interval(a, b, PAIR, resamples=400)
    laws.close(found.value, value, relative=1e-12)
    laws.close(found.high - found.value, 1.96 * std, relative=5 / math.sqrt(2 * 399))
    laws.close(found.value - found.low, found.high - found.value, relative=1e-9)
    assert wasserstein_interval(a, b, PAIR) == wasserstein_interval(a, b, PAIR, seed=0)
    assert wasserstein_interval(a, b, PAIR) != wasserstein_interval(a, b, PAIR, seed=1)


def test_interval_does_not_go_below_zero():
    found = wasserstein_interval(two_points(50, 50), two_points(51, 49), PAIR)
    assert found.low == 0.0 < found.value < found.high


def test_sampling_floor_of_two_points():
    """E sqrt|Z| of a normal Z, as p_a - p_b is; within 5 standard errors."""
    total, other, draws = 30_000, np.uint64(5_000), 600
    found = sampling_floor(two_points(18_000, 12_000), other, PAIR, draws=draws)
    sigma = math.sqrt(0.6 * 0.4 * (1 / total + 1 / 5_000))
    mean = math.sqrt(sigma) * 2**0.25 * math.gamma(0.75) / math.sqrt(math.pi)
    std = math.sqrt(sigma * math.sqrt(2 / math.pi) - mean**2)  # E|Z| is sigma sqrt(2 / pi)
    laws.close(found.mean, mean, absolute=5 * std / math.sqrt(draws))
    laws.close(found.std, std, relative=5 / math.sqrt(2 * draws))


# ------------------------------------------------------------------ what can go wrong


def test_a_solver_that_stops_early_is_an_error(monkeypatch):
    a, b = np.random.default_rng(14).random((2, 4, 4))
    monkeypatch.setattr(_pot, "PIVOTS", 3)
    with pytest.raises(FloatingPointError, match=r"did not converge.*coarser grid"):
        wasserstein_of_histograms(a, b, SMALL)


def test_without_pot_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    assert histogram(np.zeros((3, 2)), SMALL).counts.sum() == 3
    with pytest.raises(ImportError, match=r"install 'scoresens\[gap\]'"):
        wasserstein_of_histograms(ONES, ONES, SMALL)


def test_pot_is_imported_late_and_leaves_jax_as_it_was():
    code = """
import sys, jax, numpy as np
from scoresens.statistics import transport_map
before = dict(jax.config.values)
assert "ot" not in sys.modules
assert abs(transport_map(np.zeros((1, 2)), np.ones((3, 2))) - 1).max() < 1e-12
assert "ot" in sys.modules and dict(jax.config.values) == before
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


ONES = np.ones((4, 4), int)
NEGATIVE = ONES - 3 * np.eye(4, dtype=int)
NOT_A_NUMBER = np.where(np.eye(4) > 0, np.nan, 1.0)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("message", "function", "arguments"),
    [
        (r"a must have shape \(4, 4\).*got \(5, 5\)", "of_histograms", (np.ones((5, 5)), ONES)),
        (r"b must have shape \(4, 4\).*got \(16,\)", "of_histograms", (ONES, np.ones(16))),
        ("a must be 0 or greater, its smallest entry is -2", "of_histograms", (NEGATIVE, ONES)),
        ("b is 0 everywhere", "of_histograms", (ONES, 0 * ONES)),
        ("b has 4 entries that are NaN or infinite", "of_histograms", (ONES, NOT_A_NUMBER)),
        ("a must be 0 or greater", "interval", (NEGATIVE, ONES)),
        ("b holds float64 where whole numbers belong", "interval", (ONES, ONES / 2)),
        ("resamples must be a whole number >= 2, got 1", "interval", (ONES, ONES, 1)),
        ("counts is 0 everywhere", "floor", (0 * ONES, 3)),
        ("counts must have shape", "floor", (np.ones((3, 3), int), 3)),
        ("other_total must be a whole number >= 1, got 0", "floor", (ONES, 0)),
        ("draws must be a whole number >= 2, got 1", "floor", (ONES, 3, 1)),
    ],
)
def test_refused_histograms(message, function, arguments):
    calls = {
        "of_histograms": lambda a, b: wasserstein_of_histograms(a, b, SMALL),
        "interval": lambda a, b, r=2: wasserstein_interval(a, b, SMALL, resamples=r),
        "floor": lambda a, n, d=2: sampling_floor(a, n, SMALL, draws=d),
    }
    with pytest.raises(ValueError, match=message):
        calls[function](*arguments)


@pytest.mark.usefixtures("unchecked_annotations")
def test_refused_settings():
    for message, call in {
        "Grid.half_width must be": lambda: Grid(half_width=0.0),
        "Grid.bins must be a whole number >= 2, got 1": lambda: Grid(bins=1),
        r"in the plane \[M, 2\], got shape \(3, 3\)": lambda: histogram(np.ones((3, 3)), SMALL),
        "x holds int64": lambda: histogram(np.ones((3, 2), np.int64), SMALL),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()

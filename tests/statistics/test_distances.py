"""Distances between laws against closed forms and other solvers."""

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

from scoresens.statistics import distances
from scoresens.statistics.distances import (
    Grid,
    histogram,
    resampled,
    sampling_floor,
    sinkhorn_divergence,
    sliced_wasserstein,
    wasserstein,
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
    monkeypatch.setattr(distances, "BLOCK", 100)  # several blocks, the last one short
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
    found = wasserstein_of_histograms(histogram(x, grid).counts, histogram(y, grid).counts, grid)
    laws.close(found, wasserstein(*rounded), relative=1e-12)


# ------------------------------------------------------------------ sampling


def test_resampled_is_multinomial():
    """Mean and covariance within 5 standard errors, at least of those with many counts."""
    counts, rng = np.array([[400, 0], [100, 500]], np.uint32), np.random.default_rng(5)
    draws = np.stack([resampled(counts, rng).ravel() for _ in range(4000)])
    p = counts.ravel() / 1000
    covariance = 1000 * (np.diag(p) - np.outer(p, p))
    assert np.all(draws.sum(1) == 1000) and np.issubdtype(draws.dtype, np.integer)
    laws.close(draws.mean(0), 1000 * p, absolute=5 * np.sqrt(250 / 4000))
    laws.close(np.cov(draws.T), covariance, absolute=5 * 250 * np.sqrt(2 / 4000))


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


# ------------------------------------------------------------------ samples


def test_wasserstein_against_an_assignment():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(2, 40, 2, 3))
    cost = cdist(x.reshape(40, 6), y.reshape(40, 6), "sqeuclidean")
    expected = math.sqrt(cost[linear_sum_assignment(cost)].mean())
    for scale in (1e-60, 1e-8, 1.0, 1e60):  # POT's own tolerances are absolute
        laws.close(wasserstein(scale * x, scale * y) / scale, expected, relative=EXACT)
    laws.close(wasserstein(jnp.asarray(x), y + 1e4), wasserstein(x - 1e4, y), relative=1e-9)
    laws.close(wasserstein(x, x[::-1]), 0.0, absolute=ZERO * math.sqrt(cost.max()))


def test_wasserstein_of_unequal_numbers():
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(7, 3)) + 1
    cost = cdist(x, y, "sqeuclidean")
    expected = math.sqrt(by_linear_program(np.ones(12), np.ones(7), cost))
    laws.close(wasserstein(x, y), expected, relative=EXACT)
    laws.close(wasserstein(np.repeat(x, 7, 0), np.repeat(y, 12, 0)), expected, relative=EXACT)


def test_sliced_wasserstein_in_one_dimension_is_the_distance():
    x, y = np.random.default_rng(8).normal(size=(2, 500, 1))
    y *= 2
    expected = of_quantiles(x[:, 0], y[:, 0])
    laws.close(sliced_wasserstein(x, y, directions=3), expected, relative=1e-9)
    laws.close(sliced_wasserstein(np.repeat(x, 3, 0), y), expected, relative=1e-9)


def test_sliced_wasserstein_of_a_shift():
    """E (u.c)^2 = |c|^2 / d, with E (u.c)^4 = 3 |c|^4 / (d (d + 2)); within 5 standard errors."""
    rng, directions, d = np.random.default_rng(9), 4000, 6
    x, shift = rng.normal(size=(5, 2, 3)).astype(np.float32), np.full((2, 3), 0.5, np.float32)
    found = sliced_wasserstein(x, x + shift, directions=directions, seed=3)
    size = 0.25 * d
    error = size * math.sqrt((3 / (d * (d + 2)) - 1 / d**2) / directions)
    laws.close(found**2, size / d, absolute=5 * error)


def test_sliced_wasserstein_is_below_the_distance_and_keeps_its_seed():
    x, y = np.random.default_rng(10).normal(size=(2, 60, 3))
    found = sliced_wasserstein(x, y, directions=7)
    assert 0 < found < wasserstein(x, y)
    assert (
        found
        == sliced_wasserstein(x, y, directions=7, seed=0)
        == sliced_wasserstein(y, x, directions=7)
    )
    assert found != sliced_wasserstein(x, y, directions=7, seed=1)


def entropic(x, y, epsilon):
    """The entropic cost of a coupling scaled until it is one, as its definition reads."""
    cost = cdist(x, y, "sqeuclidean")
    kernel, v = np.exp(-cost / epsilon), np.ones(len(y))
    for _ in range(5000):
        u = 1 / len(x) / (kernel @ v)
        v = 1 / len(y) / (kernel.T @ u)
    coupling = u[:, None] * kernel * v
    return np.sum(coupling * (cost + epsilon * np.log(coupling * cost.size)))


SINKHORN = 2e-4  # of epsilon: one solution is off by the mass that it may misplace, three are used


@pytest.mark.parametrize("epsilon", [0.3, 2.0, 50.0])
def test_sinkhorn_divergence_as_defined(epsilon):
    rng = np.random.default_rng(11)
    x, y = rng.normal(size=(9, 2)), rng.normal(size=(6, 2)) + 1
    expected = entropic(x, y, epsilon) - (entropic(x, x, epsilon) + entropic(y, y, epsilon)) / 2
    found = sinkhorn_divergence(x, y, epsilon=epsilon)
    laws.close(found, expected, absolute=SINKHORN * epsilon)


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 10.0, 1e5])
def test_sinkhorn_divergence_of_a_shift_is_its_squared_length(epsilon):
    x, shift = np.random.default_rng(12).normal(size=(30, 2, 2)), np.array([0.6, -0.8])
    found = sinkhorn_divergence(x, x + shift, epsilon=epsilon)
    laws.close(found, 2.0, absolute=SINKHORN * epsilon)
    laws.close(sinkhorn_divergence(x, x, epsilon=epsilon), 0.0, absolute=SINKHORN * epsilon)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 100.0])
def test_sinkhorn_divergence_between_a_point_and_two(epsilon):
    """Two points 2h apart keep p = 1 / 2 / (1 + exp(-4 h^2 / epsilon)) each on their place."""
    h, far = 0.7, 3.0
    stay = 0.5 / (1 + math.exp(-4 * h**2 / epsilon))
    go = max(0.5 - stay, 1e-300)
    entropy = 2 * stay * math.log(4 * stay) + 2 * go * math.log(4 * go)
    own = 2 * go * 4 * h**2 + epsilon * entropy
    found = sinkhorn_divergence(
        np.array([[0.0, far]]), np.array([[h, 0.0], [-h, 0.0]]), epsilon=epsilon
    )
    laws.close(found, far**2 + h**2 - own / 2, absolute=SINKHORN * epsilon)


def test_sinkhorn_divergence_goes_from_the_distance_to_that_of_the_means():
    """The entropy adds at most epsilon log M to each cost, and at large epsilon 1 / epsilon."""
    x, y = np.random.default_rng(13).normal(size=(2, 8, 2))
    y += 1
    squared = wasserstein(x, y) ** 2
    for epsilon in (1e-2, 1e-5, 1e-9):
        found = sinkhorn_divergence(x, y, epsilon=epsilon)
        laws.close(found, squared, absolute=epsilon * math.log(8) + 1e-12)
    means = np.sum((x.mean(0) - y.mean(0)) ** 2)
    errors = [sinkhorn_divergence(x, y, epsilon=e) - means for e in (1e3, 1e4)]
    laws.close(errors[0] / errors[1], 10.0, relative=0.05)


# ------------------------------------------------------------------ what can go wrong


def test_a_solver_that_stops_early_is_an_error(monkeypatch):
    rng = np.random.default_rng(14)
    x, y, (a, b) = rng.normal(size=(40, 2)), rng.normal(size=(40, 2)), rng.random((2, 4, 4))
    monkeypatch.setattr(distances, "SINKHORN_STEPS", 25)
    with pytest.raises(FloatingPointError, match=r"raise epsilon from .* or use wasserstein"):
        sinkhorn_divergence(x, y, epsilon=1e-3)
    monkeypatch.setattr(distances, "PIVOTS", 3)
    with pytest.raises(FloatingPointError, match=r"did not converge.*take fewer samples"):
        wasserstein(x, y)
    with pytest.raises(FloatingPointError, match=r"did not converge.*coarser grid"):
        wasserstein_of_histograms(a, b, SMALL)


def test_without_pot_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    assert histogram(np.zeros((3, 2)), SMALL).counts.sum() == 3
    for distance in (wasserstein, sliced_wasserstein):
        with pytest.raises(ImportError, match=r"install scoresens\[gap\]"):
            distance(np.ones((2, 1)), np.ones((2, 1)))


def test_pot_is_imported_late_and_leaves_jax_as_it_was():
    code = """
import sys, jax, numpy as np
from scoresens.statistics import distances
before = dict(jax.config.values)
assert "ot" not in sys.modules
assert abs(distances.wasserstein(np.zeros((1, 2)), np.ones((3, 2))) - 2**0.5) < 1e-12
assert "ot" in sys.modules and dict(jax.config.values) == before
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


ONES, SAMPLES = np.ones((4, 4), int), np.ones((3, 2))
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
        ("counts holds float64", "resampled", (ONES / 2,)),
    ],
)
def test_refused_histograms(message, function, arguments):
    calls = {
        "of_histograms": lambda a, b: wasserstein_of_histograms(a, b, SMALL),
        "interval": lambda a, b, r=2: wasserstein_interval(a, b, SMALL, resamples=r),
        "floor": lambda a, n, d=2: sampling_floor(a, n, SMALL, draws=d),
        "resampled": lambda a: resampled(a, np.random.default_rng(0)),
    }
    with pytest.raises(ValueError, match=message):
        calls[function](*arguments)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    "distance",
    [wasserstein, sliced_wasserstein, lambda x, y: sinkhorn_divergence(x, y, epsilon=1.0)],
    ids=["exact", "sliced", "sinkhorn"],
)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((0, 2)), r"x must be a batch \[M, \*shape\] with M >= 1, got shape \(0, 2\)"),
        (np.ones(3), r"got shape \(3,\); add a trailing axis"),
        (np.ones((3, 3)), r"samples of one shape, got \(3,\) and \(2,\)"),
        (np.array([[1.0, np.nan], [np.inf, 0.0]]), "x has 2 entries that are NaN or infinite"),
        (np.ones((3, 2), np.uint8), "x holds uint8 where floating-point numbers belong"),
    ],
)
def test_refused_samples(distance, x, message):
    with pytest.raises(ValueError, match=message):
        distance(x, SAMPLES)


@pytest.mark.usefixtures("unchecked_annotations")
def test_refused_settings():
    for message, call in {
        "Grid.half_width must be": lambda: Grid(half_width=0.0),
        "Grid.bins must be a whole number >= 2, got 1": lambda: Grid(bins=1),
        r"in the plane \[M, 2\], got shape \(3, 3\)": lambda: histogram(np.ones((3, 3)), SMALL),
        "x holds int64": lambda: histogram(np.ones((3, 2), np.int64), SMALL),
        "directions must be": lambda: sliced_wasserstein(SAMPLES, SAMPLES, directions=0),
        "epsilon must be": lambda: sinkhorn_divergence(SAMPLES, SAMPLES, epsilon=0.0),
        "overflow: rescale": lambda: wasserstein(1e200 * SAMPLES, SAMPLES),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()

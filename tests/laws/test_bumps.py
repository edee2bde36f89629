"""The kernel of noised points against scipy's density, a place and a point at a time."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from scoresens.laws import bumps
from scoresens.laws.bumps import Bumps, Origin, Softmax, over_blocks
from scoresens.laws.kernels import smoothed_mean
from scoresens.laws.noises import Gaussian

rng = np.random.default_rng(0)
POINTS, PLACES = rng.normal(size=(13, 3)) + 5, rng.normal(size=(2, 4, 3)) + 5


def log_kernels(points, bandwidth, levels, x):
    """log K itself: the ratios to the kernel at a place's reference distance, times that."""
    origin, kernel = Origin.of(points, dtype=points.dtype), Gaussian()
    places = origin.places(bandwidth, kernel, jnp.asarray(levels), jnp.asarray(x))
    ratios = Bumps.of(jnp.asarray(points), origin, kernel).log_kernels(places)
    return ratios + kernel.evaluate(places.reference, places.spread, x.shape[-1])[..., None]


@pytest.mark.parametrize("bandwidth", [0.0, 0.3])
@pytest.mark.parametrize("levels", [0.02, [[0.5], [40.0]]], ids=["near", "apart"])
def test_places_of_any_leading_axes(bandwidth, levels):
    """A noise level each, broadcast; 1e-12 is float64's over v."""
    found = log_kernels(POINTS, bandwidth, levels, PLACES)
    spread = np.broadcast_to(np.square(levels) + bandwidth**2, (2, 4))
    expected = [
        [[multivariate_normal(y, v).logpdf(x) for y in POINTS] for x, v in zip(*row, strict=True)]
        for row in zip(PLACES, spread, strict=True)
    ]
    laws.close(found, expected, relative=1e-12)
    one = log_kernels(POINTS, bandwidth, np.ravel(levels)[0], PLACES[0, 0])
    laws.close(one, expected[0][0], relative=1e-12)


def ten_bits(x):
    """To ten bits after the leading one, as an accelerator rounds the operands of a product."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type((bits + 0x1000) & jnp.uint32(0xFFFFE000), jnp.float32)


def test_rounded_operands_leave_norms_and_constants_whole(monkeypatch):
    """At d = 3,072 and tau = 6 rounding (x - c).(y - c), 2^-11 of sqrt(d) / tau, leaves log K
    within 0.02 nats; rounding what a place adds, thousands of nats, would cost whole ones."""
    draw, tau = np.random.default_rng(1), 6.0
    wide = draw.normal(size=(40, 3072)).astype(np.float32)
    x = wide[:8] + draw.normal(scale=tau, size=(8, 3072)).astype(np.float32)
    apart = x[:, None].astype(float) - wide.astype(float)
    constant = -0.5 * 3072 * np.log(2 * np.pi * tau**2)
    exact = bumps.contracted

    def rounded(spec, a, b, precision):
        return exact(spec, ten_bits(a), ten_bits(b), precision)

    monkeypatch.setattr(bumps, "contracted", rounded)
    found = log_kernels(wide, 0.0, jnp.float32(tau), x)
    assert found.dtype == jnp.float32
    laws.close(found, constant - np.sum(apart**2, -1) / (2 * tau**2), absolute=0.02)
    place = constant - np.sum((x - wide.mean(0)) ** 2, 1, np.float32) / (2 * tau**2)
    place = jnp.asarray(place, jnp.float32)
    assert np.max(np.abs(ten_bits(place) - place)) > 0.5  # the trap is real


@pytest.mark.parametrize("size", [13, 5, 4])
@pytest.mark.parametrize("empty", [[], range(6), range(4, 9)], ids=["none", "first", "middle"])
def test_softmax_over_blocks_is_that_of_all(size, empty):
    """Whole blocks, a last one that begins early, and blocks without weight."""
    draw = np.random.default_rng(3)
    kernels, given = 30 * draw.normal(size=(2, 13)), draw.uniform(size=13)
    given[list(empty)] = 0
    points, table = jnp.asarray(POINTS), jnp.asarray(kernels)
    origin = Origin.of(points)
    places = origin.places(0.0, Gaussian(), 1.0, jnp.zeros((2, 3)))

    def add(softmax, block):
        seen = Bumps.of(block.rows(points), origin)
        weights = block.columns(jnp.asarray(given), seen=0.0)
        return softmax.add(block.columns(table, seen=-jnp.inf), weights, seen, places)

    found = over_blocks(add, Softmax.empty(jnp.zeros((2, 3))), 13, size)
    weights = given * np.exp(kernels)
    total = np.log(weights.sum(1))
    laws.close(found.log_mass, total, relative=1e-13)
    laws.close(found.mean(origin), weights @ POINTS / weights.sum(1)[:, None], relative=1e-13)


def test_smoothed_mean_at_both_ends():
    x, y = jnp.array([1.0, -2.0]), jnp.array([3.0, 5.0])
    laws.close(smoothed_mean(0.0, 80.0, x, y), y)  # exactly: nothing of x at large noise
    laws.close(smoothed_mean(0.5, 1e-9, x, y), x, absolute=1e-15)
    laws.close(smoothed_mean(1.0, 2.0, x, y), (x + 4 * y) / 5, relative=1e-15)


def test_a_first_block_of_no_weight_is_measured_from_its_mean():
    """Points without weight alone still have a centre."""
    points = jnp.array([[1.0], [3.0]])
    for weights, centre, square in (([0.0, 0.0], 2.0, 1.0), ([0.0, 2.0], 3.0, 0.0)):
        found = Origin.of(points, jnp.array(weights))
        laws.close(found.centre, [centre])
        laws.close(found.square, square)
        slope = jax.grad(lambda w: jnp.sum(Origin.of(points, w).centre))(jnp.array(weights))
        laws.close(slope, jnp.zeros(2))

"""Noise on symbols: kernels are exponentials of rates, draws have their law."""

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoresens import discrete as dc

BOTH = pytest.mark.parametrize("name", chains.PROCESSES)


@BOTH
def test_kernels_are_exponentials_of_the_rate_matrix(name):
    chain, process = chains.chain(name), chains.PROCESSES[name]
    for t in (0.01, 0.4, 1.0):
        exact = chain.single(chains.total_noise(t))
        np.testing.assert_allclose(process.kernel(t), exact[:3], atol=1e-14)
        step = chain.single(chains.total_noise(t) - chains.total_noise(t / 3))
        np.testing.assert_allclose(process.between(t / 3, t), step, atol=1e-14)


@BOTH
def test_rates_are_the_derivative_of_the_kernel(name):
    process = chains.PROCESSES[name]
    slope = (process.kernel(0.4 + 1e-6) - process.kernel(0.4 - 1e-6)) / 2e-6
    np.testing.assert_allclose(process.kernel(0.4) @ process.rates(0.4), slope, atol=1e-9)


@BOTH
def test_flips_are_a_law_and_come_before_noise(name):
    process = chains.PROCESSES[name]
    flips = np.asarray(process.flips(0.3))
    assert flips[0, 0] == pytest.approx(0.7) and flips[0, 2] == pytest.approx(0.15)
    np.testing.assert_allclose(process.kernel(0.4, 0.3), flips @ process.kernel(0.4), atol=1e-15)


@BOTH
def test_noised_symbols_have_the_kernels_law(name):
    process, count = chains.PROCESSES[name], 20_000
    drawn = process.noised(0.4, jnp.ones(count, int), key=jax.random.key(0))
    shares = np.bincount(np.asarray(drawn), minlength=process.states) / count
    expected = np.asarray(process.kernel(0.4))[1]
    errors = np.sqrt(expected * (1 - expected) / count)
    assert np.all(np.abs(shares - expected) <= 4 * errors)


@BOTH
def test_the_clock_runs_with_the_process(name):
    process, times = chains.PROCESSES[name], jnp.array([1e-4, 0.3, 1.0])
    np.testing.assert_allclose(process.time(process.clock(times)), times, rtol=1e-10)


@BOTH
def test_a_larger_batch_of_noise_begins_with_the_smaller(name):
    process, key = chains.PROCESSES[name], jax.random.key(3)
    few, many = (process.sample_prior((count, 4), key=key) for count in (3, 8))
    np.testing.assert_array_equal(few, many[:3])
    assert jnp.all(many == 3) if isinstance(process, dc.Masked) else jnp.unique(many).size == 3

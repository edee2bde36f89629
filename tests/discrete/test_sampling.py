"""Samplers: the reverse chain's law is the forward one's, leaping's is that to its order."""

import itertools

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from scoresens import discrete as dc
from scoresens.discrete.denoisers import leap

BOTH = pytest.mark.parametrize("name", chains.PROCESSES)
KEY = jax.random.key(0)


@BOTH
def test_reverse_rates_undo_the_forward_chain(name):
    """The reverse generator, of `Q_t(z, x) s(x->z)`, moves the law back as it came."""
    chain, t = chains.chain(name), 0.4
    score = dc.concrete_score(chain.process, dc.exact_denoiser(chain.process, chain.data))
    rates, law = np.asarray(chain.process.rates(t)), chain.law(t)
    reverse = np.zeros((len(law), len(law)))
    every = jax.jit(jax.vmap(score, (None, 0)))(t, jnp.asarray(chain.every))
    for x, ratios in zip(chain.every, np.asarray(every), strict=True):
        near = chain.neighbours(x)
        for i, z in np.ndindex(*near.shape):
            if z != x[i]:
                reverse[chain.place(x), near[i, z]] = rates[z, x[i]] * ratios[i, z]
    reverse -= np.diag(reverse.sum(1))
    speed = (1 - chains.RESIDUE) / np.exp(-chains.total_noise(t))
    np.testing.assert_allclose(law @ reverse, -speed * law @ chain.generator, atol=1e-12)


@pytest.mark.slow
@BOTH
def test_exact_samples_have_the_law_at_the_end(name):
    """Pearson's statistic of the frequencies, of fixed draws, below its quantile of 0.999."""
    chain, count, end = chains.chain(name), 3_000, 0.1
    denoiser = dc.exact_denoiser(chain.process, chain.data)
    first = chain.law(1.0) / chain.law(1.0).sum()
    start = chain.every[np.random.default_rng(0).choice(len(first), count, p=first)]
    path = dc.sample_exact(chain.process, denoiser, jnp.asarray(start), key=KEY, end=end)
    places = np.asarray(path.x) @ chain.size ** np.arange(2)[::-1]
    observed, expected = np.bincount(places, minlength=len(first)), count * chain.law(end)
    assert expected.min() > 5
    statistic = np.sum((observed - expected) ** 2 / expected)
    assert statistic < chi2.ppf(0.999, len(first) - 1)


@BOTH
def test_tau_leaping_has_the_law_to_first_order(name):
    """The law of its chain, of all sequences: the error halves as the steps double."""
    chain = chains.chain(name)
    denoiser = dc.exact_denoiser(chain.process, chain.data)
    every = jnp.asarray(chain.every)

    @jax.jit
    def step(s, t):
        def one(x):
            chances = leap(chain.process, s, t, x, denoiser(t, x))
            return (chances[0][:, None] * chances[1]).reshape(-1)

        return jax.vmap(one)(every)

    errors = []
    for steps in (16, 32, 64):
        law, times = chain.law(1.0), np.linspace(1, 0, steps + 1)
        for t, s in itertools.pairwise(times):
            law = law @ np.asarray(step(s, t))
        errors.append(np.abs(law - chain.clean).sum())
    for coarse, fine in itertools.pairwise(errors):
        assert 1.7 < coarse / fine < 2.3


@pytest.mark.slow
@BOTH
def test_a_larger_batch_begins_with_the_smaller(name):
    process = chains.PROCESSES[name]
    denoiser, noise = chains.network(process), process.sample_prior((6, 2), key=KEY)
    for draw in (lambda x: dc.sample(process, denoiser, x, key=KEY, steps=5),
                 lambda x: dc.sample_exact(process, denoiser, x, key=KEY, end=0.3)):  # fmt: skip
        np.testing.assert_array_equal(draw(noise[:2]).states, draw(noise).states[:2])


@BOTH
def test_samples_of_leaping_are_of_the_chain_that_they_say(name):
    """Frequencies of the first of two steps against `leap`, within four standard errors."""
    process, count = chains.PROCESSES[name], 20_000
    denoiser, x = chains.network(process), process.states - 1
    noise = jnp.full((count, 2), x)
    found = dc.sample(process, denoiser, noise, key=KEY, steps=2)
    expected = np.asarray(leap(process, 0.5, 1.0, noise[0], denoiser(1.0, noise[0])))
    shares = [np.bincount(column, minlength=process.states) / count
              for column in np.asarray(found.states[:, 1]).T]  # fmt: skip
    errors = np.sqrt(expected * (1 - expected) / count)
    assert np.all(np.abs(np.array(shares) - expected) <= 4 * errors + 1e-12)


def test_masked_samples_hold_no_masks():
    process = chains.PROCESSES["masked"]
    noise = process.sample_prior((200, 2), key=KEY)
    assert int(dc.sample(process, chains.network(process), noise, key=KEY, steps=3).x.max()) < 3


def test_more_candidates_than_there_is_room_for():
    process = chains.PROCESSES["uniform"]
    noise = process.sample_prior((4, 2), key=KEY)
    with pytest.raises(FloatingPointError, match="more than 2 candidates: give more events"):
        dc.sample_exact(process, chains.network(process), noise, key=KEY, events=2)

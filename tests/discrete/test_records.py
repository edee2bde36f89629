"""Log-probabilities of chains, paths and noised sequences against all sequences, one by one."""

import itertools

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoresens import discrete as dc
from scoresens.discrete.denoisers import leap
from scoresens.discrete.records import Visit

BOTH = pytest.mark.parametrize("name", chains.PROCESSES)
QUADRATURE = 2e-5  # of three nodes between events that are up to a few units of the clock apart


def path(process, name):
    """Two paths made by hand: one of jumps alone, one with a virtual event."""
    top = {"masked": [[3, 3], [3, 3]], "uniform": [[0, 1], [2, 2]]}[name]
    return dc.Jumps(
        start=jnp.array(top),
        times=jnp.array([[0.9, 0.7, 0.5, 0.3, 0.1], [0.95, 0.8, 0.6, 0.4, 0.2]]),
        positions=jnp.array([[0, 1, 1, 0, 1], [1, 1, 0, 1, 0]]),
        symbols=jnp.array([[2, 0, 0, 2, 0], [top[1][1], 1, 1, 1, 1]]),
        end=jnp.asarray(0.05),
    )


@BOTH
def test_the_law_along_a_path_is_the_closed_form(name):
    chain = chains.chain(name)
    jumps = path(chain.process, name)
    first, last = (chain.law(t) for t in (1.0, 0.05))
    start = jnp.log(jnp.array([first[chain.place(x)] for x in jumps.start]))
    denoiser = dc.exact_denoiser(chain.process, chain.data)
    found = dc.log_density_along(chain.process, denoiser, jumps, start=start)
    expected = np.log([last[chain.place(x)] for x in jumps.x])
    np.testing.assert_allclose(found, expected, atol=QUADRATURE)


@BOTH
def test_a_path_downward_is_the_same_path_upward(name):
    """Bayes: the reverse chain's density of a path is that of its end and the forward chain's."""
    chain = chains.chain(name)
    jumps = path(chain.process, name)
    denoiser = dc.exact_denoiser(chain.process, chain.data)
    first, last = (chain.law(t) for t in (1.0, 0.05))
    logs = np.asarray(dc.log_probability(chain.process, denoiser, jumps))
    prior = {"masked": 0.0, "uniform": -2 * np.log(3)}[name]
    for m, states in enumerate(np.asarray(jumps.states)):
        down = logs[m] + np.log(first[chain.place(states[0])]) - prior
        up = np.log(last[chain.place(states[-1])])
        times = [1.0, *np.asarray(jumps.times[m]), 0.05]
        for k, x in enumerate(states):
            spent = chains.total_noise(times[k]) - chains.total_noise(times[k + 1])
            up += spent * chain.generator[chain.place(x), chain.place(x)]
        for k, t in enumerate(times[1:-1]):
            old, new = chain.place(states[k + 1]), chain.place(states[k])
            if old != new:
                rate = (1 - chains.RESIDUE) / np.exp(-chains.total_noise(t))
                up += np.log(rate * chain.generator[old, new])
        assert down == pytest.approx(up, abs=QUADRATURE)


@BOTH
def test_one_position_leaps_by_bayes(name):
    chain = chains.chain(name, length=1)
    denoiser = dc.exact_denoiser(chain.process, chain.data)
    s, t = 0.3, 0.7
    step = chain.single(chains.total_noise(t) - chains.total_noise(s))
    every = jnp.asarray(chain.every)
    leaps = jax.jit(jax.vmap(lambda x: leap(chain.process, s, t, x, denoiser(t, x))))(every)
    for x, found in zip(chain.every, leaps, strict=True):
        joint = chain.law(s) * step[:, x[0]]
        np.testing.assert_allclose(found[0], joint / joint.sum(), atol=1e-13)


@BOTH
def test_all_chains_of_tau_leaping_share_one_probability(name):
    process = chains.PROCESSES[name]
    every = chains.chain(name).every
    middle = [np.array(states) for states in itertools.product(every, every)]
    states = np.stack([np.stack([x, *rest]) for x in every[-1:] for rest in middle])
    times = jnp.array([1.0, 0.5, 0.0])
    record = dc.Leaps(times, jnp.asarray(states))
    logs = dc.log_probability(process, chains.network(process), record)
    prior = float(process.prior_log_probability(jnp.asarray(every[-1])))
    assert float(jnp.sum(jnp.exp(logs - prior))) == pytest.approx(1, abs=1e-12)


@BOTH
def test_the_loss_of_a_law_is_its_log_probability(name):
    """Minus the loss is log p(y), and what the noise at t_max still says of y."""
    chain = chains.chain(name)
    process, denoiser = chain.process, dc.exact_denoiser(chain.process, chain.data)
    nodes, weights = np.polynomial.legendre.leggauss(32)
    every, y = jnp.asarray(chain.every), np.array([1, 2])
    record = dc.Noised(jnp.asarray(y[None]), jnp.zeros((1, 1)), jnp.zeros((1, 1, 2), int))

    def value(t, x):
        return record.value(process, Visit(t, x, jnp.asarray(y)), denoiser(t, x))

    values = jax.jit(jax.vmap(jax.vmap(value, (None, 0)), (0, None)))
    root = (nodes + 1) / 2  # of t: its cube takes the logarithm at the data out of the way
    times, weights = root**3, 3 * root**2 * weights / 2
    found = np.asarray(values(jnp.asarray(times), every))
    total = 0.0
    for t, w, row in zip(times, weights, found, strict=True):
        law = chain.transition(t)[chain.place(y)]
        total += w * law[law > 0] @ row[law > 0]
    last = chain.transition(1.0)[chain.place(y)]
    some = last > 0
    divergence = np.sum(last[some] * np.log(last[some] / chain.law(1.0)[some]))
    assert total - divergence == pytest.approx(np.log(chain.clean[chain.place(y)]), abs=1e-6)


@BOTH
def test_noised_sequences_have_their_times_and_their_keys(name):
    process, x = chains.PROCESSES[name], jnp.array([[0, 1], [2, 2], [1, 1]])
    few, many = (dc.noised(process, rows, key=jax.random.key(1), draws=4) for rows in (x[:2], x))
    np.testing.assert_array_equal(few.states, many.states[:2])
    assert jnp.all(jnp.floor(4 * many.times) == jnp.arange(4))
    assert jnp.any(many.states != x[:, None])

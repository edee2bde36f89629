"""What networks say: denoisers and concrete scores are said by each other."""

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoresens import discrete as dc

BOTH = pytest.mark.parametrize("name", chains.PROCESSES)
T = 0.4


def at_all(function, chain):
    return np.asarray(jax.jit(jax.vmap(function, (None, 0)))(T, jnp.asarray(chain.every)))


@BOTH
def test_a_denoiser_says_the_concrete_score_of_its_law(name):
    """Of all that the reverse chain asks of it: masked, of hidden positions."""
    chain = chains.chain(name)
    score = dc.concrete_score(chain.process, dc.exact_denoiser(chain.process, chain.data))
    law = chain.law(T)
    for x, found in zip(chain.every, at_all(score, chain), strict=True):
        asked = chain.target[x] > 0
        expected = (law[chain.neighbours(x)] / law[chain.place(x)])[asked]
        np.testing.assert_allclose(found[asked], expected, rtol=1e-10)


@BOTH
def test_a_concrete_score_says_its_denoiser(name):
    chain = chains.chain(name)

    def score(t, x):
        found = chain.data.concrete_score(chain.process, t, x)
        return found.at[jnp.arange(2), x].set(jnp.nan)  # what it says of x itself is not read

    denoiser = dc.from_concrete_score(chain.process, score)
    for x, found in zip(chain.every, at_all(denoiser, chain), strict=True):
        np.testing.assert_allclose(np.exp(found), chains.clean_law(chain, T, x), atol=1e-13)


@BOTH
def test_a_concrete_score_of_no_law_is_made_one(name):
    process = chains.PROCESSES[name]
    denoiser = dc.from_concrete_score(process, lambda t, x: jnp.full((2, process.states), 0.01))
    found = np.exp(denoiser(T, jnp.array([0, process.states - 1])))
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)
    assert np.all(found >= 0)


@BOTH
def test_logits_and_probabilities_are_one_denoiser(name):
    process, x = chains.PROCESSES[name], jnp.array([2, process_top(name)])
    logits = jnp.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    p = jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)
    one = dc.from_denoiser(process, lambda t, x: logits + 5)
    other = dc.from_denoiser(process, lambda t, x: 2 * p, probabilities=True)
    np.testing.assert_allclose(one(T, x), other(T, x), rtol=1e-12)
    np.testing.assert_allclose(np.exp(one(T, x))[1], p[1], rtol=1e-12)


def process_top(name):
    return chains.PROCESSES[name].states - 1


def test_masked_what_is_seen_is_known():
    denoiser = chains.network(chains.PROCESSES["masked"])
    found = np.exp(denoiser(T, jnp.array([1, 3])))
    np.testing.assert_allclose(found[0], [0, 1, 0], atol=1e-12)
    assert np.all(found[1] > 0.01)


def test_a_network_of_another_shape():
    process = chains.PROCESSES["masked"]
    with pytest.raises(ValueError, match=r"log-probabilities of shape \(2, 3\).*got \(2, 4\)"):
        dc.from_denoiser(process, lambda t, x: jnp.zeros((2, 4)))(T, jnp.array([0, 1]))
    with pytest.raises(ValueError, match=r"ratios s\(x->z\) of shape \(2, 4\).*got \(2, 3\)"):
        dc.from_concrete_score(process, lambda t, x: jnp.zeros((2, 3)))(T, jnp.array([0, 1]))
    with pytest.raises(ValueError, match="floating-point numbers, got int"):
        dc.from_denoiser(process, lambda t, x: jnp.zeros((2, 3), int))(T, jnp.array([0, 1]))

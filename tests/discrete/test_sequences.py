"""Laws of sequences against all sequences of two positions, one by one."""

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoresens import discrete as dc
from scoresens.discrete import sequences

BOTH = pytest.mark.parametrize("name", chains.PROCESSES)
T = 0.4


def at_all(chain, function):
    return np.asarray(jax.jit(jax.vmap(function))(jnp.asarray(chain.every)))


@BOTH
@pytest.mark.parametrize("t", [0.02, T, 1.0])
def test_noised_densities(name, t):
    chain = chains.chain(name)
    found = at_all(chain, lambda x: chain.data.log_density(chain.process, t, x))
    np.testing.assert_allclose(np.exp(found), chain.law(t), rtol=1e-11)


@BOTH
def test_concrete_scores_are_ratios_of_densities(name):
    chain = chains.chain(name)
    found = at_all(chain, lambda x: chain.data.concrete_score(chain.process, T, x))
    law = chain.law(T)
    for x, score in zip(chain.every, found, strict=True):
        expected = law[chain.neighbours(x)] / law[chain.place(x)]
        np.testing.assert_allclose(score, expected, rtol=1e-10)


@BOTH
def test_the_denoiser_is_bayes(name):
    chain = chains.chain(name)
    found = at_all(chain, lambda x: chain.data.denoise(chain.process, T, x))
    for x, clean in zip(chain.every, found, strict=True):
        np.testing.assert_allclose(clean, chains.clean_law(chain, T, x), rtol=1e-10, atol=1e-15)


@BOTH
def test_blocks_of_points_change_nothing(name, monkeypatch):
    chain, x = chains.chain(name), jnp.array([1, 2])
    rows = jnp.array([[0.2, 0.2, 0.2, 0.2, 0.2], [0.0, 0.0, 0.5, 0.5, 0.0]])
    asked = chain.process, T, x

    def everything():
        data = chain.data
        return jax.jit(
            lambda: (
                data.posterior(*asked, rows),
                data.log_kernels(*asked),
                data.weighted_sums(*asked, -2.0, rows - 0.3),
                data.influences(
                    chain.process, jnp.array([T]), x[None], jnp.array([-2.0]), TABLE[None]
                ),
            )
        )()

    whole = everything()
    monkeypatch.setattr(sequences, "block_of", lambda size: 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), everything(), whole)


TABLE = jnp.arange(6.0).reshape(2, 3)


@BOTH
def test_weights_are_those_of_copies(name):
    chain = chains.chain(name)
    copied = dc.Sequences(np.repeat(chain.points, [3, 1, 1, 1, 1], 0), 3, flip=0.1)
    weighed = dc.Sequences(chain.points, 3, np.array([3.0, 1, 1, 1, 1]), flip=0.1)
    a, b = (
        at_all(chain, lambda x: data.denoise(chain.process, T, x))  # noqa: B023
        for data in (copied, weighed)
    )
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_masked_flips_have_a_limit():
    """At hidden positions; where a symbol is seen, what it would change to has no limit."""
    sharp = chains.chain("masked", flip=0.0)
    law = sharp.law(T)
    errors = []
    for flip in (1e-3, 1e-6):
        near, worst = sharp.but(flip=flip), 0.0
        scores = at_all(sharp, lambda x: near.data.concrete_score(near.process, T, x))  # noqa: B023
        for x, score in zip(sharp.every[law > 0], scores[law > 0], strict=True):
            hidden = x == 3
            expected = (law[sharp.neighbours(x)] / law[sharp.place(x)])[hidden]
            worst = max(worst, float(np.abs(score[hidden] - expected).max(initial=0)))
        errors.append(worst)
    assert errors[1] < 1e-5 and errors[0] / errors[1] == pytest.approx(1000, rel=0.02)


def test_masked_without_flips_is_the_limit_itself():
    sharp = chains.chain("masked", flip=0.0)
    law = sharp.law(T)
    found = at_all(sharp, lambda x: sharp.data.log_density(sharp.process, T, x))
    np.testing.assert_array_equal(np.isneginf(found), law == 0)
    np.testing.assert_allclose(np.exp(found), law, rtol=1e-11)
    cleans = at_all(sharp, lambda x: sharp.data.denoise(sharp.process, T, x))
    for x, clean in zip(sharp.every[law > 0], cleans[law > 0], strict=True):
        np.testing.assert_allclose(clean, chains.clean_law(sharp, T, x), rtol=1e-10, atol=1e-15)

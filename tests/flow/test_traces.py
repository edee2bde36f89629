"""Trace estimators against a dense Jacobian."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss

SHAPE = (2, 3)
ESTIMATORS = {
    "exact": ss.Exact(),
    "exact in blocks": ss.Exact(block_size=4),
    "Hutchinson": ss.Hutchinson(),
    "Hutchinson, 3 probes": ss.Hutchinson(3),
    "Hutchinson, normal": ss.Hutchinson(2, gaussian=True),
    "Hutch++": ss.HutchPlusPlus(6),
}
MATRIX = np.random.default_rng(0).normal(size=(6, 6)) + np.diag(np.arange(6.0))  # not symmetric


def push(tangents):
    """The field x -> MATRIX x of one sample, on a stack of tangents."""
    return (tangents.reshape(-1, 6) @ MATRIX.T).reshape(tangents.shape)


def stated_variance(estimator):
    """Of one estimate, as the docstrings state it, from S = (J + J^T) / 2; None: none is stated."""
    symmetric = (MATRIX + MATRIX.T) / 2
    if isinstance(estimator, ss.Exact):
        return 0.0
    if isinstance(estimator, ss.Hutchinson):
        diagonal = 0 if estimator.gaussian else np.sum(np.diag(symmetric) ** 2)
        return 2 * (np.sum(symmetric**2) - diagonal) / estimator.probes
    return None


@pytest.fixture(scope="module", params=ESTIMATORS)
def estimator(request):
    return ESTIMATORS[request.param]


@pytest.fixture(scope="module")
def estimates(estimator):
    def one(key):
        probes = estimator.draw(key, jnp.zeros(SHAPE))
        return estimator.apply(push, probes, jnp.zeros((0, *SHAPE)))[0]

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 20_000)))


def test_unbiased(estimates):
    """Within 5 standard errors; the exact one to rounding."""
    error = estimates.std() / np.sqrt(len(estimates))
    laws.close(estimates.mean(), np.trace(MATRIX), absolute=5 * error + 1e-12)


def test_variance_is_the_stated_one(estimates, estimator):
    """Within 5 standard errors of a variance, taken from the sample's fourth moment."""
    stated, offset = stated_variance(estimator), (estimates - estimates.mean()) ** 2
    if stated is not None:
        error = offset.std() / np.sqrt(len(estimates))
        laws.close(offset.mean(), stated, absolute=5 * error + 1e-12)


def test_hutch_plus_plus_is_exact_within_its_sketch():
    """A Jacobian of rank 2 lies in the range of 2 sketched products: nothing is left to chance."""
    rng = np.random.default_rng(3)
    left, right = rng.normal(size=(2, 6, 2))
    estimator = ss.HutchPlusPlus(6)
    for seed in range(5):
        probes = estimator.draw(jax.random.key(seed), jnp.zeros(6))
        found, _ = estimator.apply(lambda v: v @ right @ left.T, probes, jnp.zeros((0, 6)))
        laws.close(found, np.trace(left @ right.T), absolute=1e-10)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_riders_get_their_images(estimator, count):
    riders = jnp.asarray(np.random.default_rng(1).normal(size=(count, *SHAPE)))
    probes = estimator.draw(jax.random.key(1), riders[0] if count else jnp.zeros(SHAPE))
    images = estimator.apply(push, probes, riders)[1]
    expected = np.einsum("ij,kj->ki", MATRIX, np.asarray(riders).reshape(-1, 6))
    np.testing.assert_allclose(images.reshape(-1, 6), expected, rtol=1e-13, atol=1e-13)


def test_exact_is_the_trace_of_the_jacobian_of_a_network():
    def network(x):
        return jnp.tanh(jnp.asarray(MATRIX) @ x.reshape(-1)).reshape(SHAPE) * jnp.sum(x)

    x = jnp.asarray(np.random.default_rng(2).normal(size=SHAPE))
    expected = jnp.trace(jax.jacobian(network)(x).reshape(6, 6))
    _, linear = jax.linearize(network, x)
    found, _ = ss.Exact().apply(jax.vmap(linear), None, jnp.zeros((0, *SHAPE)))
    laws.close(found, expected, relative=1e-12)


@pytest.mark.slow
def test_probes_are_kept_along_a_path():
    """Redrawn at each stage, an adaptive solver would reject without end (3 steps against 4670)."""
    process, noise = laws.between_levels(ss.EDM())
    solve = ss.Solve(rtol=1e-4, atol=1e-4, tau_min=0.1)
    steps = [
        ss.sample_ode(
            process,
            ss.exact_score(process, laws.mixture()),
            noise,
            trace=estimator,
            key=jax.random.key(0),
            solve=solve,
        ).stats.steps
        for estimator in (ss.Exact(), ss.Hutchinson())
    ]
    assert np.all(steps[1] <= 1.3 * steps[0] + 3)

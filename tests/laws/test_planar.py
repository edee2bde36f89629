import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.laws import planar

COUNT = 200_000


@pytest.fixture(scope="module")
def drawn():
    draws = jax.jit(planar.sample_law, static_argnums=(0, 1))
    return {name: np.asarray(draws(name, COUNT, key=jax.random.key(0))) for name in planar.LAWS}


def within(values, expected, errors=5.0):
    """The mean of independent values is the expected one, within standard errors of its own."""
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    assert np.all(np.abs(values.mean(0) - expected) <= errors * error)


def frequencies(which, count):
    """Equal shares of `count` kinds, within 5 standard errors of a binomial."""
    shares = np.bincount(which, minlength=count) / len(which)
    np.testing.assert_allclose(
        shares, 1 / count, atol=5 * np.sqrt((1 / count) * (1 - 1 / count) / len(which))
    )


def test_blob_has_nine_equal_modes_of_its_variance(drawn):
    x = drawn["blob"]
    means = 0.65 * np.array(
        [(2, 2), (2, -2), (-2, 2), (-2, -2), (0, 0), (4, 0), (-4, 0), (0, 4), (0, -4)]
    )
    within(x, 0.0)
    offset = np.linalg.norm(x[:, None] - means, axis=-1)
    frequencies(offset.argmin(1), 9)  # what spills over, 0.2 % of the mass, is nearly balanced
    spread = np.einsum("ni,nj->nij", x, x)
    between = means.T @ means / 9
    within(spread, 0.0845 * np.eye(2) + between)
    inside = (offset.min(1) < 0.5).mean()  # other modes put 1e-4 of their mass there
    expected = 1 - np.exp(-(0.5**2) / (2 * 0.0845))
    assert abs(inside - expected) < 5 * np.sqrt(expected * (1 - expected) / COUNT) + 1e-4


def test_blob_in_closed_form_is_the_law_that_is_drawn(drawn):
    """E[score] = 0 and E[x . score] = -d under the law itself (Stein), and no other."""
    law = planar.blob()
    x = jnp.asarray(drawn["blob"][:20_000])
    tau = 0.05
    noised = x + tau * jax.random.normal(jax.random.key(1), x.shape)
    score = (jax.jit(jax.vmap(law.denoise, (None, 0)))(tau, noised) - noised) / tau**2
    within(np.asarray(score), 0.0)
    within(np.asarray(jnp.sum(score * noised, -1)), -2.0)


def test_blob_density_is_written_out_from_its_definition():
    means = 0.65 * np.array(
        [(2, 2), (2, -2), (-2, 2), (-2, -2), (0, 0), (4, 0), (-4, 0), (0, 4), (0, -4)]
    )
    process, t = ss.OU(theta=1.0, g=1.0, t_max=10.0), 0.3
    x = np.array([0.4, -0.9])
    variance = 0.0845 * np.exp(-2 * t) + (1 - np.exp(-2 * t)) / 2
    squares = np.sum((x - np.exp(-t) * means) ** 2, 1)
    expected = np.log(np.mean(np.exp(-squares / (2 * variance)) / (2 * np.pi * variance)))
    found = planar.blob().noised_log_density(process, t, jnp.asarray(x))
    laws.close(found, expected, absolute=1e-12)


def test_circles2_has_two_equal_rings(drawn):
    x = drawn["circles2"]
    radius, angle = np.hypot(*x.T), np.arctan2(x[:, 1], x[:, 0])
    outer = radius > 2.05  # 3.75 standard deviations from both: 9e-5 of the mass astray
    frequencies(outer.astype(int), 2)
    for ring, mean in ((radius[~outer], 1.3), (radius[outer], 2.8)):
        assert abs(ring.mean() - mean) < 5 * 0.2 / np.sqrt(len(ring))
        assert abs(ring.std() - 0.2) < 5 * 0.2 / np.sqrt(2 * len(ring))
        # 9e-5 astray, 0.75 away: 7e-5 in the mean, a ninth of the bound
    for k in (1, 2, 3):
        within(np.stack([np.cos(k * angle), np.sin(k * angle)], 1), 0.0)


def test_checker_fills_its_eight_squares_and_no_other(drawn):
    x = drawn["checker"]
    column, row = np.floor((x + 3) / 1.5).astype(int).T
    assert column.min() == row.min() == 0 and column.max() == row.max() == 3
    assert np.all((column + row) % 2 == 0)
    frequencies((4 * row + column) // 2, 8)
    within_square = (x + 3) / 1.5 % 1
    within(within_square, 0.5)
    within(within_square**2, 1 / 3)


@pytest.mark.parametrize("name", planar.LAWS)
def test_draws_cross_jit_once_and_follow_the_key(name):
    traces = []

    @jax.jit
    def mean(draw, key):
        traces.append(None)
        return jnp.mean(draw(key, 100))

    keys = jax.random.key(0), jax.random.key(1)
    found = [float(mean(planar.sampler(name), key)) for key in (*keys, keys[0])]
    assert found[0] == found[2] != found[1] and len(traces) == 1


def test_unknown_law_lists_the_known():
    with pytest.raises(
        ValueError, match="unknown planar law 'moons': choose one of blob, circles2"
    ):
        planar.sample_law("moons", 3, key=jax.random.key(0))

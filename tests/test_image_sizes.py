"""float32 at the size of images: what is right for 64 numbers is right for 12,288."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.sensitivity import tables, tangents

EDM = ss.EDM()


def variances(size, spectrum):
    """Of an image's principal axes, of mean 1/4."""
    if spectrum == "isotropic":
        return np.full(size, 0.25)
    falling = np.arange(1, size + 1) ** -1.7
    return falling * (0.25 * size / falling.sum()) + 1e-4


def gaussian(size, spectrum, shift=0.0):
    """N(0, variances), moved along the third axis by that many of its standard deviations."""
    spread = variances(size, spectrum)
    mean = np.zeros((1, size))
    mean[0, 2] = shift * spread[2] ** 0.5
    return ss.GaussianMixture(*(jnp.asarray(a, jnp.float32) for a in ([1.0], mean, spread[None])))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "spectrum"),
    [(64, "image"), (784, "image"), (3072, "image"), (12_288, "image"), (12_288, "isotropic")],
)
def test_black_box_tangents_are_those_of_the_law(size, spectrum):
    """Default settings. By a quadrature of the trace over the stages they were 6e3 times too long
    at 784, 4e28 at 3,072. The trace is exact here, for J is diagonal and the probes are signs."""
    law, moved = gaussian(size, spectrum), gaussian(size, spectrum, shift=1.0)
    score = ss.exact_score(EDM, law)
    noise = 80 * jax.random.normal(jax.random.key(0), (2, size), jnp.float32)
    push = jax.tree_util.Partial(ss.sample_sensitivity, EDM, score, ss.add(moved), noise)
    found, known = push(prior=law, key=jax.random.key(1)), push(base=law)
    assert found.tangent.dtype == jnp.float32
    laws.close(found.tangent, known.tangent, relative=0.02)
    expected = jax.vmap(lambda x: law.log_density(jnp.float32(0.002), x))(found.x)
    missed = np.abs(found.log_density - expected)
    claimed = np.asarray(found.stats.grid_error)  # neither too small nor much too large
    assert np.all(missed <= claimed) and np.all(claimed <= 6 * missed + 0.1), (missed, claimed)


def test_memory_is_bounded_whatever_the_directions_and_samples(monkeypatch):
    """64 tangents of 3 x 12,288 numbers, of which 8 have room: beside the results a few times
    these 8, and one sample's results."""
    size, directions, samples, room = 12_288, 64, 3, 8
    monkeypatch.setattr(tangents, "TANGENTS", room * size)

    def pushed(new, noise):
        data, solve = ss.Points(new[:2], bandwidth=30.0), ss.Solve(steps=2)
        score = jax.tree_util.Partial(lambda t, x: -x / (1 + t**2))
        found = ss.sample_sensitivity(EDM, score, ss.add(new), noise, base=data, solve=solve)
        return found.tangent

    given = [jax.ShapeDtypeStruct((n, size), jnp.float32) for n in (directions, samples)]
    told = jax.jit(pushed).lower(*given).compile().memory_analysis()
    assert told.temp_size_in_bytes < 4 * size * (2 * directions + 8 * room)


def exact_kernels(points, weights, x, tau):
    """(log K + log w) of places [R, d], less each row's largest, in float64."""
    squares = np.stack([np.sum((x_r - points) ** 2, 1) for x_r in x])
    logits = -squares / (2 * tau**2)
    return logits - (logits + np.log(weights)).max(1, keepdims=True)


@pytest.mark.parametrize("size", [784, 3072, 12_288, 196_608])
def test_posteriors_and_influences_keep_their_figures(size):
    """At tau = 80 a log-kernel's constants, 6 d nats, would leave 2e-4 of a posterior at 3,072 and
    1.7 % at 196,608."""
    rng, tau, count = np.random.default_rng(0), np.float32(80.0), 40
    half = np.sqrt(variances(size, "image"))
    points = (0.5 + rng.normal(size=(count, size)) * half).astype(np.float32)
    x = (points[:3] + tau * rng.normal(size=(3, size))).astype(np.float32)
    omega = rng.normal(size=(3, size)).astype(np.float32)
    wide, weights = points.astype(float), np.full(count, 1 / count)
    kernels = np.exp(exact_kernels(wide, weights, x.astype(float), float(tau)))
    share = kernels * weights / (kernels @ weights)[:, None]
    mean = share @ wide

    data = ss.Points(jnp.asarray(points))
    found = jax.vmap(lambda x: data.posterior(jnp.float32(tau), x))(jnp.asarray(x))
    spread = np.abs(wide - wide.mean(0)).max()
    laws.close(found.mean - np.mean(points, 0), mean - wide.mean(0), absolute=2e-6 * spread + 2e-7)
    states = tables.States(jnp.full(1, tau, jnp.float32), jnp.asarray(x)[None])
    influences = tables.influences(data, states, jnp.asarray(omega)[None, :, None])
    ratios = kernels / (kernels @ weights)[:, None]
    expected = ratios * ((omega.astype(float) @ wide.T) - np.sum(omega * mean, 1)[:, None])
    laws.close(influences.scores[:, 0], expected, relative=1e-5)

"""One key may be given for the noise, the Brownian path and the probes: they are independent."""

from dataclasses import dataclass

import diffrax
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens._pytrees import register_dataclass
from scoresens.flow.diffusion import brownian
from scoresens.fokker_planck.induced import mirrored

KEY = jax.random.key(0)
STEPS = 2
QUICK = {"solve": ss.Solve(solver=diffrax.Euler(), steps=STEPS, tau_min=0.5), "key": KEY}
OU = ss.OU(t_max=2.0)


@pytest.mark.parametrize("gaussian", [False, True])
def test_log_density_is_unbiased_with_the_noise_s_own_key(gaussian):
    """Within 5 standard errors of the exact trace's, at d = 16 between two modes, whose Jacobian
    hangs on the signs of x."""
    law = ss.GaussianMixture(jnp.ones(2), jnp.array([[1.0], [-1.0]]) * jnp.ones(16), jnp.ones(2))
    score, process = ss.exact_score(ss.EDM(t_max=2.0), law), ss.EDM(t_max=2.0)
    noise = process.sample_prior((2000, 16), key=KEY)

    def log_density(trace):
        solve = ss.Solve(steps=6, tau_min=0.1)
        path = ss.sample_ode(process, score, noise, trace=trace, key=KEY, solve=solve)
        return np.asarray(path.log_density)

    off = log_density(ss.Hutchinson(gaussian=gaussian)) - log_density(ss.Exact())
    assert np.abs(off.mean()) < 5 * off.std() / np.sqrt(len(off))


@register_dataclass
@dataclass(frozen=True)
class Watched(ss.TraceEstimator):
    """Takes no trace worth the name, and keeps the keys that its probes are to be drawn from."""

    def draw(self, key, x):
        jax.debug.callback(lambda words: KEPT.append(tuple(words.tolist())), words_of(key))
        return jnp.zeros((), x.dtype)

    def apply(self, push, probes, riders):
        return probes, push(riders) if len(riders) else riders


KEPT = []
WATCHED = {"trace": Watched(), **QUICK}


def words_of(key):
    return jax.random.key_data(key)


def potential(t, x):
    return -0.5 * jnp.vdot(x, x) / (1 + t)


def score(t, x):
    return -x / (1 + t)


def noise(process=OU, count=3):
    return process.sample_prior((count, 2), key=KEY)


PERTURBATION = ss.add(jnp.ones((1, 2)))
DRAWING = {
    "sample": lambda: ss.sample(OU, score, noise(), **WATCHED),
    "sample, SDE": lambda: ss.sample(OU, score, noise(), route=ss.Diffusion(KEY), **WATCHED),
    "sample_sde": lambda: ss.sample_sde(OU, score, noise(), **WATCHED),
    "a row of keys": lambda: ss.sample_sde(
        OU, score, noise(), **WATCHED | {"key": jax.random.split(KEY, 3)}
    ),
    "encode": lambda: ss.encode(OU, score, noise(), **WATCHED),
    "log_density_along": lambda: ss.log_density_along(
        OU, score, ss.to_velocity(OU, score), noise(), **WATCHED
    ),
    "score_sensitivity": lambda: ss.score_sensitivity(
        OU, score, PERTURBATION, 0.5, noise(), **WATCHED
    ),
    "sample_sensitivity": lambda: ss.sample_sensitivity(
        OU, score, PERTURBATION, noise(), **WATCHED
    ),
    "counterfactual": lambda: ss.counterfactual(
        OU, score, PERTURBATION, noise(), mass=0.1, **WATCHED
    ),
    "attribute": lambda: ss.attribute(
        OU, score, laws.data_set(), ss.functionals.pixel(0), noise(), base=None, **WATCHED
    ),
    "loss_sensitivity": lambda: ss.loss_sensitivity(
        OU, score, laws.data_set(), noise(), levels=jnp.ones(1), base=None, **WATCHED
    ),
    "residual": lambda: ss.fokker_planck_residual(
        OU, potential, 0.5, noise(), trace=Watched(), key=KEY
    ),
    "induced": lambda: ss.induced_log_density(
        OU, potential, noise(), law="sde", paths=2, **WATCHED
    ),
    "certificate": lambda: ss.gap_certificate(OU, potential, noise(), **WATCHED),
    "gap": lambda: ss.ode_sde_gap(OU, potential, noise(count=6), paths=4, **WATCHED),
}


@pytest.mark.parametrize("name", DRAWING)
def test_probes_have_a_stream_apart(name):
    """None of the keys that noise, increments of paths, and batches of draws come from."""
    KEPT.clear()
    DRAWING[name]()
    jax.effects_barrier()
    assert KEPT
    level, taken = [KEY], [KEY]
    for _ in range(3):  # a key, its samples', their steps'
        level = [jax.random.fold_in(key, i) for key in level for i in range(6)]
        taken += level
    assert not set(KEPT) & {tuple(words_of(key).tolist()) for key in taken}
    assert len(set(KEPT)) >= 3  # each sample has its own


def test_forward_paths_are_drawn_apart_from_noise_and_reverse_paths():
    """Of one key, a draw of many rows begins with the draw of one."""
    given = noise()
    times = jnp.array([0.1, 1.0])
    unit = (ss.forward_paths(OU, 0 * given, times, key=KEY).x[1]) / np.sqrt(1 - np.exp(-1.8))
    assert np.abs(np.asarray(unit - given)).min() > 1e-3
    noised = ss.along_forward(OU, jnp.full(3, 1.0), 0 * given, key=KEY).x / OU.sigma(1.0)
    assert np.abs(np.asarray(noised - given)).min() > 1e-3
    for i in range(4):
        key = jax.random.fold_in(KEY, i)
        assert np.abs(mirrored(key, 2, 3, given[0])[0, 0] - jax.random.normal(key, (2,))).min() > 0


def test_the_noise_of_losses_is_drawn_apart_from_the_reverse_paths():
    """Of a denoiser that leaves x where it is, the loss is tau^2 |n|^2."""
    process, solve = ss.EDM(), ss.Solve(steps=1)
    x, same = jnp.ones((3, 2)), ss.from_denoiser(ss.EDM(), lambda tau, x: x)
    found = ss.loss_sensitivity(
        process, same, laws.data_set(), x, levels=jnp.ones(1), key=KEY, solve=solve
    )
    for i, loss in enumerate(found.loss):
        run = brownian(process, x[i], jax.random.fold_in(KEY, i), solve)
        kick = run.kicks[0] / jnp.sqrt(run.clock[1] - run.clock[0])
        assert abs(loss / jnp.vdot(kick, kick) - 1) > 1e-3

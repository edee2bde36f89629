"""Answers of all verbs to one question, from the same canonical noise: what frames agree on."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import laws
import numpy as np

import scoresens as ss

EXACT = {"trace": ss.Exact(), "prior": laws.mixture()}
COARSE = {"solve": ss.Solve(solver=diffrax.Euler(), steps=10, tau_min=laws.BOTTOM)}
KEY = jax.random.key(0)


@jax.jit
def paths(process, noise):
    """Samples and log-densities of every walk, in units of the data."""
    law = laws.mixture()
    score = ss.exact_score(process, law)
    velocity = ss.to_velocity(process, ss.exact_score(process, laws.mixture(1.0)))
    x = jnp.asarray(laws.DATA.points[:4])
    flow = ss.sample_ode(process, score, noise, **EXACT, **COARSE)
    other = ss.log_density_along(process, score, velocity, noise, **EXACT, **COARSE)
    up = ss.encode(process, score, x, **EXACT, **COARSE)
    diffused = ss.sample_sde(process, score, noise, key=KEY, **EXACT, **COARSE)
    downward = {"flow": flow, "other's flow": other, "SDE": diffused}
    found = {name: (path.x, path.log_density) for name, path in downward.items()}
    far = process.to_canonical(process.t_max, up.x)
    return found | {"encoded": (far / laws.TOP, up.log_density)}


@jax.jit
def changes(process, noise):
    """Derivatives, against the data's law and of a black box, and what each point does. The
    score's own derivative has its law in every process."""
    data, law = laws.data_set(), laws.mixture()
    score, of_data = ss.exact_score(process, law), ss.exact_score(process, data)
    other, edit = ss.add(laws.mixture(1.0)), laws.changes()["replace"][0]
    black_box = ss.sample_sensitivity(process, score, other, noise, **EXACT, **COARSE)
    with_data = ss.sample_sensitivity(process, of_data, edit, noise, base=data, **COARSE)
    bent = laws.bent(process)
    influence = ss.attribute(process, bent, data, laws.first_and_square, noise, **COARSE)
    loss = ss.loss_sensitivity(
        process, bent, data, data.points[:2], levels=jnp.array([0.3, 2.0]), key=KEY
    )
    return {
        "black box": (black_box.x, black_box.tangent, black_box.log_density),
        "data": (with_data.x, with_data.tangent),
        "attribution": (influence.scores, influence.value),
        "loss": (loss.scores, loss.loss),
    }


def finite_changes(process, noise):
    """The same two changes, of a finite mass, and the second along the SDE."""
    data, law = laws.data_set(), laws.mixture()
    score, of_data = ss.exact_score(process, law), ss.exact_score(process, data)
    other, edit = ss.add(laws.mixture(1.0)), laws.changes()["replace"][0]
    given = {"mass": 0.3, "base": data, **COARSE}
    return [
        ss.counterfactual(process, score, other, noise, mass=0.3, **EXACT, **COARSE).x,
        ss.counterfactual(process, of_data, edit, noise, **given).x,
        ss.counterfactual(process, of_data, edit, noise, route=ss.Diffusion(KEY), **given).x,
    ]


@functools.cache
def canonical(asked):
    return asked(*laws.between_levels(laws.PROCESSES["EDM"]))


def check_one_answer(asked, process):
    """The process's answer is EDM's. 1e-9: a rounding of 1e-16 in t, alpha or sigma, over tau^2 >=
    1e-4 of the lowest step, and gathered over 10 steps."""
    found = asked(*laws.between_levels(process))
    for one, other in zip(*map(jax.tree.leaves, (found, canonical(asked))), strict=True):
        laws.close(one, other, relative=1e-9)
        assert np.max(np.abs(other)) > 1e-3  # nothing is equal because it is 0

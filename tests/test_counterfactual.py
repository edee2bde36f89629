"""Laws 6, 8, 10: samples of the model that was never trained."""

import diffrax
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss


@pytest.mark.parametrize("name", laws.PROCESSES)
def test_laws_of_counterfactuals(name):
    """One test, so that one worker compiles a process's kernels once for all its laws."""
    process = laws.PROCESSES[name]
    laws.check_counterfactual(process)
    laws.check_counterfactual_of_the_law_itself(process)
    laws.check_same_in_all_frames(process, changed_samples, absolute=1e-9)


def changed_samples(process, noise):
    return (laws.after(process, noise, laws.changes()["toward"][0], 0.3),)


@pytest.mark.parametrize("kind", ["add", "remove", "reweight", "replace"])
def test_every_kind_of_change(kind):
    laws.check_counterfactual(ss.EDM(), kind)
    laws.check_counterfactual_begins_as_the_tangent(ss.EDM(), kind)


def test_directions_are_independent():
    """K at once are the K one at a time, kept and added parts alike."""
    process, noise = laws.between_levels(ss.EDM())
    data, new = laws.data_set(), jnp.asarray(np.random.default_rng(0).normal(size=(2, 2)))
    both = laws.after(process, noise, ss.replace(data, [2, -1], new), 0.7)
    for k, index in enumerate((2, 5)):
        alone = laws.after(process, noise, ss.replace(data, [index], new[k : k + 1]), 0.7)
        laws.close(both[:, k], alone[:, 0], absolute=1e-12)


def test_mass_has_a_derivative_under_jit():
    """d x / d mass in forward mode is the difference quotient at the same mass."""
    process, noise = laws.between_levels(ss.EDM())
    change = laws.changes()["replace"][0]
    solve = ss.Solve(steps=20, tau_min=0.1, adjoint=diffrax.ForwardMode())

    def samples(mass):
        data = laws.data_set()
        score = ss.exact_score(process, data)
        return ss.counterfactual(process, score, change, noise, mass=mass, base=data, solve=solve).x

    _, slope = jax.jvp(samples, (0.3,), (1.0,))
    laws.close(slope, (samples(0.3 + 1e-6) - samples(0.3 - 1e-6)) / 2e-6, relative=1e-6)

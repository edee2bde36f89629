"""Laws 8 and 10: samples of the model that was never trained."""

from dataclasses import replace

import chex
import diffrax
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss


@pytest.mark.as_people_run
@pytest.mark.parametrize("name", laws.IN_FULL)
def test_laws_of_counterfactuals(name):
    """One test, so that one worker compiles a process's kernels once for all its laws."""
    process = laws.PROCESSES[name]
    laws.check_counterfactual(process)
    laws.check_counterfactual(process, black_box=True)
    laws.check_counterfactual_of_the_law_itself(process)


SLOW = [pytest.param(k, marks=pytest.mark.slow) for k in ("add", "remove", "reweight", "move")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replace", *SLOW])
def test_every_kind_of_change(kind):
    laws.check_counterfactual(ss.EDM(), kind)
    laws.check_counterfactual_begins_as_the_tangent(ss.EDM(), kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["remove", "replace", "move"])
def test_every_kind_of_change_to_a_black_box(kind):
    """Masses at which more is left everywhere than the pole's bound takes."""
    laws.check_counterfactual(ss.EDM(), kind, masses=(0.05, 0.5), black_box=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["toward", "move"])
def test_a_black_box_begins_as_the_tangent(kind):
    laws.check_counterfactual_begins_as_the_tangent(ss.EDM(), kind, black_box=True)


@pytest.mark.slow
@pytest.mark.parametrize("black_box", [False, True])
def test_negative_mass_is_taken_away(black_box):
    """(1 + e) rho - e nu, a law as long as no weight falls below 0."""
    laws.check_counterfactual(ss.EDM(), masses=(-0.05, -0.2), black_box=black_box)


def test_several_masses_are_each_alone():
    process, noise = laws.between_levels(ss.EDM())
    both = laws.after(process, noise, laws.changes()["toward"][0], jnp.array([0.05, 0.6]))
    chex.assert_shape([both.x, both.bounded], [(4, 2, 1, 2), (4, 2, 1)])
    for e, mass in enumerate((0.05, 0.6)):
        alone = laws.after(process, noise, laws.changes()["toward"][0], mass)
        laws.close(both.x[:, e], alone.x, absolute=1e-12)


# ------------------------------------------------------------------ the pole


def test_a_removal_of_more_than_there_is_is_bounded_and_counted():
    """(1 + e) N(0, I) - e N(0, I/4) at e = 1/2: on the axis of symmetry, where a path from 0 stays,
    the ratio of what goes to what stays is 1/3 (1 + tau^2) / (1/4 + tau^2), above 0.9 at the steps
    that end below tau = 0.47. Off it the answer stays finite: it is pushed away."""
    process = ss.EDM(t_max=laws.TOP)
    law = ss.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.array([1.0]))
    part = ss.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.array([0.25]))
    solve = ss.Solve(steps=40, tau_min=laws.BOTTOM)
    found = ss.counterfactual(
        process,
        ss.exact_score(process, law),
        ss.add(part),
        jnp.array([[0.0, 0.0], [0.5, 1.0]]),
        mass=jnp.array([-0.5, 0.5]),
        trace=ss.Exact(),
        prior=law,
        solve=solve,
    )
    levels = np.linspace(laws.TOP ** (1 / 7), laws.BOTTOM ** (1 / 7), 41)[1:] ** 7
    above = (1 + levels**2) / (0.25 + levels**2) / 3 > 0.9
    assert 0 < above.sum() < 40
    np.testing.assert_array_equal(found.bounded[0, :, 0], [above.sum(), 0])
    laws.close(found.x[0], np.zeros((2, 1, 2)), absolute=1e-12)
    away, toward = np.linalg.norm(found.x[1, :, 0], axis=-1)
    assert np.isfinite(away) and away > toward


def test_a_class_removed_from_a_narrower_model_is_bounded():
    """The model has one point where the data have six: what it is asked to give up it does not
    have."""
    process, noise = laws.between_levels(ss.EDM())
    data = laws.data_set()
    narrow = ss.Points(data.points[:1] + 1.0, None, 0.2)
    mask = np.arange(6) > 0
    found = ss.counterfactual(
        process,
        ss.exact_score(process, narrow),
        ss.remove(data, mask),
        noise,
        mass=1.0,
        trace=ss.Exact(),
        prior=narrow,
        solve=laws.SHORT,
    )
    chex.assert_tree_all_finite(found.x)
    assert np.any(found.bounded > 0) and np.all(found.bounded <= 10)


# ------------------------------------------------------------------ along the reverse SDE

WALK = jax.random.key(7)


def noisy(process, measure, noise, solve=laws.SHORT):
    return ss.sample_sde(process, ss.exact_score(process, measure), noise, key=WALK, solve=solve).x


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["remove", "replace", "toward", "move"])
def test_along_the_sde(kind):
    """Where the model's law is the base, the changed denoiser is the changed law's: the same steps
    of the sampler, on the same Brownian path."""
    process, noise = laws.between_levels(ss.EDM())
    data, (perturbation, law_at) = laws.data_set(), laws.changes()[kind]
    for mass in (0.05, 0.6):
        found = ss.counterfactual(
            process, ss.exact_score(process, data), perturbation, noise,
            mass=mass, base=data, route=ss.Diffusion(WALK), solve=laws.SHORT,
        )  # fmt: skip
        expected = noisy(process, laws.points_of(law_at(mass)), noise)
        laws.close(found.x[:, 0], expected, absolute=1e-10)


@pytest.mark.slow
def test_a_black_box_along_the_sde():
    """log rho followed along the changed path tends to the law's own, and so do the samples: with
    the step, order 1 (bounds as for the tangents of a black box along the SDE)."""
    process, _ = laws.between_levels(ss.EDM())
    noise = laws.TOP * jnp.asarray(np.random.default_rng(0).normal(size=(256, 2)))
    law, errors = laws.mixture(), []
    for steps in (160, 640):
        solve = ss.Solve(steps=steps, tau_min=laws.BOTTOM)
        found = ss.counterfactual(
            process, ss.exact_score(process, law), ss.add(laws.mixture(1.0)), noise,
            mass=0.5, trace=ss.Exact(), prior=law, route=ss.Diffusion(WALK), solve=solve,
        )  # fmt: skip
        expected = noisy(process, laws.mixture(0.5), noise, solve)
        errors.append(np.median(np.abs(found.x[:, 0] - expected)))
    order = np.log(errors[0] / errors[1]) / np.log(4)
    assert abs(order - 1) < 0.3, (order, errors)


@pytest.mark.parametrize("route", [ss.Flow(), ss.Diffusion(WALK)], ids=["flow", "SDE"])
def test_bounds_are_counted_at_every_step(route):
    """Of a law that grows by a share e, and loses as much of itself, e / (1 + e) goes everywhere:
    10 / 11 is above the bound of 0.9 at every step, 2 / 3 at none."""
    process, noise = laws.between_levels(ss.EDM())
    law = laws.mixture()
    for factor, count in ((-20.0, 10), (-4.0, 0)):
        found = ss.counterfactual(
            process, ss.exact_score(process, law), factor * ss.add(law), noise,
            mass=0.5, base=law, route=route, solve=laws.SHORT,
        )  # fmt: skip
        np.testing.assert_array_equal(found.bounded, np.full((4, 1), count))


# ------------------------------------------------------------------ other models


@pytest.mark.slow
@pytest.mark.parametrize("base", [None, laws.mixture()], ids=["black box", "measure"])
def test_toward_another_model(base):
    """Trained on another process; what is known of it is its score, and its log-density follows."""
    process, noise = laws.between_levels(ss.EDM())
    score = ss.exact_score(process, laws.mixture())
    given = {"base": base, "trace": ss.Exact(), "prior": laws.mixture(), "solve": laws.FINE}
    for mass in (0.05, 0.6):
        found = ss.counterfactual(
            process, score, ss.add(laws.other_model()), noise, mass=mass, **given
        )
        expected = laws.flow_of(process, laws.mixture(mass), noise)
        laws.close(found.x[:, 0], expected, absolute=1e-8)


# ------------------------------------------------------------------ guidance


@pytest.mark.slow
@pytest.mark.parametrize("black_box", [False, True])
def test_guided_samples(black_box):
    """Both laws changed (6.2), and one alone: the flow of the guided scores of the changed laws."""
    process, noise = laws.between_levels(ss.EDM())
    both, one = laws.guided(process, black_box), laws.guided(process, black_box, ends=(0.8, None))
    for mass in (0.05, 0.6):
        for case in (both, one):
            found = ss.counterfactual(noise=noise, mass=mass, **case.asked)
            laws.close(found.x[:, 0], case.samples_at(mass, noise), absolute=1e-8)


@pytest.mark.slow
def test_directions_are_independent():
    """K in one call, in batches of one, are the K one at a time, kept and added parts alike."""
    process, noise = laws.between_levels(ss.EDM())
    data, new = laws.data_set(), jnp.asarray(np.random.default_rng(0).normal(size=(2, 2)))
    score, solve = ss.exact_score(process, data), replace(laws.FINE, batch_size=len(noise))
    change = ss.replace(data, [2, -1], new)
    both = ss.counterfactual(process, score, change, noise, mass=0.7, base=data, solve=solve).x
    for k, index in enumerate((2, 5)):
        alone = laws.after(process, noise, ss.replace(data, [index], new[k : k + 1]), 0.7).x
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


@pytest.mark.parametrize("route", [ss.Flow(), ss.Diffusion(WALK)], ids=["flow", "SDE"])
def test_mass_has_a_derivative_where_nothing_is_added_yet(route):
    """Toward another model, and away from points: at mass 0 it is the tangent of the same steps."""
    process, noise = laws.between_levels(ss.EDM())
    law, new = laws.mixture(), jnp.asarray(laws.DATA.new[None])
    change = ss.add(laws.other_model()) - 0.5 * ss.add(ss.Points(new, None, 0.4))
    given = {"base": law, "trace": ss.Exact(), "route": route, "solve": laws.SHORT}
    given |= {"process": process, "score": ss.exact_score(process, law), "perturbation": change}

    def samples(mass):
        return ss.counterfactual(noise=noise, mass=mass, **given).x

    _, slope = jax.jvp(jax.jit(samples), (0.0,), (1.0,))
    laws.close(slope, ss.sample_sensitivity(noise=noise, **given).tangent, relative=1e-9)

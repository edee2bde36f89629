"""Laws 1, 2, 8, 9: derivatives of scores and samples."""

from typing import Any

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.sensitivity import tangents

KEY = jax.random.key(0)


@pytest.mark.as_people_run
@pytest.mark.parametrize("name", laws.PROCESSES)
def test_laws_of_score_derivatives(name):
    for tau in (0.05, 0.5, 5.0):
        laws.check_score_derivative(laws.PROCESSES[name], tau)
        laws.check_score_derivative_of_data(laws.PROCESSES[name], tau, "replace")


@pytest.mark.as_people_run
@pytest.mark.parametrize("name", laws.IN_FULL)
def test_laws_of_tangents(name):
    """One test, so that one worker compiles a process's kernels once for all its laws."""
    process = laws.PROCESSES[name]
    laws.check_tangent(process)
    laws.check_tangent_of_data(process)
    laws.check_law_added_to_itself(process)
    laws.check_linear(process)


@pytest.mark.parametrize("name", ["VP", "FlowMatching"])
def test_score_derivative_by_solving(name):
    laws.check_score_derivative_by_solving(laws.PROCESSES[name], 0.5)


@pytest.mark.parametrize("kind", ["add", "remove", "reweight", "toward", "move"])
def test_score_derivative_of_data_for_every_kind(kind):
    laws.check_score_derivative_of_data(ss.VP(), 0.3, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["add", "remove", "reweight", "replace", "move"])
def test_tangent_of_data_for_every_kind(kind):
    laws.check_tangent_of_data(ss.EDM(), kind)


def test_black_box_is_the_data_s_where_the_laws_are_one():
    """base=None with log rho of the data, and base=data, on bumps of one bandwidth."""
    process, noise = laws.between_levels(ss.EDM())
    data = laws.data_set()
    change = laws.changes()["replace"][0].bumped_like(ss.Smoothed(laws.DATA.bandwidth))
    black_box = ss.sample_sensitivity(
        process,
        ss.exact_score(process, data),
        change,
        noise,
        trace=ss.Exact(),
        prior=data,
        solve=laws.FINE,
    )
    with_data = laws.data_tangent(process, noise, change)
    laws.close(black_box.tangent, with_data.tangent, relative=1e-7)  # (3.1) is solved for
    assert with_data.log_density is None


def test_directions_are_independent():
    """K at once are the K one at a time."""
    process, noise = laws.between_levels(ss.EDM())
    rows = jnp.asarray(np.random.default_rng(6).uniform(size=(2, 6)))
    both = laws.data_tangent(process, noise, ss.reweight(laws.data_set(), rows)).tangent
    for k in range(2):
        alone = laws.data_tangent(process, noise, ss.reweight(laws.data_set(), rows[k])).tangent
        laws.close(both[:, k], alone[:, 0], relative=1e-12)


ROUTES = [ss.Flow(), pytest.param(ss.Diffusion(KEY), marks=pytest.mark.slow)]


@pytest.mark.parametrize("route", ROUTES)
def test_tangents_of_one_sample_in_groups(monkeypatch, route):
    """Seven directions, three at a time, of edits of both kinds."""
    data = laws.data_set()
    rows = np.random.default_rng(0).uniform(0.1, 1, size=(7, 6))
    change = ss.add(np.random.default_rng(1).normal(size=(7, 2))) + ss.reweight(data, rows)
    score, noise = ss.exact_score(ss.EDM(), data), ss.EDM().sample_prior((3, 2), key=KEY)
    options = {"route": route, "key": KEY, "solve": ss.Solve(steps=3, tau_min=0.1)}
    program: Any = tangents._push

    def pushed():
        program.clear_cache()
        return ss.sample_sensitivity(ss.EDM(), score, change, noise, prior=data, **options)

    whole = pushed()
    monkeypatch.setattr(tangents, "TANGENTS", 3 * 2)
    found = pushed()
    program.clear_cache()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        laws.close(a * 1.0, b * 1.0, relative=1e-11)


def test_tangent_of_a_move_of_a_black_box():
    laws.check_tangent_of_data(ss.EDM(), "move", black_box=True)


# ------------------------------------------------------------------ other models


def test_tangent_toward_another_model():
    """Its log-density, followed along the path, and its denoiser are those of its law; bound as of
    `test_black_box_is_the_data_s_where_the_laws_are_one`."""
    process, noise = laws.between_levels(ss.EDM())
    found = laws.black_box_tangent(process, noise, laws.other_model())
    known = laws.black_box_tangent(process, noise, laws.mixture(1.0))
    laws.close(found.tangent, known.tangent, relative=1e-7)
    laws.close(found.log_density, known.log_density, absolute=1e-7)


@pytest.mark.parametrize("route", [ss.Flow(), ss.Diffusion(jax.random.key(0))], ids=["flow", "SDE"])
def test_a_model_added_to_itself(route):
    """Law 8, to rounding: both log-densities follow the same rule on the same path."""
    process, noise = laws.between_levels(ss.EDM())
    law = laws.mixture()
    score = ss.exact_score(process, law)
    itself = ss.add(ss.Learned(process, score, (2,), prior=law))
    found = ss.sample_sensitivity(
        process,
        score,
        itself,
        noise,
        trace=ss.Exact(),
        prior=law,
        route=route,
        solve=laws.SHORT,
    )
    laws.close(found.tangent, np.zeros((4, 1, 2)), absolute=1e-11)


# ------------------------------------------------------------------ guidance


def check_guided_tangent(case, process, noise):
    found = ss.sample_sensitivity(noise=noise, **case.asked)
    expected = laws.difference(lambda mass: case.samples_at(mass, noise))
    laws.close(found.tangent[:, 0], expected, relative=1e-5)
    return found


@pytest.mark.slow
def test_guided_tangent_of_black_boxes():
    """Law 2 for (6.2), and law 4 for both log-densities along the guided path."""
    process, noise = laws.between_levels(ss.EDM())
    found = check_guided_tangent(laws.guided(process, black_box=True), process, noise)
    for nats, mass in zip(found.log_density, laws.GUIDED, strict=True):
        law = laws.LAW.mixed(laws.OTHER, mass).noised(1.0, laws.BOTTOM)
        laws.close(nats, law.log_density(np.asarray(found.x)), absolute=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("ends", [(0.8, 0.1), (0.8, None), (None, 0.1)])
def test_guided_tangent_against_the_laws(ends):
    process, noise = laws.between_levels(ss.EDM())
    found = check_guided_tangent(laws.guided(process, False, ends), process, noise)
    assert found.log_density == ss.Pair(None, None)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_guidance_of_weight_0_and_1_is_none(weight):
    """The unconditional law's answers, and the conditional one's."""
    process, noise = laws.between_levels(ss.EDM())
    case = laws.guided(process, False, weight=weight)
    law, change = case.laws_at(0.0)[int(weight)], case.asked["perturbation"][int(weight)]
    score = ss.exact_score(process, law)
    plain = ss.sample_sensitivity(process, score, change, noise, base=law, solve=laws.SHORT)
    found = ss.sample_sensitivity(noise=noise, **case.asked)
    laws.close(found.x, plain.x, absolute=1e-12)
    laws.close(found.tangent, plain.tangent, relative=1e-11)


# ------------------------------------------------------------------ the reverse SDE

WALK = jax.random.key(4)


def noisy(process, law, noise, **given):
    score = ss.exact_score(process, law)
    return ss.sample_sde(process, score, noise, key=WALK, solve=laws.SHORT, **given)


def test_tangent_along_the_sde():
    """Law 2 with the Brownian path held fixed: against its own law the derivative is that of the
    sampler's steps, so that differences bound it on any grid."""
    process, noise = laws.between_levels(ss.EDM())
    law = laws.mixture()
    found = ss.sample_sensitivity(
        process,
        ss.exact_score(process, law),
        ss.add(laws.mixture(1.0)),
        noise,
        base=law,
        route=ss.Diffusion(WALK),
        solve=laws.SHORT,
    )
    expected = laws.difference(lambda mass: noisy(process, laws.mixture(mass), noise).x)
    laws.close(found.tangent[:, 0], expected, relative=1e-5)
    laws.close(found.x, noisy(process, law, noise).x, absolute=1e-12)
    assert found.log_density is None


@pytest.mark.slow
def test_tangent_of_a_black_box_along_the_sde():
    """It tends to the one against its own law, known in closed form, as its log-density does: with
    the step, order 1. The median error of 256 samples is known to 8 %, a factor's log2 to 0.16, and
    three of these, with what is left of higher orders, are the bound."""
    process, _ = laws.between_levels(ss.EDM())
    noise = laws.TOP * jnp.asarray(np.random.default_rng(0).normal(size=(256, 2)))
    law, errors = laws.mixture(), []
    for steps in (160, 640):
        given = {"route": ss.Diffusion(WALK), "solve": ss.Solve(steps=steps, tau_min=laws.BOTTOM)}
        run = (process, ss.exact_score(process, law), ss.add(laws.mixture(1.0)), noise)
        own = ss.sample_sensitivity(*run, trace=ss.Exact(), prior=law, **given)
        known = ss.sample_sensitivity(*run, base=law, **given)
        errors.append(np.median(np.abs(own.tangent - known.tangent)))
    order = np.log(errors[0] / errors[1]) / np.log(4)
    assert abs(order - 1) < 0.3, (order, errors)


def test_log_density_along_the_sde_beside_a_tangent():
    process, noise = laws.between_levels(ss.EDM())
    law = laws.mixture()
    found = ss.sample_sensitivity(
        process,
        ss.exact_score(process, law),
        ss.add(laws.mixture(1.0)),
        noise,
        trace=ss.Exact(),
        prior=law,
        route=ss.Diffusion(WALK),
        solve=laws.SHORT,
    )
    path = noisy(process, law, noise, trace=ss.Exact(), prior=law)
    laws.close(found.x, path.x, absolute=1e-12)
    laws.close(found.log_density, path.log_density, absolute=1e-10)

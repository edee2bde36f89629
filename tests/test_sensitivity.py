"""Laws 1, 2, 6, 8, 9: derivatives of scores and samples."""

import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss


@pytest.fixture(scope="module", params=laws.PROCESSES)
def process(request):
    return laws.PROCESSES[request.param]


@pytest.mark.parametrize("tau", [0.05, 0.5, 5.0])
def test_score_derivative(process, tau):
    laws.check_score_derivative(process, tau)


def test_score_derivative_of_data(process):
    for tau in (0.05, 0.5, 5.0):
        laws.check_score_derivative_of_data(process, tau, "replace")


def test_laws_of_tangents(process):
    """One test, so that one worker compiles a process's kernels once for all its laws."""
    laws.check_tangent(process)
    laws.check_tangent_of_data(process)
    laws.check_law_added_to_itself(process)
    laws.check_linear(process)
    laws.check_same_in_all_frames(process, sensitivities, absolute=1e-7)


def sensitivities(process, noise):
    black_box = laws.black_box_tangent(process, noise, laws.mixture(1.0))
    with_data = laws.data_tangent(process, noise, laws.changes()["toward"][0])
    return black_box.x, black_box.tangent, black_box.log_density, with_data.x, with_data.tangent


@pytest.mark.parametrize("name", ["VP", "FlowMatching"])
def test_score_derivative_by_solving(name):
    laws.check_score_derivative_by_solving(laws.PROCESSES[name], 0.5)


@pytest.mark.parametrize("kind", ["add", "remove", "reweight", "toward"])
def test_score_derivative_of_data_for_every_kind(kind):
    laws.check_score_derivative_of_data(ss.VP(), 0.3, kind)


@pytest.mark.parametrize("kind", ["add", "remove", "reweight", "replace"])
def test_tangent_of_data_for_every_kind(kind):
    laws.check_tangent_of_data(ss.EDM(), kind)


def test_black_box_is_the_data_s_where_the_laws_are_one():
    """base=None with log rho of the data, and base=data, on bumps of one bandwidth."""
    process, noise = laws.between_levels(ss.EDM())
    data = laws.data_set()
    change = laws.changes()["replace"][0].with_default_bandwidth(laws.DATA.bandwidth)
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

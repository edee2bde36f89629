"""Directions in the space of data laws, and the laws at finite mass."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import oracles
import pytest

import scoresens as ss
from scoresens.finite import change

X, TAU = np.array([0.3, -0.2]), 0.7


def chi(perturbation):
    """The direction's signed weights over the points of DATA and the newcomers, as numpy."""
    edits = np.zeros((len(perturbation), len(laws.DATA.points)))
    added = None
    for part in perturbation.parts:
        if part.index is None:
            added = part.coefficients
        else:
            edits[:, np.asarray(part.index)] += part.coefficients
    return edits, added


@pytest.mark.parametrize("kind", laws.CHANGES)
def test_mass_one_is_the_whole_change(kind):
    """The denoiser of the changed law, at several masses, is the oracle's."""
    perturbation, law_at = laws.changes()[kind]
    perturbation = perturbation.with_default_bandwidth(laws.DATA.bandwidth)
    for mass in (0.0, 0.3, 1.0):
        found = change(laws.data_set(), perturbation, mass).denoise(TAU, jnp.asarray(X)[None])[0]
        laws.close(found, law_at(mass).denoised(TAU, X[None]), absolute=1e-12)


@pytest.mark.parametrize("kind", laws.CHANGES)
def test_denoiser_derivative(kind):
    """(2.1) in the canonical frame: tau^2 times the derivative of the score."""
    perturbation, law_at = laws.changes()[kind]
    perturbation = perturbation.with_default_bandwidth(laws.DATA.bandwidth)
    law = laws.DATA.unchanged()
    found = perturbation.denoiser_derivative(
        TAU,
        jnp.asarray(X),
        jnp.asarray(law.noised(1.0, TAU).log_density(X[None])[0]),
        jnp.asarray(law.denoised(TAU, X[None])[0]),
    )
    expected = TAU**2 * oracles.score_derivative(law_at, 1.0, TAU, X[None])
    laws.close(found, expected, absolute=1e-12)


def test_remove_by_index_by_mask_and_by_masks():
    data, weights = laws.data_set(), laws.DATA.weights
    mask = np.zeros((2, 6), bool)
    mask[0, [1, 2]] = mask[1, 4] = True
    rows = np.array([np.where(m, -weights / (1 - weights[m].sum()), 0) for m in mask])
    laws.close(chi(ss.remove(data, mask))[0], rows, absolute=1e-15)
    laws.close(chi(ss.remove(data, mask[0]))[0], rows[:1], absolute=1e-15)
    laws.close(chi(ss.remove(data, [4]))[0], rows[1:], absolute=1e-15)
    laws.close(chi(ss.remove(data, jnp.array([-2])))[0], rows[1:], absolute=1e-15)


def test_remove_points_of_no_weight_moves_nothing():
    data = ss.Points(jnp.asarray(laws.DATA.points), jnp.array([0.0, 1, 1, 1, 1, 1]))
    laws.close(chi(ss.remove(data, [0]))[0], np.zeros((1, 6)))


def test_reweight_normalises_its_rows():
    rows = np.array([[1.0, 0, 2, 0, 3, 0], [1, 1, 1, 1, 1, 1]])
    expected = rows / rows.sum(1, keepdims=True) - laws.DATA.weights
    found = ss.reweight(laws.data_set(), rows)
    laws.close(chi(found)[0], expected, absolute=1e-15)
    assert (len(found), found.shape) == (2, (2,))
    laws.close(chi(ss.reweight(laws.data_set(), rows[0]))[0], expected[:1], absolute=1e-15)


def test_replace_moves_the_weight_of_its_points():
    new = np.random.default_rng(0).normal(size=(2, 2))
    edits, added = chi(ss.replace(laws.data_set(), [2, -1], new))
    weights = laws.DATA.weights
    expected = np.zeros((2, 6))
    expected[[0, 1], [2, 5]] = -weights[[2, 5]]
    laws.close(edits, expected, absolute=1e-15)
    laws.close(added, np.diag(weights[[2, 5]]), absolute=1e-15)


def test_add_is_one_direction_a_point_or_one_a_measure():
    new = np.random.default_rng(0).normal(size=(3, 2))
    laws.close(chi(ss.add(new))[1], np.eye(3))
    toward = ss.add(laws.mixture(0.5))
    laws.close(chi(toward)[1], [[0.15, 0.35, 0.3, 0.2]], absolute=1e-15)
    assert (len(toward), toward.shape) == (1, (2,))


def test_bandwidth_is_taken_from_the_data_unless_given():
    own = ss.add(ss.Points(jnp.asarray(X)[None], bandwidth=0.1)).with_default_bandwidth(0.5)
    taken = ss.add(X[None]).with_default_bandwidth(0.5)
    laws.close([own.parts[0].measure.bandwidth, taken.parts[0].measure.bandwidth], [0.1, 0.5])
    edited = laws.changes()["remove"][0].with_default_bandwidth(0.9)
    laws.close(edited.parts[0].measure.bandwidth, laws.DATA.bandwidth)


def test_a_removed_point_leaves_no_ghost():
    """At small noise a weight of rounding, 1e-17, would beat a far point's 1."""
    points = jnp.array([[0.0], [1.0], [2.0]])
    data = ss.Points(points, jnp.array([0.1, 0.2, 0.7]))
    law = change(data, ss.remove(data, [0]), 1.0)
    found, _ = law.denoise(0.01, jnp.array([[0.0]]))
    laws.close(found, [[1.0]], absolute=1e-12)


def test_perturbations_are_pytrees():
    """Through jit as arguments; what is absent stays absent."""
    for perturbation, _ in laws.changes().values():
        doubled = jax.tree.map(lambda leaf: leaf, perturbation)
        assert jax.tree.structure(doubled) == jax.tree.structure(perturbation)
        found = jax.jit(lambda p: sum(map(jnp.size, jax.tree.leaves(p))) + len(p))(perturbation)
        assert found > len(perturbation)

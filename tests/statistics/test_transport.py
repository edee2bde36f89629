"""Transport between samples, against other solvers."""

import jax.numpy as jnp
import jaxtyping
import laws
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment, linprog
from scipy.spatial.distance import cdist

from scoresens.statistics import _pot, transport_map

EXACT = 1e-9  # relative: the other solvers' own feasibility and rounding


@pytest.fixture
def unchecked_annotations():
    """People run without beartype: the library's own checks must speak."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_as_many_samples_are_paired():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(2, 40, 2, 3))
    _, partners = linear_sum_assignment(cdist(x.reshape(40, 6), y.reshape(40, 6), "sqeuclidean"))
    for scale in (1e-60, 1e-8, 1.0, 1e60):  # POT's own tolerances are absolute
        laws.close(transport_map(scale * x, scale * y) / scale, y[partners], relative=EXACT)
    laws.close(transport_map(jnp.asarray(x), y + 1e4), y[partners] + 1e4, relative=EXACT)


def test_unequal_numbers_go_to_the_mean_of_their_targets():
    """The coupling of least cost, written out as equations on every entry."""
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(9, 3)) + 1
    rows = np.kron(np.eye(6), np.ones(9))
    columns = np.kron(np.ones(6), np.eye(9))
    marginals = np.repeat([1 / 6, 1 / 9], [6, 9])
    cost = cdist(x, y, "sqeuclidean").ravel()
    found = linprog(cost, A_eq=np.concatenate([rows, columns]), b_eq=marginals)
    laws.close(transport_map(x, y), 6 * found.x.reshape(6, 9) @ y, relative=1e-7)


def test_equal_sets_stay_where_they_are():
    x = np.random.default_rng(8).normal(size=(20, 2))
    laws.close(transport_map(x, x[::-1]), x, absolute=1e-12)
    laws.close(transport_map(np.zeros((3, 2)), np.zeros((5, 2))), np.zeros((3, 2)), absolute=0.0)


def test_a_solver_that_stops_early_is_an_error(monkeypatch):
    x, y = np.random.default_rng(14).normal(size=(2, 40, 2))
    monkeypatch.setattr(_pot, "PIVOTS", 3)
    with pytest.raises(FloatingPointError, match=r"did not converge.*take fewer samples"):
        transport_map(x, y)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((0, 2)), r"x must be a batch \[M, \*shape\] with M >= 1, got shape \(0, 2\)"),
        (np.ones(3), r"got shape \(3,\); add a trailing axis"),
        (np.ones((3, 3)), r"samples of one shape, got \(3,\) and \(2,\)"),
        (np.array([[1.0, np.nan], [np.inf, 0.0]]), "x has 2 entries that are NaN or infinite"),
        (np.ones((3, 2), np.uint8), "x holds uint8 where floating-point numbers belong"),
        (np.full((3, 2), 1e200), "overflow: rescale"),
    ],
)
def test_refused_samples(x, message):
    with pytest.raises(ValueError, match=message):
        transport_map(x, np.ones((3, 2)))

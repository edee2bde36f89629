"""Directions in the space of data laws, and the laws at finite mass."""

from dataclasses import replace
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.laws.changed import change
from scoresens.sensitivity.counterfactual import _walk
from scoresens.sensitivity.tangents import _push

KEY = jax.random.key(0)
X, TAU = np.array([0.3, -0.2]), 0.7


def chi(perturbation):
    """The direction's signed weights over the points of DATA and the newcomers, as numpy."""
    edits = np.zeros((len(perturbation), len(laws.DATA.points)))
    added = None
    for part in perturbation.parts:
        rows = jnp.diag(part.coefficients) if part.single else part.coefficients
        if part.index is None:
            added = rows
        else:
            np.add.at(edits, (slice(None), np.asarray(part.index)), rows)
    return edits, added


def shifted(data, perturbation, mass, tau=TAU, x=X):
    """What one change does to the ideal denoiser at a place."""
    x = jnp.asarray(x)
    tau = jnp.asarray(tau, x.dtype)
    return change(data, perturbation, mass)[0].shift(tau, x, data.posterior(tau, x))[0]


def after(data, perturbation, mass, tau=TAU, x=X):
    """The ideal denoiser after it."""
    return data.denoise(tau, jnp.asarray(x)) + shifted(data, perturbation, mass, tau, x)


@pytest.mark.slow
@pytest.mark.parametrize("kind", laws.CHANGES)
def test_mass_one_is_the_whole_change(kind):
    """The denoiser of the changed law, at several masses, is the oracle's."""
    perturbation, law_at = laws.changes()[kind]
    perturbation = perturbation.bumped_like(ss.Smoothed(laws.DATA.bandwidth))
    for mass in (0.0, 0.3, 1.0):
        found = after(laws.data_set(), perturbation, mass)
        laws.close(found, law_at(mass).denoised(TAU, X[None])[0], absolute=1e-12)


@pytest.mark.parametrize("kind", laws.CHANGES)
def test_denoiser_derivative(kind):
    """(2.1) in the canonical frame: tau^2 times the derivative of the score."""
    perturbation, law_at = laws.changes()[kind]
    perturbation = perturbation.bumped_like(ss.Smoothed(laws.DATA.bandwidth))
    law = laws.DATA.unchanged()
    found = perturbation.denoiser_derivative(
        TAU,
        jnp.asarray(X),
        jnp.asarray(law.noised(1.0, TAU).log_density(X[None])[0] + laws.broad(TAU, X.size)),
        jnp.asarray(law.denoised(TAU, X[None])[0]),
    )
    expected = TAU**2 * laws.slope_of_score(kind, law_at, 1.0, TAU, X[None])
    laws.close(found, expected, absolute=1e-9 if kind == "move" else 1e-12)


def test_remove_by_index_by_mask_and_by_masks():
    data, weights = laws.data_set(), laws.DATA.weights
    mask = np.zeros((2, 6), bool)
    mask[0, [1, 2]] = mask[1, 4] = True
    rows = np.array([np.where(m, -weights / (1 - weights[m].sum()), 0) for m in mask])
    laws.close(chi(ss.remove(data, mask))[0], rows, absolute=1e-15)
    laws.close(chi(ss.remove(data, mask[0]))[0], rows[:1], absolute=1e-15)
    laws.close(chi(ss.remove(data, [4]))[0], rows[1:], absolute=1e-15)
    laws.close(chi(ss.remove(data, jnp.array([-2])))[0], rows[1:], absolute=1e-15)


def test_a_point_of_many_is_named_without_a_table_of_all():
    """A mask of every pair, 300,000 squared, would be 90 GB."""
    data = ss.Points(jnp.zeros((300_000, 1)) + jnp.arange(300_000)[:, None])
    part = ss.remove(data, [-1, 5]).parts[0]
    laws.close(part.index, [299_999, 5])
    laws.close(part.coefficients, np.full(2, -1 / 299_999), relative=1e-9)
    moved = ss.move(data, [7], jnp.ones((1, 1))).parts[0]
    laws.close(moved.coefficients, [1 / 300_000], relative=1e-9)


@pytest.mark.parametrize("verb", ["counterfactual", "black box", "sample_sensitivity"])
def test_sets_of_about_one_size_share_a_program(verb):
    """Masks of 5 to 8 points."""
    data = ss.Points(jnp.asarray(np.random.default_rng(0).normal(size=(20, 2))))
    score, noise = ss.exact_score(ss.EDM(), data), ss.EDM().sample_prior((2, 2), key=KEY)
    given = {"solve": ss.Solve(solver=diffrax.Euler(), steps=2, tau_min=0.5), "key": KEY}
    given |= {} if verb == "black box" else {"base": data}

    def ask(perturbation):
        if verb == "sample_sensitivity":
            return ss.sample_sensitivity(ss.EDM(), score, perturbation, noise, **given)
        return ss.counterfactual(ss.EDM(), score, perturbation, noise, mass=0.5, **given)

    program: Any = _push if verb == "sample_sensitivity" else _walk
    ask(ss.remove(data, np.arange(20) < 8))
    programs = program._cache_size()
    for count in (5, 6, 7):
        ask(ss.remove(data, np.arange(20) > 19 - count))
    assert program._cache_size() == programs


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
    own = ss.add(ss.Points(jnp.asarray(X)[None], bandwidth=0.1)).bumped_like(ss.Smoothed(0.5))
    taken = ss.add(X[None]).bumped_like(ss.Smoothed(0.5))
    laws.close([own.parts[0].measure.bandwidth, taken.parts[0].measure.bandwidth], [0.1, 0.5])
    edited = laws.changes()["remove"][0].bumped_like(ss.Smoothed(0.9))
    laws.close(edited.parts[0].measure.bandwidth, laws.DATA.bandwidth)


def test_a_removed_point_leaves_no_ghost():
    """At small noise a weight of rounding, 1e-17, would beat a far point's 1."""
    points = jnp.array([[0.0], [1.0], [2.0]])
    data = ss.Points(points, jnp.array([0.1, 0.2, 0.7]))
    found = after(data, ss.remove(data, [0]), 1.0, 0.01, jnp.array([0.0]))
    laws.close(found, [1.0], absolute=1e-12)


@pytest.mark.parametrize("kind", ["remove", "add", "reweight", "replace"])
def test_small_changes_of_many_points_keep_their_figures(kind):
    """One of 20,000 points whose mean is 5, in float32: as the difference of two denoisers the
    change was off by its whole."""
    rng, tau = np.random.default_rng(0), 0.7
    points = (5 + 0.3 * rng.normal(size=(20_000, 8))).astype(np.float32)
    new = (5 + 0.3 * rng.normal(size=(1, 8))).astype(np.float32)
    x, weights, which = points[3] + np.float32(0.1), np.full(20_000, 1 / 20_000), 7
    rows, later = points.astype(float), weights.copy()
    data = ss.Points(jnp.asarray(points))
    if kind == "remove":
        change_of, later[which] = ss.remove(data, [which]), 0
    elif kind == "add":
        rows, later = np.vstack([rows, new]), np.append(weights, 1) * [*[1 - 5e-5] * 20_000, 5e-5]
        change_of = ss.add(jnp.asarray(new))
    elif kind == "reweight":
        later[which] *= 2
        change_of = ss.reweight(data, jnp.asarray(later, jnp.float32)[None])
    else:
        rows, later = np.vstack([rows, new]), np.append(weights, weights[0])
        change_of, later[which] = ss.replace(data, [which], jnp.asarray(new)), 0
    kernels = np.exp(-np.sum((x.astype(float) - rows) ** 2, 1) / (2 * tau**2))
    before, share = kernels[:20_000] * weights, kernels * later
    mean = before @ rows[:20_000] / before.sum()
    expected = share @ (rows - mean) / share.sum()
    found = shifted(data, change_of, 5e-5 if kind == "add" else 1.0, tau, jnp.asarray(x))
    assert found.dtype == jnp.float32
    laws.close(found, expected, relative=1e-3)


def singles(data, which, new):
    """Points that are each a direction of their own, of every kind."""
    edits = (ss.remove(data, which), ss.replace(data, which, new), ss.move(data, which, new))
    made = [ss.add(new), *edits]
    assert all(part.single for perturbation in made for part in perturbation.parts)
    return made


def test_single_points_do_what_a_table_of_them_says():
    """To the score, in part and scaled; and finitely, to data and to a black box. All kinds added
    up."""
    data, x = laws.data_set(), jnp.asarray(X)
    made = singles(data, [0, 2, 5], np.random.default_rng(0).normal(size=(3, 2)))
    alone = sum(made[1:], made[0]).bumped_like(ss.Smoothed(0.3))
    table = ss.Perturbation(
        tuple(replace(part, coefficients=jnp.diag(part.coefficients)) for part in alone.parts)
    )

    @jax.jit
    def moved(perturbation):
        own, some = data.posterior(TAU, x), -2 * perturbation[np.array([2, 0])]

        def finitely(base):
            law = change(base, perturbation, 0.1)
            return jax.vmap(lambda k: law[k].shift(TAU, x, own)[0])(jnp.arange(3))

        return some.denoiser_derivative(TAU, x, *own), finitely(data), finitely(None)

    for found, expected in zip(moved(alone), moved(table), strict=True):
        laws.close(found, expected, relative=1e-11)


def test_single_points_make_no_table_of_each_other():
    """Mapped over M samples, K directions take (M, K, d) numbers a few times over."""
    m, k, d = 16, 512, 3
    data = ss.Points(jnp.arange(1.0 * k * d).reshape(k, d))

    @jax.jit
    def derivatives(perturbation, x):
        return jax.vmap(lambda x: perturbation.denoiser_derivative(TAU, x, 0.0, x))(x)

    for perturbation in singles(data, np.arange(k), data.points + 1):
        program = derivatives.lower(perturbation, jnp.zeros((m, d))).compile()
        held = program.memory_analysis().temp_size_in_bytes / (8 * m * k * d)
        assert held < 20  # an (M, K, K) table alone would be 170 of them


@pytest.mark.parametrize("black_box", [False, True])
def test_a_change_begins_as_its_derivative(black_box):
    """At mass 0, and at none of a change, nothing has weight that is not the data's, and yet there
    is a derivative: of more and of less, of points and of laws, compiled or not."""
    data, x = laws.data_set(), jnp.asarray(X)
    one, two = (laws.changes()[kind][0] for kind in ("add", "toward"))
    several = ss.add(jnp.asarray(np.random.default_rng(0).normal(size=(3, 2))))
    mixed = one - 2 * two - 0.3 * ss.add(laws.mixture(0.4)) + laws.changes()["replace"][0]
    own = data.posterior(TAU, x)
    for perturbation in (mixed.bumped_like(data), several.bumped_like(data)):
        expected = perturbation.denoiser_derivative(TAU, x, *own)

        def at(mass, factor, perturbation=perturbation):
            law = change(None if black_box else data, factor * perturbation, mass)
            return jax.vmap(lambda k: law[k].shift(TAU, x, own)[0])(jnp.arange(len(perturbation)))

        of_mass = jax.jit(jax.jacfwd(at))(0.0, 1.0)
        of_factor = jax.jit(jax.jacrev(at, 1))(1.0, 0.0)
        laws.close(of_mass, expected, absolute=1e-12)
        laws.close(of_factor, expected, absolute=1e-12)
    if black_box:
        slope = jax.jvp(lambda mass: at(mass, 1.0), (0.0,), (1.0,))[1]
        laws.close(slope, expected, absolute=1e-12)


def test_data_with_nothing_in_common_have_a_derivative():
    """From one half of the points to the other: at mass 1 the derivative is the difference
    quotient from below."""
    points, half = jnp.asarray(laws.DATA.points), jnp.array([1.0, 1, 1, 0, 0, 0])
    data = ss.Points(points, half, 0.4)
    swap = ss.reweight(data, 1 - half)
    at, step = jax.jit(lambda mass: shifted(data, swap, mass)), 1e-5
    before = (3 * at(1.0) - 4 * at(1 - step) + at(1 - 2 * step)) / (2 * step)
    laws.close(jax.jacfwd(at)(1.0), before, relative=1e-7)


def test_what_was_there_leaves_no_ghost_beside_what_is_added():
    """Weights of seven points add up to 1 within rounding, and the data are nearer than they."""
    data = ss.Points(jnp.array([[0.0]]))
    law = ss.Points(jnp.full((7, 1), 1.0), jnp.arange(1.0, 8.0) * 0.1)
    found = after(data, ss.add(law), 1.0, 0.01, jnp.array([0.0]))
    laws.close(found, [1.0], absolute=1e-12)


def test_perturbations_are_pytrees():
    """Through jit as arguments; what is absent stays absent."""
    for perturbation, _ in laws.changes().values():
        doubled = jax.tree.map(lambda leaf: leaf, perturbation)
        assert jax.tree.structure(doubled) == jax.tree.structure(perturbation)
        found = jax.jit(lambda p: sum(map(jnp.size, jax.tree.leaves(p))) + len(p))(perturbation)
        assert found > len(perturbation)


# ------------------------------------------------------------------ the algebra


def denoised(law):
    return law.denoised(TAU, X[None])[0]


def changed(perturbation, mass):
    own = perturbation.bumped_like(ss.Smoothed(laws.DATA.bandwidth))
    return after(laws.data_set(), own, mass)


def test_several_edits_add_up():
    """A removal, a reweighting, a replacement and a newcomer at once: the weights of the law are
    the data's and the mass times the sum of what each does to them."""
    kinds = ("remove", "reweight", "replace", "add")
    total = sum((laws.changes()[kind][0] for kind in kinds[1:]), laws.changes()[kinds[0]][0])
    mass, plain = 0.2, laws.DATA.unchanged()
    weights = plain.weights + sum(
        laws.changes()[kind][1](mass).weights - plain.weights for kind in kinds
    )
    laws.close(changed(total, mass), denoised(plain._replace(weights=weights)), absolute=1e-12)


@pytest.mark.parametrize("kind", laws.CHANGES)
def test_multiples(kind):
    """`c` times a change at mass m is the change at mass c m; and less of it, where there is less
    to take, is a negative multiple at a negative mass."""
    perturbation, law_at = laws.changes()[kind]
    for multiple in (0.5 * perturbation, perturbation * np.float64(0.5), -(-0.5 * perturbation)):
        laws.close(changed(multiple, 0.6), denoised(law_at(0.3)), absolute=1e-12)
    laws.close(changed(-perturbation, -0.3), denoised(law_at(0.3)), absolute=1e-12)


def test_differences():
    """A change less itself is none."""
    add, replace = (laws.changes()[kind][0] for kind in ("add", "replace"))
    laws.close(changed(add - add, 0.7), denoised(laws.DATA.unchanged()), absolute=1e-12)
    both = changed(add - 0.25 * replace + 0.25 * replace, 0.7)
    laws.close(both, denoised(laws.DATA.added(0.7)), absolute=1e-12)
    assert len(add - replace) == 1


def test_what_does_not_add_up():
    for other in (ss.remove(laws.data_set(), [0, 1]), ss.add(np.ones((1, 3)))):
        with pytest.raises(ValueError, match=r"1 directions of shape \(2,\) and of . directions"):
            _ = ss.add(X[None]) + other

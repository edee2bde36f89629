"""Derivatives against finite differences of exactly changed laws, and what follows from them."""

import functools

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoresens import discrete as dc

BOTH = pytest.mark.parametrize("name", chains.PROCESSES)
KEY, T, STEP = jax.random.key(0), 0.4, 1e-3


def changes(data):
    """One direction of each kind, by name."""
    return {
        "add": dc.add(np.array([[1, 0]])),
        "add a law": dc.add(dc.Sequences(np.array([[1, 0], [2, 2]]), 3, np.array([1.0, 3.0]))),
        "remove": dc.remove(data, np.array([True, False, False, True, False])),
        "reweight": dc.reweight(data, np.array([1.0, 0.0, 2.0, 1.0, 3.0])),
    }


def changed_chain(chain, kind, mass):
    """The chain of the changed law, its weights by hand."""
    w = chain.weights / chain.weights.sum()
    if kind in ("add", "add a law"):
        new = np.array([[1, 0], [2, 2]])[: 2 if kind == "add a law" else 1]
        shares = np.array([0.25, 0.75]) if kind == "add a law" else np.ones(1)
        points = np.concatenate([chain.points, new])
        return chain.but(points=points, weights=np.concatenate([(1 - mass) * w, mass * shares]))
    if kind == "remove":
        left = w * np.array([0, 1, 1, 0, 1])
        return chain.but(weights=(1 - mass) * w + mass * left / left.sum())
    return chain.but(weights=(1 - mass) * w + mass * np.array([1, 0, 2, 1, 3]) / 7)


@jax.jit
def at_all(denoiser, t, every):
    return jax.vmap(denoiser, (None, 0))(t, every)


def slope(function):
    """The derivative at 0, by differences of fourth order on one side."""
    values = [np.asarray(function(k * STEP)) for k in range(5)]
    return np.tensordot([-25 / 12, 4, -3, 4 / 3, -1 / 4], values, 1) / STEP


@functools.cache
def records(process):
    """One of each kind, of a network."""
    network = chains.network(process)
    noise = process.sample_prior((3, 2), key=KEY)
    return {
        "leaps": dc.sample(process, network, noise, key=KEY, steps=5),
        "jumps": dc.sample_exact(process, network, noise, key=KEY, end=0.3, events=40),
        "noised": dc.noised(process, jnp.array([[0, 1], [2, 2], [1, 0]]), key=KEY, draws=6),
    }


@BOTH
@pytest.mark.parametrize("kind", ["add", "add a law", "remove", "reweight"])
def test_scores_change_as_those_of_exactly_changed_laws(name, kind):
    chain = chains.chain(name)
    denoiser = dc.exact_denoiser(chain.process, chain.data)
    every = jnp.asarray(chain.every)
    given = chain.process, denoiser, chain.data, changes(chain.data)[kind], T, every
    found = np.asarray(dc.score_sensitivity(*given))
    laws = [changed_chain(chain, kind, k * STEP).law(T) for k in range(5)]
    for x, change in zip(chain.every, found[:, 0], strict=True):
        asked = chain.target[x] > 0  # by the reverse chain: masked, of hidden positions
        near, here = chain.neighbours(x)[asked], chain.place(x)
        expected = slope(lambda mass: laws[round(mass / STEP)][near] / laws[round(mass / STEP)][here])  # noqa: B023, E501  # fmt: skip
        np.testing.assert_allclose(change[asked], expected, atol=1e-6 * np.abs(found).max())


@BOTH
def test_scores_change_by_differences_of_density_ratios(name):
    """(11.2): s(x->z) (r(z) - r(x)), with r of all sequences, one by one."""
    chain = chains.chain(name)
    new = chain.but(points=np.array([[1, 0]]), weights=np.ones(1)).law(T)
    law, denoiser = chain.law(T), dc.exact_denoiser(chain.process, chain.data)
    ratio, every = new / law, jnp.asarray(chain.every)
    given = chain.process, denoiser, chain.data, changes(chain.data)["add"], T, every
    found = np.asarray(dc.score_sensitivity(*given))[:, 0]
    for x, change in zip(chain.every, found, strict=True):
        asked, near, here = chain.target[x] > 0, chain.neighbours(x), chain.place(x)
        expected = law[near] / law[here] * (ratio[near] - ratio[here])
        np.testing.assert_allclose(change[asked], expected[asked], rtol=1e-8, atol=1e-12)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("kind", ["add a law", "remove"])
def test_log_probabilities_change_as_those_of_exactly_changed_models(name, kind):
    chain = chains.chain(name)
    process, denoiser = chain.process, dc.exact_denoiser(chain.process, chain.data)
    for record in records(process).values():
        change = changes(chain.data)[kind]
        found = dc.sensitivity(process, denoiser, chain.data, change, record)[:, 0]

        def after(mass, record=record):
            data = changed_chain(chain, kind, mass).data
            return dc.log_probability(process, dc.exact_denoiser(process, data), record)

        np.testing.assert_allclose(found, slope(after), atol=1e-5 * np.abs(found).max())


@BOTH
@pytest.mark.parametrize("kind", ["add", "reweight"])
def test_counterfactuals_are_exactly_changed_models(name, kind):
    chain = chains.chain(name)
    process, denoiser = chain.process, dc.exact_denoiser(chain.process, chain.data)
    for mass in (0.3, 1.0):
        model = dc.counterfactual(process, denoiser, chain.data, changes(chain.data)[kind], mass)
        found = at_all(model, T, jnp.asarray(chain.every))
        other = changed_chain(chain, kind, mass)
        for x, log_p in zip(chain.every, found, strict=True):
            expected = chains.clean_law(other, T, x)
            np.testing.assert_allclose(np.exp(log_p), expected, rtol=1e-9, atol=1e-13)


@BOTH
def test_sensitivities_are_derivatives_of_counterfactuals(name):
    """Of a network that is no law's."""
    chain = chains.chain(name)
    process, network = chain.process, chains.network(chain.process)
    change = changes(chain.data)["add"]
    for record in records(process).values():
        found = dc.sensitivity(process, network, chain.data, change, record)[:, 0]

        def after(mass, record=record):
            model = dc.counterfactual(process, network, chain.data, change, mass)
            return dc.log_probability(process, model, record)

        np.testing.assert_allclose(found, slope(after), atol=1e-5 * np.abs(found).max())


@pytest.mark.slow
@BOTH
def test_attributions_add_up_to_derivatives(name):
    chain = chains.chain(name)
    process, network, w = chain.process, chains.network(chain.process), chain.weights
    change = changes(chain.data)
    for record in records(process).values():
        scores = np.asarray(dc.attribute(process, network, chain.data, record).scores)
        gone, rest = w * np.array([1, 0, 0, 1, 0]), w * np.array([0, 1, 1, 0, 1])
        moved = {
            "reweight": np.array([1, 0, 2, 1, 3]) / 7 - w / w.sum(),
            "remove": -gone / rest.sum(),
        }
        for kind, by in moved.items():
            whole = dc.sensitivity(process, network, chain.data, change[kind], record)[:, 0]
            np.testing.assert_allclose(scores @ by, whole, atol=1e-11)
        size = np.abs(scores).max()
        np.testing.assert_allclose(scores @ w, 0, atol=1e-12 * size)  # of the data as they are
        assert size > 1e-2


@BOTH
def test_the_points_themselves_are_directions(name):
    chain = chains.chain(name)
    process, network = chain.process, chains.network(chain.process)
    record = records(process)["leaps"]
    scores = np.asarray(dc.attribute(process, network, chain.data, record).scores)
    added = dc.sensitivity(process, network, chain.data, dc.add(chain.points), record)
    np.testing.assert_allclose(scores, added, atol=1e-12)
    best = dc.attribute(process, network, chain.data, record, top=2)
    assert best.scores is None
    order = np.argsort(scores, 1)
    np.testing.assert_array_equal(best.top_indices, order[:, ::-1][:, :2])
    np.testing.assert_array_equal(best.bottom_indices, order[:, :2])
    np.testing.assert_allclose(np.asarray(best.bottom_values), np.sort(scores, 1)[:, :2])


@BOTH
def test_what_is_added_and_removed_was_never_there(name):
    chain = chains.chain(name)
    process, network = chain.process, chains.network(chain.process)
    with_new = changed_chain(chain, "add", 0.3).data
    there = dc.counterfactual(process, network, chain.data, changes(chain.data)["add"], 0.3)
    back = dc.counterfactual(process, there, with_new, dc.remove(with_new, [5]), 1.0)
    every = jnp.asarray(chain.every)
    np.testing.assert_allclose(
        np.exp(at_all(back, T, every)), np.exp(at_all(network, T, every)), atol=1e-12
    )


@BOTH
def test_directions_are_linear(name):
    chain = chains.chain(name)
    process, network = chain.process, chains.network(chain.process)
    record, change = records(process)["noised"], changes(chain.data)
    a, b, both = (
        np.asarray(dc.sensitivity(process, network, chain.data, each, record))
        for each in (change["add"], change["remove"], 2 * change["add"] - change["remove"])
    )
    np.testing.assert_allclose(both, 2 * a - b, atol=1e-12)


def test_no_change_is_none():
    chain = chains.chain("masked")
    network = chains.network(chain.process)
    same = dc.counterfactual(
        chain.process, network, chain.data, dc.reweight(chain.data, chain.weights), 1.0
    )
    np.testing.assert_allclose(
        same(T, jnp.array([3, 3])), network(T, jnp.array([3, 3])), atol=1e-13
    )

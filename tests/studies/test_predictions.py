"""Predictions of training on halves, each against what it says it is, written out."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.laws.learned import Smoothed
from scoresens.models import ModelSettings, build
from scoresens.studies import predictions
from scoresens.studies.predictions import LOSSES, MOVES, PATCHES, Case
from scoresens.studies.retraining import Queries, noise_of_losses

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(10, 2, 2, 1))
FLAT = IMAGES.reshape(10, 4)
HALVES = np.stack([RNG.permutation(10) < 5 for _ in range(3)])
SOLVE, H = ss.Solve(steps=6), 0.8
DATA = ss.Points(IMAGES, bandwidth=H)


@pytest.fixture(scope="module")
def case():
    model = build(
        ModelSettings(kind="mlp", width=8, depth=1), (2, 2, 1), 1.0, key=jax.random.key(0)
    )
    model = jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size * 1.0)).reshape(leaf.shape), model
    )
    noise = ss.EDM().sample_prior((2, 2, 2, 1), key=jax.random.key(1))
    queries = jnp.asarray(IMAGES[:2] + 0.3)
    queries = Queries(noise, queries, jnp.array([0.5, 3.0]), jax.random.key(2))
    x = ss.sample_ode(ss.EDM(), ss.from_denoiser(ss.EDM(), model), noise, solve=SOLVE).x
    return Case(model, IMAGES, HALVES, queries, np.asarray(x), SOLVE)


def nearly_all(case, share):
    """The same case with halves that are hardly other than the whole: weights, not subsets."""

    class Near(Case):
        weights = property(  # pyright: ignore[reportIncompatibleMethodOverride]
            lambda self: 0.1 + share * (HALVES / 5 - 0.1)
        )

    return Near(*case)


def posterior_mean(x, tau, weights):
    """E[x_0 | x] for bumps of bandwidth H on the points."""
    kernel = weights * np.exp(-0.5 * ((FLAT - x) ** 2).sum(1) / (tau**2 + H**2))
    centre = kernel @ FLAT / kernel.sum()
    return (H**2 * x + tau**2 * centre) / (H**2 + tau**2)


@pytest.mark.slow
def test_losses_of_the_changed_denoiser(case):
    """L of D + D_h(.; half) - D_h(.; all), less L of D, sum by sum."""
    asked, found = case.queries, predictions.loss_finite(case, DATA)
    for s, half in enumerate(HALVES):
        for q in range(2):
            x, changes = np.asarray(asked.images[q]).ravel(), []
            for j, tau in enumerate(np.asarray(asked.levels)):
                key = jax.random.fold_in(jax.random.fold_in(asked.key, q), j)
                place = x + tau * np.asarray(jax.random.normal(key, (2, 2, 1))).ravel()
                before = np.asarray(case.model(tau, jnp.asarray(place.reshape(2, 2, 1)))).ravel()
                shift = posterior_mean(place, tau, half / 5) - posterior_mean(
                    place, tau, 0.1 * np.ones(10)
                )
                weight = (tau**2 + 1) / tau**2 / 4
                changes.append(
                    weight * (((before + shift - x) ** 2).sum() - ((before - x) ** 2).sum())
                )
            assert found[s, q] == pytest.approx(np.mean(changes), rel=1e-6)


@pytest.mark.slow
def test_first_order_is_the_slope_of_the_finite_change(case):
    first = predictions.loss_first_order(case, DATA, "data")
    slope = predictions.loss_finite(nearly_all(case, 1e-5), DATA) / 1e-5
    laws.close(first, slope, relative=1e-3)


@pytest.mark.slow
def test_displacements_are_those_of_the_verbs(case):
    halved = ss.reweight(DATA, HALVES.astype(float))
    asked = (ss.EDM(), case.score, halved, case.queries.noise)
    moved = ss.sample_sensitivity(*asked, base=DATA, solve=SOLVE).tangent
    after = ss.counterfactual(*asked, mass=1.0, base=DATA, solve=SOLVE).x
    laws.close(
        predictions.first_order(case, DATA, "data"), jnp.moveaxis(moved, 1, 0), absolute=1e-7
    )
    found = predictions.finite(case, DATA)
    laws.close(found, jnp.moveaxis(after, 1, 0) - case.samples, absolute=1e-7)


def test_simple_rules_are_written_out(case):
    x, change = case.samples.reshape(2, 4), case.change
    squares = ((x[:, None] - FLAT) ** 2).sum(-1)
    toward = FLAT[None] - x[:, None]
    bumps = np.exp(-0.5 * squares / H**2)
    a, b = x - FLAT.mean(0), FLAT - FLAT.mean(0)
    cosine = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    weights = {
        "kernel": bumps / bumps.mean(1, keepdims=True),
        "cosine": cosine,
        "inverse squared distance": 1 / squares,
        "equal pull": np.ones((2, 10)),
    }
    for name, w in weights.items():
        found = MOVES[name][0](case, DATA).reshape(3, 2, 4)
        laws.close(found, np.einsum("sk,mk,mkd->smd", change, w, toward), relative=1e-6)
    shift = [
        [(half * b) @ FLAT / (half @ b) - b @ FLAT / b.sum() for b in bumps] for half in HALVES
    ]
    laws.close(MOVES["mean shift"][0](case, DATA).reshape(3, 2, 4), np.array(shift), relative=1e-6)
    y = np.asarray(case.queries.images).reshape(2, 4)
    near = np.linalg.norm(y[:, None] - FLAT, axis=-1)
    laws.close(LOSSES["distance"][0](case, DATA), change @ near.T, relative=1e-6)


def test_patches_weigh_as_in_the_denoiser_of_patches(case):
    """Place by place and level by level."""
    images = RNG.normal(size=(10, 3, 4, 1))
    queries = case.queries._replace(
        images=jnp.asarray(RNG.normal(size=(2, 3, 4, 1))), levels=jnp.array([0.3, 0.5, 1.0, 3.0])
    )
    asked = predictions.Patches(2, (0.5, 1))
    found = predictions.loss_patches(case._replace(images=images, queries=queries), asked)
    near = np.zeros((2, 10))
    for q in range(2):
        noise = np.asarray(noise_of_losses(queries, q))
        for j, t in ((2, 1.0), (3, 3.0)):
            x = np.asarray(queries.images[q]) + t * noise[j]
            for place in np.ndindex(2, 3):
                corner = tuple(slice(at, at + 2) for at in place)
                off = ((x[corner] - images[:, *corner]) ** 2).sum((1, 2, 3))
                near[q] += np.exp(-off / (2 * t**2)) / np.exp(-off / (2 * t**2)).sum() / 12
    laws.close(near.sum(1), np.ones(2), relative=1e-12)
    laws.close(found, -case.change @ (10 * near).T, relative=1e-6)


def test_transport_takes_samples_to_the_only_point_that_is_left(case):
    """The displacement is then that point less where transport to all of them took the sample."""
    alone = np.zeros((2, 10), bool)
    alone[0, 3] = alone[1, 7] = True
    moved = predictions.optimal_transport(case._replace(halves=alone), DATA).reshape(2, 2, 4)
    laws.close(moved[1] - moved[0], np.tile(FLAT[7] - FLAT[3], (2, 1)), relative=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("methods", [MOVES, LOSSES])
def test_every_method_predicts_for_every_half(case, methods):
    """But for those against the model's own law, which take long to compile (`base`, below)."""
    for name, (predict, choice) in methods.items():
        if not name.endswith(("(model)", "(sharp)")):
            given = next(iter(PATCHES.values())) if choice == "patches" else DATA
            found = np.asarray(predict(case, given))
            assert found.shape[:2] == (3, 2) and np.isfinite(found).all(), name


def test_laws_that_ratios_are_taken_against(case):
    bases = [case.base(name, DATA)["base"] for name in ("data", "model", "sharp")]
    assert bases[0].bandwidth == H and bases[1] == Smoothed(H) and bases[2] is None

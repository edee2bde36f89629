"""How far to trust a prediction."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoresens as ss
from scoresens.studies.trust import LEVEL, QUANTILE, cosine_bound, mismatch, misses, quantile

KEPT = Path(__file__).parents[2] / "benchmarks/results/validation/trust.npz"


@pytest.fixture(scope="module")
def changes():
    """Signal and cosine of the samples of each kept change."""
    with np.load(KEPT) as arrays:
        return {name: arrays[name].astype(np.float64) for name in arrays.files}


def test_the_quantile_is_that_of_the_kept_changes(changes):
    assert quantile(changes.values()) == pytest.approx(QUANTILE, rel=1e-3)


def test_it_holds_of_changes_that_are_left_out(changes):
    """On average over changes, of both kinds of network."""
    held = {}
    for name, (signal, cosine) in ((name, group.T) for name, group in changes.items()):
        q = quantile(group for other, group in changes.items() if other != name)
        held[name] = np.mean(cosine >= cosine_bound(signal, q))
    convolutional = [held[name] for name in held if not name.startswith("digits")]
    assert np.mean(list(held.values())) >= LEVEL
    assert np.mean(convolutional) >= LEVEL


def test_a_cosine_is_above_the_bound_where_its_miss_is_below_the_quantile():
    rng = np.random.default_rng(0)
    signal, cosine = rng.lognormal(-1, 2, 500), rng.uniform(-1, 1, 500)
    above = cosine >= cosine_bound(signal, 0.2)
    np.testing.assert_array_equal(above, misses(signal, cosine) <= 0.2)
    assert 50 < above.sum() < 450


def test_the_bound_rises_with_the_signal_from_nothing_to_certainty():
    bound = cosine_bound(np.array([0.0, 1e-3, 0.1, 1.0, 1e9]))
    assert bound[0] == -1 and (np.diff(bound) > 0).all() and bound[-1] > 0.99
    np.testing.assert_allclose(cosine_bound(np.array([0.3]), 0.3), 0, atol=1e-12)
    np.testing.assert_array_equal(cosine_bound(np.ones(2), float("inf")), [-1, -1])


@pytest.mark.parametrize("process", [ss.EDM(), ss.VP()], ids=["EDM", "VP"])
def test_a_mismatch_is_how_far_the_denoiser_is_from_that_of_the_data(process):
    rng = np.random.default_rng(0)
    data = ss.Points(rng.normal(size=(20, 3)).astype(np.float32), bandwidth=0.3)
    x, off = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), jnp.array([0.3, -0.4, 1.2])

    def shifted(tau, x):
        return data.denoise(tau, x) + off

    exact, wrong = ss.exact_score(process, data), ss.from_canonical(process, shifted)
    asked = {"data": data, "x": x, "key": jax.random.key(1)}
    assert mismatch(process, exact, **asked) < 1e-3
    assert mismatch(process, wrong, **asked) == pytest.approx(1.3, rel=1e-3)

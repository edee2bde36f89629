"""The derivative of a transport map, against POT's Sinkhorn on the changed data."""

import laws
import numpy as np
import ot
import pytest

import scoresens as ss
from scoresens.statistics import entropic, entropic_transport

SOURCES = np.random.default_rng(4).normal(size=(5, 2))
DATA, EPSILON, STEP = laws.data_set(), 0.3, 1e-4


def images(law):
    """By POT, of a mixture's means and weights."""
    kept = law.weights > 0
    weights, means = law.weights[kept], law.means[kept]
    cost = np.sum((SOURCES[:, None] - means) ** 2, -1)
    sources = np.full(5, 1 / 5)
    plan = ot.bregman.sinkhorn_log(
        sources, weights / weights.sum(), cost, EPSILON, stopThr=1e-14, numItermax=20_000
    )
    return 5 * plan @ means


def slope(law_at):
    """To third order, on the side where no weight is negative."""
    at = [images(law_at(k * STEP)) for k in range(4)]
    return (-11 * at[0] + 18 * at[1] - 9 * at[2] + 2 * at[3]) / (6 * STEP)


@pytest.mark.parametrize("kind", laws.CHANGES)
def test_every_kind_of_change(kind):
    perturbation, law_at = laws.changes()[kind]
    found = ss.transport_sensitivity(SOURCES, DATA, perturbation, epsilon=EPSILON)
    laws.close(found.x, images(laws.DATA.unchanged()), absolute=1e-9)
    laws.close(found.tangent[:, 0], slope(law_at), absolute=1e-7)
    assert np.max(np.abs(found.tangent)) > 0.05
    laws.close(found.shares.sum(1), np.ones(5), absolute=1e-12)


def test_directions_add_up_and_scale():
    """Points that are edited, moved and new, in one direction; images of more than one axis."""
    shaped = ss.Points(DATA.points.reshape(6, 2, 1), DATA.weights)
    parts = [
        ss.remove(shaped, [0, 3]),
        ss.move(shaped, [0, 1], np.ones((2, 2, 1))),
        ss.add(np.ones((2, 2, 1))),
    ]
    sources = SOURCES.reshape(5, 2, 1)
    alone = [ss.transport_sensitivity(sources, shaped, p, epsilon=EPSILON).tangent for p in parts]
    both = ss.transport_sensitivity(
        sources, shaped, parts[0] - 2 * parts[1] + parts[2], epsilon=EPSILON
    )
    laws.close(both.tangent, alone[0] - 2 * alone[1] + alone[2], absolute=1e-10)
    assert both.tangent.shape == (5, 2, 2, 1)


@pytest.mark.usefixtures("unchecked_annotations")
def test_refused(monkeypatch):
    def refuses(
        message, sources=SOURCES, data=DATA, change=None, epsilon=EPSILON, error=ValueError
    ):
        change = ss.add(DATA) if change is None else change
        with pytest.raises(error, match=message):
            ss.transport_sensitivity(sources, data, change, epsilon=epsilon)

    refuses("data must be Points", data=laws.mixture())
    refuses("perturbation must be made by add", change=SOURCES)
    refuses(r"sources must have shape \[M, 2\]", sources=np.ones((3, 3)))
    refuses("this perturbation has a GaussianMixture: add Points", change=ss.add(laws.mixture()))
    other = ss.Points(DATA.points + 1)
    refuses("data holds other points", change=ss.remove(other, [0]))
    refuses("epsilon must be a finite number greater than 0, got 0", epsilon=0)
    monkeypatch.setattr(entropic, "ROUNDS", 2)
    refuses("did not settle in 2 turns: take a larger epsilon", error=FloatingPointError)
    for x, y, message in (
        (np.ones(3), SOURCES, r"x must be rows \[M, d\] with M >= 1, got shape \(3,\)"),
        (SOURCES, np.ones((4, 3)), "of one dimension, got 2 and 3"),
        (SOURCES, np.full((4, 2), np.nan), "y has 8 entries that are NaN"),
        (SOURCES, np.full((4, 2), 1e200), "overflow: rescale"),
    ):
        with pytest.raises(ValueError, match=message):
            entropic_transport(x, y, np.ones(len(y)), 0.1)

"""Measures of agreement over halves of the data, and their ceiling."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from scoresens.statistics import Estimate
from scoresens.studies.halves import HalvesSettings, Judge, halves, plan, truth
from scoresens.studies.retraining import Outputs

SEEDS, HALVES, QUERIES, SIZE = 2, 12, 3, 4
RNG = np.random.default_rng(0)
TRUE = RNG.normal(size=(SEEDS, HALVES, QUERIES, SIZE))
FOUND = 0.5 * TRUE + RNG.normal(size=TRUE.shape) + 3.0  # a constant must not matter
AXES = np.linalg.qr(RNG.normal(size=(SIZE, SIZE)))[0][:2]


def centred(a):
    return a - a.mean(0)


def test_measures_are_written_out():
    found = Judge(TRUE, AXES, 0, 0).all(FOUND)
    each = [
        spearmanr(FOUND[r, :, m] @ axis, TRUE[r, :, m] @ axis)[0]
        for r in range(SEEDS) for m in range(QUERIES) for axis in AXES
    ]  # fmt: skip
    pooled = [pearsonr(centred(FOUND[r]).ravel(), centred(TRUE[r]).ravel())[0] for r in (0, 1)]
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for r in range(SEEDS)
        for a, b in zip(
            centred(FOUND[r]).reshape(-1, SIZE), centred(TRUE[r]).reshape(-1, SIZE), strict=True
        )
    ]
    off = [np.linalg.norm(FOUND[r] - TRUE[r]) / np.linalg.norm(TRUE[r]) for r in (0, 1)]
    size = [np.linalg.norm(centred(FOUND[r])) / np.linalg.norm(centred(TRUE[r])) for r in (0, 1)]
    wanted = {
        "lds": np.mean(np.asarray(each)), "pearson": np.mean(np.asarray(pooled)),
        "cosine": np.median(cosines), "l2": np.mean(off), "size": np.mean(size),
    }  # fmt: skip
    assert {name: values[0] for name, values in found.items()} == pytest.approx(wanted, rel=1e-3)


def test_losses_have_no_directions():
    judge = Judge(TRUE[..., 0], None, 0, 0)
    found = judge.all(FOUND[..., 0])
    each = [spearmanr(FOUND[r, :, q, 0], TRUE[r, :, q, 0])[0] for r in (0, 1) for q in range(3)]
    assert found["lds"][0] == pytest.approx(np.mean(np.asarray(each)), rel=1e-3)
    assert found.keys() == {"lds", "pearson"}
    assert judge.rank(FOUND[..., 0]) == pytest.approx(np.mean(np.asarray(each)))


def test_truth_agrees_with_itself_and_noise_with_nothing():
    judge = Judge(TRUE, AXES, 50, 0)
    assert judge.all(TRUE)["lds"] == Estimate(1, 1, 1)
    value, low, high = judge.all(RNG.normal(size=TRUE.shape))["pearson"]
    assert low < value < high and abs(value) < 0.3 and high - low > 0.1
    still = judge.all(np.zeros_like(TRUE))
    assert still["lds"][0] == still["pearson"][0] == still["cosine"][0] == 0


def test_the_shared_effect_is_as_good_as_the_ceiling_says():
    """Displacements m + e_r: the correlation of two seeds estimates the share of m, and m itself
    reaches its root against one seed."""
    shared = RNG.normal(size=(1, 400, 3, 4))
    true = shared + 1.5 * RNG.normal(size=(3, 400, 3, 4))
    judge = Judge(true, AXES, 20, 0)
    ceiling = judge.ceiling()["pearson"]
    reached = judge.all(np.repeat(shared, 3, 0))["pearson"][0]
    assert reached == pytest.approx(ceiling[0], abs=0.03)
    assert ceiling[0] == pytest.approx(1 / np.sqrt(1 + 1.5**2), abs=0.03)
    assert Judge(true[:1], AXES, 0, 0).ceiling() == {}


def test_halves_are_random_halves():
    found = halves(11, 50, 3)
    assert found.shape == (50, 11) and (found.sum(1) == 5).all()
    assert len({row.tobytes() for row in found}) > 40
    assert found.mean(0).min() > 0.25 and found.mean(0).max() < 0.65
    np.testing.assert_array_equal(found, halves(11, 50, 3))


def test_truth_is_what_a_half_does_against_its_own_seed():
    trials = plan(halves(6, 2, 0), 2)
    assert list(trials)[:2] == ["all-0", "all-1"] and len(trials) == 6
    assert trials["half-001-1"].seed == 1 and trials["half-001-1"].weights.sum() == 3
    found = {
        name: Outputs(np.full((1, 2), float(i)), np.full(3, 10.0 * i))
        for i, name in enumerate(trials)
    }
    made = truth(found, 2, 2)
    names = list(trials)
    for seed in range(2):
        for half in range(2):
            gap = names.index(f"half-{half:03d}-{seed}") - names.index(f"all-{seed}")
            assert (made.displacements[seed, half] == gap).all()
            assert (made.losses[seed, half] == 10 * gap).all()


def test_too_few_of_anything_is_refused():
    with pytest.raises(ValueError, match="subsets must be at least 4, got 3"):
        HalvesSettings(subsets=3)

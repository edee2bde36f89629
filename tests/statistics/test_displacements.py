"""Displacements of samples in numbers: norms and cosines, what is near, what to show."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from scoresens.statistics.displacements import (
    Named,
    class_names,
    cosines,
    looks_like,
    nearest,
    norms,
    rank_correlation,
    spread,
)


def draws(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def test_norms_are_over_all_entries():
    x = draws(3, 2, 2)
    np.testing.assert_allclose(norms(x), [np.sqrt((row**2).sum()) for row in x], rtol=1e-12)


def test_cosine_of_no_change_is_zero():
    a, b = draws(3, 2, 2), draws(3, 2, 2, seed=2)
    b[1], b[2] = 0, -3 * a[2]
    expected = np.vdot(a[0], b[0]) / np.linalg.norm(a[0]) / np.linalg.norm(b[0])
    np.testing.assert_allclose(cosines(a, b), [expected, 0, -1], atol=1e-12)


def test_rank_correlation_along_an_axis():
    a, b = draws(5, 30), draws(5, 30, seed=2).round(1)
    b[3] = 2.0  # does not vary
    expected = np.array([spearmanr(a[row], b[row])[0] if row != 3 else 0 for row in range(5)])
    np.testing.assert_allclose(rank_correlation(a, b, 1), expected, atol=1e-12)
    np.testing.assert_allclose(rank_correlation(a.T, b.T, 0), expected, atol=1e-12)


def test_nearest_images_by_brute_force():
    x, images = draws(5, 3, 2), draws(9, 3, 2, seed=2)
    distances = np.linalg.norm((x[:, None] - images).reshape(5, 9, -1), axis=-1)
    np.testing.assert_array_equal(nearest(x, images, 4), np.argsort(distances, 1)[:, :4])
    assert nearest(x, images[:2], 4).shape == (5, 2)


def test_a_training_image_looks_like_its_class():
    images = draws(20, 4, 4, 1)
    data = Named(images, np.arange(20) % 2, ("even", "odd"))
    np.testing.assert_array_equal(looks_like(data.images, data), data.labels)
    assert class_names(data.images[:3], data) == ["even", "odd", "even"]


def test_samples_shown_run_from_the_most_to_the_least_moved():
    sizes = np.random.default_rng(0).permutation(128).astype(float)
    np.testing.assert_array_equal(sizes[spread(sizes, 8)], 128 - 2.0 ** np.arange(8))


@pytest.mark.parametrize(("drawn", "count"), [(1, 1), (5, 8), (8, 8), (9, 8), (128, 1), (48, 47)])
def test_as_many_samples_are_shown_as_asked_for(drawn, count):
    sizes = draws(drawn)
    shown = spread(sizes, count)
    assert len(set(shown)) == min(count, drawn)
    assert shown[0] == np.argmax(sizes)
    assert (np.diff(sizes[shown]) < 0).all()

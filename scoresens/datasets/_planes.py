"""Points of a plane, drawn once and for all: the same at every call, and on every machine."""

import math

import numpy as np

from scoresens.datasets.forms import Dataset, standardised

COUNT = 600  # points of a set
AXES = ("x", "y")
ARMS = 3  # of the pinwheel


def plane(name: str) -> Dataset:
    """The points of this name, their coordinates standardised."""
    values, labels, classes = PLANES[name]()
    points, form = standardised(values, "points", AXES)
    return Dataset(name, points, labels, classes, form)


def _moons() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Two half circles of radius 1 that reach into each other, with noise of deviation 0.1."""
    rng = np.random.RandomState(0)  # whose streams NumPy keeps as they are
    labels = np.arange(COUNT) % 2
    angle = math.pi * rng.uniform(size=COUNT)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    noise = 0.1 * rng.normal(size=(COUNT, 2))
    return np.where(labels[:, None] == 0, upper, lower) + noise, labels, ("upper", "lower")


def _pinwheel() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Three arms about the origin, each a Gaussian that is turned the more the farther out.

    References:
        Johnson, Duvenaud, Wiltschko, Datta, Adams 2016, arXiv 1603.06277.
    """
    rng = np.random.RandomState(0)
    labels = np.arange(COUNT) % ARMS
    along, across = 1 + 0.3 * rng.normal(size=COUNT), 0.07 * rng.normal(size=COUNT)
    turn = 2 * math.pi * labels / ARMS + 0.5 * np.exp(along)
    x = along * np.cos(turn) - across * np.sin(turn)
    y = along * np.sin(turn) + across * np.cos(turn)
    return np.stack([x, y], 1), labels, tuple(f"arm {arm + 1}" for arm in range(ARMS))


PLANES = {"moons": _moons, "pinwheel": _pinwheel}

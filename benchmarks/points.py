"""The tables of attribution alone, and random points and states to time them on."""

from collections.abc import Callable

import jax

import scoresens as ss
from scoresens.sensitivity.tables import States, influences

KEY = jax.random.key(0)


def tables_alone(top: int | None) -> Callable:
    """Influences of points at states, against their own posteriors."""

    def run(data, states, omega):
        return influences(data, states, omega, top=top)

    return run


def states_and_points(samples, stages, count, size, precision=None):
    """Random points, states around them at falling noise levels, a functional's gradient there.
    The points are bumps wide enough for distances to be taken by their expansion."""
    keys = jax.random.split(KEY, 3)
    points = jax.random.normal(keys[0], (count, size))
    tau = 150.0 ** jax.numpy.linspace(1, -1, stages)
    noise = jax.random.normal(keys[1], (stages, samples, size))
    states = States(tau, points[:samples] + tau[:, None, None] * noise)
    omega = jax.random.normal(keys[2], (stages, samples, 1, size))
    data = ss.Points(points, bandwidth=0.3 * size**0.5, precision=precision)
    return data, states, omega

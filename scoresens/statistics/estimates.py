"""Numbers that come from draws, with what the draws leave open."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

NORMAL_95 = 1.959964  # standard errors either side of a mean in a 95 % interval


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: Float[Array, "*shape"] | float
    low: Float[Array, "*shape"] | float
    high: Float[Array, "*shape"] | float


def mean(draws: Float[Array, "M *shape"]) -> Estimate:
    """The mean of M independent draws, with the normal interval of its standard error."""
    value = jnp.mean(draws, 0)
    return around(value, jnp.std(draws, 0, ddof=1) / jnp.sqrt(len(draws)))


def around(
    value: Float[Array, "*shape"] | float, error: Float[Array, "*shape"] | float
) -> Estimate:
    """A number with a standard error, and its normal interval."""
    half = NORMAL_95 * error
    return Estimate(value, value - half, value + half)

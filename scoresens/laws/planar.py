r"""Three laws in the plane, whose samples show what a score does between the modes.

    blob      nine equal Gaussians N(m, 0.0845 I), m = 0.65 {(±2, ±2), (0, 0), (±4, 0), (0, ±4)}
    circles2  two rings, half of the mass each: radius N(1.3, 0.2^2) or N(2.8, 0.2^2), uniform angle
    checker   uniform on eight squares of side 1.5 in [-3, 3]^2, touching at their corners

The blob's noised score and log-density are known in closed form, through `blob`.

References: Deveney, Stanczuk, Kreusser, Budd, Schonlieb 2023, arXiv 2311.15996.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from scoresens.laws.measures import GaussianMixture

Draw = Callable[[PRNGKeyArray, int], Float[Array, "count 2"]]

BLOB_MEANS = (
    (1.3, 1.3), (1.3, -1.3), (-1.3, 1.3), (-1.3, -1.3),
    (0.0, 0.0), (2.6, 0.0), (-2.6, 0.0), (0.0, 2.6), (0.0, -2.6),
)  # fmt: skip
BLOB_VARIANCE = 0.0845
RING_RADII = (1.3, 2.8)
RING_STD = 0.2
SQUARE = 1.5  # side
CORNERS = (
    (-3.0, -3.0), (0.0, -3.0), (-1.5, -1.5), (1.5, -1.5),
    (-3.0, 0.0), (0.0, 0.0), (-1.5, 1.5), (1.5, 1.5),
)  # fmt: skip


def sample_law(name: str, count: int, *, key: PRNGKeyArray) -> Float[Array, "count 2"]:
    """Draws from one of the planar laws.

    Args:
        name: `"blob"`, `"circles2"` or `"checker"`.
        count: how many.
        key: random key.

    Returns:
        `[count, 2]`, independent, in JAX's current precision. May be called within `jit`.

    Raises:
        ValueError: for an unknown name.
    """
    return sampler(name)(key, count)


def sampler(name: str) -> Draw:
    """`sample_law` of one law as a function `(key, count)` that may be an argument of `jit`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in _SAMPLERS:
        known = ", ".join(LAWS)
        raise ValueError(f"unknown planar law {name!r}: choose one of {known}")
    return Partial(_SAMPLERS[name])


def blob() -> GaussianMixture:
    """The law of the blob, with its noised score and log-density."""
    weights = jnp.full(len(BLOB_MEANS), 1 / len(BLOB_MEANS))
    variances = jnp.full(len(BLOB_MEANS), BLOB_VARIANCE)
    return GaussianMixture(weights, jnp.asarray(BLOB_MEANS), variances)


def _sample_blob(key, count):
    which, place = jax.random.split(key)
    means = jnp.asarray(BLOB_MEANS)[jax.random.randint(which, (count,), 0, len(BLOB_MEANS))]
    return means + jnp.sqrt(BLOB_VARIANCE) * jax.random.normal(place, (count, 2))


def _sample_circles2(key, count):
    which, across, around = jax.random.split(key, 3)
    radii = jnp.asarray(RING_RADII)[jax.random.randint(which, (count,), 0, len(RING_RADII))]
    radii = radii + RING_STD * jax.random.normal(across, (count,))
    angles = jax.random.uniform(around, (count,), maxval=2 * jnp.pi)
    return radii[:, None] * jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)


def _sample_checker(key, count):
    which, place = jax.random.split(key)
    corners = jnp.asarray(CORNERS)[jax.random.randint(which, (count,), 0, len(CORNERS))]
    return corners + SQUARE * jax.random.uniform(place, (count, 2))


_SAMPLERS = {"blob": _sample_blob, "circles2": _sample_circles2, "checker": _sample_checker}
LAWS = tuple(_SAMPLERS)

"""Networks with every parameter random, for at the start their output is zero or near it."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def awakened(skeleton, dtype, seed=0):
    """The module of a skeleton of shapes, its parameters drawn."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(drawn(rng, leaf.shape), dtype), skeleton)


def drawn(rng, shape):
    """Kernels of the usual scale; scales and biases about 0.3."""
    return rng.normal(size=shape) * (0.3 if len(shape) == 1 else math.prod(shape[:-1]) ** -0.5)

"""Products with data and probes at full precision.

An accelerator rounds the operands of a product to bfloat16 or to ten bits unless it is told not to,
and here errors are errors of exponents (log-kernels) or of sums over hundreds of dimensions
(traces). So these products ask for the highest precision, unless they are told another
(`Points.precision`) or `jax.default_matmul_precision` is set: then they take that, as networks do.
What each precision does to attributions is in docs/performance.md.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

Precision = jax.lax.PrecisionLike  # None: full, or `jax.default_matmul_precision` where that is set


def product(a: Array, b: Array) -> Array:
    """`a @ b`."""
    return jnp.matmul(a, b, precision=_precision())


def inner(a: Array, b: Array) -> Array:
    """The sum of all products of entries."""
    return jnp.vdot(a, b, precision=_precision())


def contracted(spec: str, a: Array, b: Array, precision: Precision = None) -> Array:
    """`jnp.einsum` of two arrays."""
    return jnp.einsum(spec, a, b, precision=_precision() if precision is None else precision)


def _precision():
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return jax.lax.Precision.HIGHEST if chosen is None else None

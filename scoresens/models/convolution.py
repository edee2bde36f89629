r"""Convolutions whose derivatives are convolutions of the same order of axes.

    y = x * k,      x [N, *pixels, C],  k [*window, C, O],  y [N, *pixels', O]

is linear in x and in k, and so are its transposes: of x, a convolution of the cotangent, spread by
the strides, with the kernel turned round; of k, one of x with the cotangent as its kernel, channels
and batch in each other's place. JAX writes them by naming the axes in another order, and XLA's CPU
compiler has quick convolutions for one order alone; what comes in another it turns, but not inside
of loops, where it goes from number to number, 30 times as long (53 ms for 1.4). Every path is a
loop, and attribution pulls back along it. So the transposes here turn their operands.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


def convolve(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **rest: Any,
) -> Array:
    """`jax.lax.conv_general_dilated`, for one that is asked for it by this name, such as
    `flax.nnx.Conv`. Of channels last, in one group, it is the convolution of this file."""
    count = rhs.ndim - 2
    numbers = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    last = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, channels_last(count))
    if numbers != last or feature_group_count != 1 or any(rest.values()):
        return jax.lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, precision=precision, **rest,
        )  # fmt: skip
    spread, within = (tuple(d) if d else (1,) * count for d in (lhs_dilation, rhs_dilation))
    if isinstance(padding, str):
        sizes = [(n - 1) * s + 1 for n, s in zip(lhs.shape[1:-1], spread, strict=True)]
        spans = [(k - 1) * d + 1 for k, d in zip(rhs.shape[:-2], within, strict=True)]
        padding = jax.lax.padtype_to_pads(sizes, spans, window_strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _convolve.bind(
        lhs, rhs, strides=tuple(window_strides), pads=pads, spread=spread, within=within,
        precision=precision,
    )  # fmt: skip


def channels_last(count: int) -> tuple[str, str, str]:
    """The names of the axes, of so many axes of pixels."""
    space = "DHW"[-count:]
    return f"N{space}C", f"{space}IO", f"N{space}C"


# ------------------------------------------------------------------ the primitive


def _plain(x, k, *, strides, pads, spread, within, precision):
    numbers = channels_last(k.ndim - 2)
    return jax.lax.conv_general_dilated(
        x, k, strides, pads, spread, within, numbers, precision=precision
    )


def _transposed_x(cotangent, x, k, *, strides, pads, spread, within, precision):
    """Of x [N, *n, C], by its shape."""
    sizes = zip(x.aval.shape[1:-1], cotangent.shape[1:-1], k.shape[:-2], strict=True)
    around = []
    for (n, m, window), (low, _), s, e, d in zip(sizes, pads, strides, spread, within, strict=True):
        before = (window - 1) * d - low
        after = (n - 1) * e + 1 + (window - 1) * d - ((m - 1) * s + 1) - before
        around.append((before, after))
    turned = jnp.swapaxes(jnp.flip(k, range(k.ndim - 2)), -1, -2)
    return _convolve.bind(
        cotangent, turned, strides=spread, pads=tuple(around), spread=strides, within=within,
        precision=precision,
    )  # fmt: skip


def _transposed_k(cotangent, x, k, *, strides, pads, spread, within, precision):
    """Of k [*window, C, O], by its shape."""
    sizes = zip(x.shape[1:-1], cotangent.shape[1:-1], k.aval.shape[:-2], strict=True)
    around = []
    for (n, m, window), (low, _), s, e, d in zip(sizes, pads, strides, spread, within, strict=True):
        span = (m - 1) * s + 1 + (window - 1) * d
        around.append((low, span - ((n - 1) * e + 1) - low))
    found = _convolve.bind(
        jnp.swapaxes(x, 0, -1), jnp.moveaxis(cotangent, 0, -2), strides=within,
        pads=tuple(around), spread=spread, within=strides, precision=precision,
    )  # fmt: skip
    return jnp.moveaxis(found, 0, -2)


def _batched(operands, axes, **settings):
    """Copies of x are more of its batch; of anything else, as JAX has it."""
    (x, k), (of_x, of_k) = operands, axes
    if of_k is not None:
        return jax.vmap(functools.partial(_plain, **settings), (of_x, of_k))(x, k), 0
    x = jnp.moveaxis(x, of_x, 0)
    found = _convolve.bind(x.reshape(-1, *x.shape[2:]), k, **settings)
    return found.reshape(*x.shape[:2], *found.shape[1:]), 0


def _shape_of(x, k, **settings):
    found = jax.eval_shape(functools.partial(_plain, **settings), x, k)
    return ShapedArray(found.shape, found.dtype)


_convolve = Primitive("convolve_channels_last")
_convolve.def_impl(
    jax.jit(_plain, static_argnames=("strides", "pads", "spread", "within", "precision"))
)
_convolve.def_abstract_eval(_shape_of)
ad.defbilinear(_convolve, _transposed_x, _transposed_k)
batching.primitive_batchers[_convolve] = _batched
mlir.register_lowering(_convolve, mlir.lower_fun(_plain, multiple_results=False))

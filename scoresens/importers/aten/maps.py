"""Operations entry by entry, and sums over axes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from scoresens.importers.aten.registry import axes_of, enter, operation

# ------------------------------------------------------------------ one entry at a time

enter({
    "abs": jnp.abs, "acos": jnp.arccos, "asin": jnp.arcsin, "atan": jnp.arctan,
    "atan2": jnp.arctan2, "bitwise_not": jnp.bitwise_not, "ceil": jnp.ceil, "cos": jnp.cos,
    "cosh": jnp.cosh, "erf": lax.erf, "exp": jnp.exp, "expm1": jnp.expm1, "floor": jnp.floor,
    "floor_divide": jnp.floor_divide, "isinf": jnp.isinf, "isnan": jnp.isnan, "log": jnp.log,
    "log10": jnp.log10, "log1p": jnp.log1p, "log2": jnp.log2, "logical_and": jnp.logical_and,
    "logical_not": jnp.logical_not, "logical_or": jnp.logical_or, "logical_xor": jnp.logical_xor,
    "maximum": jnp.maximum, "minimum": jnp.minimum, "mish": jax.nn.mish, "neg": jnp.negative,
    "reciprocal": jnp.reciprocal, "relu": jax.nn.relu, "round": jnp.round, "rsqrt": lax.rsqrt,
    "sigmoid": jax.nn.sigmoid, "sign": jnp.sign, "silu": jax.nn.silu, "sin": jnp.sin,
    "sinh": jnp.sinh, "sqrt": jnp.sqrt, "square": jnp.square, "tan": jnp.tan, "tanh": jnp.tanh,
    "trunc": jnp.trunc,
}, "default")  # fmt: skip

enter({
    "add": lambda x, y, alpha=1: x + y if alpha == 1 else x + alpha * y,
    "sub": lambda x, y, alpha=1: x - y if alpha == 1 else x - alpha * y,
    "rsub": lambda x, y, alpha=1: y - x if alpha == 1 else y - alpha * x,
    "bitwise_and": jnp.bitwise_and, "bitwise_or": jnp.bitwise_or, "eq": jnp.equal,
    "ge": jnp.greater_equal, "gt": jnp.greater, "le": jnp.less_equal, "lt": jnp.less,
    "ne": jnp.not_equal, "mul": jnp.multiply, "fmod": jnp.fmod, "remainder": jnp.remainder,
    "masked_fill": lambda x, mask, value: jnp.where(mask, jnp.asarray(value, x.dtype), x),
}, "Tensor", "Scalar")  # fmt: skip

enter({
    "pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar": lambda x, exponent: x**exponent,
    "clamp.default clamp.Tensor": lambda x, min=None, max=None: jnp.clip(x, min, max),
    "clamp_min.default": lambda x, min: jnp.maximum(x, min),
    "where.self where.ScalarSelf where.ScalarOther where.Scalar": jnp.where,
    "gelu.default":
        lambda x, approximate="none": jax.nn.gelu(x, approximate=approximate == "tanh"),
    "leaky_relu.default":
        lambda x, negative_slope=0.01: jnp.where(x > 0, x, negative_slope * x),
    "softplus.default": lambda x, beta=1.0, threshold=20.0:
        jnp.where(beta * x > threshold, x, jax.nn.softplus(beta * x) / beta),
    "type_as.default": lambda x, other: x.astype(other.dtype),
})  # fmt: skip

# Of a network that is not trained.
SAME = ("alias", "clone", "contiguous", "detach", "detach_", "dropout", "lift_fresh_copy")
enter(dict.fromkeys(SAME, lambda x, *_, **__: x), "default")


@operation("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode", "true_divide.Tensor")
def div(x, y, rounding_mode=None):
    if rounding_mode == "floor":
        return jnp.floor_divide(x, y)
    ratio = jnp.true_divide(x, y)
    return ratio if rounding_mode is None else jnp.trunc(ratio).astype(jnp.result_type(x, y))


@operation("elu.default")
def elu(x, alpha=1.0, scale=1.0, input_scale=1.0):
    below = alpha * jnp.expm1(input_scale * jnp.minimum(x, 0))
    return scale * jnp.where(x > 0, x, below)


@operation("_to_copy.default", "to.dtype", "to.dtype_layout", "to.device")
def to_copy(x, *ignored, dtype=None, **also_ignored):
    kinds = [value for value in (dtype, *ignored) if isinstance(value, np.dtype)]
    return x.astype(kinds[0]) if kinds else x


# ------------------------------------------------------------------ sums over axes


def _reduction(function):
    def reduced(x, dim=None, keepdim=False, **dtype):
        return function(x, axes_of(dim), keepdims=keepdim, **dtype)

    return reduced


def _in_dtype(x, dtype):
    return x.astype(dtype if isinstance(dtype, np.dtype) else x.dtype)  # _softmax has a bool there


enter({
    "sum.default sum.dim_IntList": _reduction(jnp.sum),
    "mean.default mean.dim": _reduction(jnp.mean),
    "prod.default prod.dim_int": _reduction(jnp.prod),
    "amax.default": _reduction(jnp.max), "amin.default": _reduction(jnp.min),
    "argmax.default": _reduction(jnp.argmax), "logsumexp.default": _reduction(jax.nn.logsumexp),
    "any.default any.dim any.dims": _reduction(jnp.any),
    "all.default all.dim all.dims": _reduction(jnp.all),
    "max.dim": lambda x, dim, keepdim=False:
        (jnp.max(x, dim, keepdims=keepdim), jnp.argmax(x, dim, keepdims=keepdim)),
    "cumsum.default": lambda x, dim, dtype=None: jnp.cumsum(x, dim, dtype=dtype),
    "softmax.int _softmax.default _safe_softmax.default":
        lambda x, dim, dtype=None: jax.nn.softmax(_in_dtype(x, dtype), dim),
    "log_softmax.int _log_softmax.default":
        lambda x, dim, dtype=None: jax.nn.log_softmax(_in_dtype(x, dtype), dim),
})  # fmt: skip


@operation("var.correction")
def var(x, dim=None, correction=1, keepdim=False):
    return jnp.var(x, axes_of(dim), ddof=1 if correction is None else correction, keepdims=keepdim)


@operation("std.correction")
def std(x, dim=None, correction=1, keepdim=False):
    return jnp.sqrt(var(x, dim, correction, keepdim))


@operation("linalg_vector_norm.default")
def vector_norm(x, ord=2, dim=None, keepdim=False, dtype=None):
    if ord == 2:  # smooth away from 0, in forward and in reverse mode
        return jnp.sqrt(jnp.sum(jnp.square(x), axes_of(dim), dtype, keepdims=keepdim))
    axes = tuple(range(x.ndim)) if axes_of(dim) is None else axes_of(dim)
    size = jnp.abs(x if dtype is None else x.astype(dtype))
    if math.isinf(ord):
        return (jnp.max if ord > 0 else jnp.min)(size, axes, keepdims=keepdim)
    return jnp.sum(size**ord, axes, keepdims=keepdim) ** (1 / ord)

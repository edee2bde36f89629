"""Operations entry by entry, and sums over axes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from scoresens.importers.aten.registry import OPERATIONS, axes_of, operation

# ------------------------------------------------------------------ one entry at a time

for _name, _function in {
    "abs": jnp.abs, "acos": jnp.arccos, "asin": jnp.arcsin, "atan": jnp.arctan,
    "bitwise_not": jnp.bitwise_not, "ceil": jnp.ceil, "cos": jnp.cos, "cosh": jnp.cosh,
    "erf": lax.erf, "exp": jnp.exp, "expm1": jnp.expm1, "floor": jnp.floor,
    "isinf": jnp.isinf, "isnan": jnp.isnan, "log": jnp.log, "log10": jnp.log10,
    "log1p": jnp.log1p, "log2": jnp.log2, "logical_not": jnp.logical_not,
    "mish": jax.nn.mish, "neg": jnp.negative, "reciprocal": jnp.reciprocal,
    "relu": jax.nn.relu, "round": jnp.round, "rsqrt": lax.rsqrt, "sigmoid": jax.nn.sigmoid,
    "sign": jnp.sign, "silu": jax.nn.silu, "sin": jnp.sin, "sinh": jnp.sinh, "sqrt": jnp.sqrt,
    "square": jnp.square, "tan": jnp.tan, "tanh": jnp.tanh, "trunc": jnp.trunc,
}.items():  # fmt: skip
    OPERATIONS[f"{_name}.default"] = _function

for _name, _function in {
    "bitwise_and": jnp.bitwise_and, "bitwise_or": jnp.bitwise_or, "eq": jnp.equal,
    "ge": jnp.greater_equal, "gt": jnp.greater, "le": jnp.less_equal, "lt": jnp.less,
    "ne": jnp.not_equal, "mul": jnp.multiply, "fmod": jnp.fmod, "remainder": jnp.remainder,
}.items():  # fmt: skip
    OPERATIONS[f"{_name}.Tensor"] = OPERATIONS[f"{_name}.Scalar"] = _function

for _name, _function in {
    "atan2": jnp.arctan2, "logical_and": jnp.logical_and, "logical_or": jnp.logical_or,
    "logical_xor": jnp.logical_xor, "maximum": jnp.maximum, "minimum": jnp.minimum,
}.items():  # fmt: skip
    OPERATIONS[f"{_name}.default"] = _function

for _name in ("alias", "clone", "contiguous", "detach", "detach_", "dropout", "lift_fresh_copy"):
    OPERATIONS[f"{_name}.default"] = lambda x, *_, **__: x  # of a network that is not trained


@operation("add.Tensor", "add.Scalar")
def add(x, y, alpha=1):
    return x + y if alpha == 1 else x + alpha * y


@operation("sub.Tensor", "sub.Scalar")
def sub(x, y, alpha=1):
    return x - y if alpha == 1 else x - alpha * y


@operation("rsub.Scalar", "rsub.Tensor")
def rsub(x, y, alpha=1):
    return sub(y, x, alpha)


@operation("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode", "true_divide.Tensor")
def div(x, y, rounding_mode=None):
    if rounding_mode == "floor":
        return jnp.floor_divide(x, y)
    ratio = jnp.true_divide(x, y)
    return ratio if rounding_mode is None else jnp.trunc(ratio).astype(jnp.result_type(x, y))


@operation("floor_divide.default")
def floor_divide(x, y):
    return jnp.floor_divide(x, y)


@operation("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def power(x, exponent):
    return x**exponent


@operation("clamp.default", "clamp.Tensor")
def clamp(x, min=None, max=None):
    return jnp.clip(x, min, max)


@operation("clamp_min.default")
def clamp_min(x, min):
    return jnp.maximum(x, min)


@operation("gelu.default")
def gelu(x, approximate="none"):
    return jax.nn.gelu(x, approximate=approximate == "tanh")


@operation("elu.default")
def elu(x, alpha=1.0, scale=1.0, input_scale=1.0):
    below = alpha * jnp.expm1(input_scale * jnp.minimum(x, 0))
    return scale * jnp.where(x > 0, x, below)


@operation("leaky_relu.default")
def leaky_relu(x, negative_slope=0.01):
    return jnp.where(x > 0, x, negative_slope * x)


@operation("softplus.default")
def softplus(x, beta=1.0, threshold=20.0):
    return jnp.where(beta * x > threshold, x, jax.nn.softplus(beta * x) / beta)


@operation("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(condition, x, y):
    return jnp.where(condition, x, y)


@operation("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(x, mask, value):
    return jnp.where(mask, jnp.asarray(value, x.dtype), x)


@operation("_to_copy.default", "to.dtype", "to.dtype_layout", "to.device")
def to_copy(x, *ignored, dtype=None, **also_ignored):
    kinds = [value for value in (dtype, *ignored) if isinstance(value, np.dtype)]
    return x.astype(kinds[0]) if kinds else x


@operation("type_as.default")
def type_as(x, other):
    return x.astype(other.dtype)


# ------------------------------------------------------------------ sums over axes


@operation("sum.default", "sum.dim_IntList")
def total(x, dim=None, keepdim=False, dtype=None):
    return jnp.sum(x, axes_of(dim), dtype=dtype, keepdims=keepdim)


@operation("mean.default", "mean.dim")
def mean(x, dim=None, keepdim=False, dtype=None):
    return jnp.mean(x, axes_of(dim), dtype=dtype, keepdims=keepdim)


@operation("prod.default", "prod.dim_int")
def prod(x, dim=None, keepdim=False, dtype=None):
    return jnp.prod(x, dim, dtype=dtype, keepdims=keepdim)


@operation("var.correction")
def var(x, dim=None, correction=1, keepdim=False):
    return jnp.var(x, axes_of(dim), ddof=1 if correction is None else correction, keepdims=keepdim)


@operation("std.correction")
def std(x, dim=None, correction=1, keepdim=False):
    return jnp.sqrt(var(x, dim, correction, keepdim))


@operation("amax.default")
def amax(x, dim=(), keepdim=False):
    return jnp.max(x, axes_of(dim), keepdims=keepdim)


@operation("amin.default")
def amin(x, dim=(), keepdim=False):
    return jnp.min(x, axes_of(dim), keepdims=keepdim)


@operation("argmax.default")
def argmax(x, dim=None, keepdim=False):
    return jnp.argmax(x, dim, keepdims=keepdim)


@operation("max.dim")
def max_dim(x, dim, keepdim=False):
    return jnp.max(x, dim, keepdims=keepdim), jnp.argmax(x, dim, keepdims=keepdim)


@operation("any.default", "any.dim", "any.dims")
def any_(x, dim=None, keepdim=False):
    return jnp.any(x, axes_of(dim), keepdims=keepdim)


@operation("all.default", "all.dim", "all.dims")
def all_(x, dim=None, keepdim=False):
    return jnp.all(x, axes_of(dim), keepdims=keepdim)


@operation("cumsum.default")
def cumsum(x, dim, dtype=None):
    return jnp.cumsum(x, dim, dtype=dtype)


@operation("linalg_vector_norm.default")
def vector_norm(x, ord=2, dim=None, keepdim=False, dtype=None):
    if ord == 2:  # smooth away from 0, in forward and in reverse mode
        return jnp.sqrt(total(jnp.square(x), dim, keepdim, dtype))
    axes = tuple(range(x.ndim)) if axes_of(dim) is None else axes_of(dim)
    size = jnp.abs(x if dtype is None else x.astype(dtype))
    if math.isinf(ord):
        return (jnp.max if ord > 0 else jnp.min)(size, axes, keepdims=keepdim)
    return jnp.sum(size**ord, axes, keepdims=keepdim) ** (1 / ord)


@operation("softmax.int", "_softmax.default", "_safe_softmax.default")
def softmax(x, dim, dtype=None):
    kind = dtype if isinstance(dtype, np.dtype) else x.dtype  # _softmax has a bool in its place
    return jax.nn.softmax(x.astype(kind), dim)


@operation("log_softmax.int", "_log_softmax.default")
def log_softmax(x, dim, dtype=None):
    kind = dtype if isinstance(dtype, np.dtype) else x.dtype
    return jax.nn.log_softmax(x.astype(kind), dim)


@operation("logsumexp.default")
def logsumexp(x, dim, keepdim=False):
    return jax.nn.logsumexp(x, axes_of(dim), keepdims=keepdim)

"""Products, convolutions, and the other layers of networks."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from scoresens.importers.aten.registry import enter, operation
from scoresens.importers.aten.shapes import pad
from scoresens.models.convolution import channels_last, convolve

# ------------------------------------------------------------------ products

enter({
    "mm.default bmm.default matmul.default": lambda x, y: jnp.matmul(x, y),
    "addmm.default baddbmm.default":
        lambda bias, x, y, beta=1, alpha=1: beta * bias + alpha * (x @ y),
    "einsum.default": lambda equation, tensors, path=None: jnp.einsum(equation, *tensors),
    "getitem": lambda values, place: values[place],
})  # fmt: skip


@operation("embedding.default")
def embedding(weight, indices, *_, **__):
    """Rows of a table; of an index beyond it NaN, where PyTorch refuses."""
    return weight.at[indices].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


@operation("linear.default")
def linear(x, weight, bias=None):
    out = x @ weight.T
    return out if bias is None else out + bias


@operation("scaled_dot_product_attention.default")
def attention(
    q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """softmax(scale q k^T + mask) v, over heads `[..., H, L, E]`."""
    if enable_gqa:
        k, v = (jnp.repeat(y, q.shape[-3] // y.shape[-3], -3) for y in (k, v))
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ jnp.swapaxes(k, -1, -2)
    if is_causal:
        attn_mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if attn_mask is not None and attn_mask.dtype == bool:
        scores = jnp.where(attn_mask, scores, -jnp.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return jax.nn.softmax(scores, -1) @ v


# ------------------------------------------------------------------ convolutions


def _each_axis(value: Any, count: int) -> tuple[int, ...]:
    """A number, a list of one, or a list of `count`, as `count` numbers."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


@operation("convolution.default")
def convolution(
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, turned=False
):
    """Of a weight `[out, in, *window]` as in torch, or (turned) `[*window, in, out]`. Channels last
    within, as is quick in loops too (`models.convolution`)."""
    count = weight.ndim - 2
    stride, padding, dilation, extra = (
        _each_axis(value, count) for value in (stride, padding, dilation, output_padding)
    )
    if transposed:  # the transpose of a convolution is one of the dilated input
        spans = zip(dilation, weight.shape[2:], padding, extra, strict=True)
        pairs = [(d * (k - 1) - p, d * (k - 1) - p + e) for d, k, p, e in spans]
        weight, stride, spread = _transposed(weight, groups), (1,) * count, stride
    else:
        pairs, spread = [(p, p) for p in padding], (1,) * count
    kind = jnp.result_type(x, weight)
    kernel = weight if turned else jnp.moveaxis(weight, (0, 1), (-1, -2))
    out = convolve(
        jnp.moveaxis(x, 1, -1).astype(kind), kernel.astype(kind), stride, pairs, spread, dilation,
        channels_last(count), groups,
    )  # fmt: skip
    out = jnp.moveaxis(out, -1, 1)
    return out if bias is None else out + bias.reshape(-1, *[1] * count)


def _transposed(weight, groups):
    """`[in, out / groups, *k]` as the weight `[out, in / groups, *k]` that undoes it."""
    into, out, *size = weight.shape
    split_up = weight.reshape(groups, into // groups, out, *size)
    turned = jnp.swapaxes(split_up, 1, 2).reshape(groups * out, into // groups, *size)
    return jnp.flip(turned, tuple(range(2, weight.ndim)))


@operation("conv1d.default", "conv2d.default", "conv3d.default")
def conv(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, turned=False):
    return convolution(x, weight, bias, stride, padding, dilation, False, 0, groups, turned)


@operation("conv1d.padding", "conv2d.padding", "conv3d.padding")
def conv_padding(
    x, weight, bias=None, stride=1, padding="valid", dilation=1, groups=1, turned=False
):
    count = weight.ndim - 2
    if padding == "same":
        window = weight.shape[:-2] if turned else weight.shape[2:]
        spans = [d * (k - 1) for d, k in zip(_each_axis(dilation, count), window, strict=True)]
        x = pad(x, [w for span in spans[::-1] for w in (span // 2, span - span // 2)])
    return conv(x, weight, bias, stride, 0, dilation, groups, turned)


@operation("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def conv_transpose(
    x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    return convolution(x, weight, bias, stride, padding, dilation, True, output_padding, groups)


# ------------------------------------------------------------------ pixels


@operation("avg_pool2d.default")
def avg_pool2d(
    x, kernel, stride=(), padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    if ceil_mode:
        raise ValueError("avg_pool2d with ceil_mode is not supported")
    window, strides, pairs = _windows(x, kernel, stride, padding)
    sums = lax.reduce_window(x, 0.0, lax.add, window, strides, pairs)
    if divisor_override is not None:
        return sums / divisor_override
    if count_include_pad:
        return sums / math.prod(window)
    return sums / lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, window, strides, pairs)


@operation("max_pool2d.default")
def max_pool2d(x, kernel, stride=(), padding=0, dilation=1, ceil_mode=False):
    if ceil_mode or set(_each_axis(dilation, 2)) != {1}:
        raise ValueError("max_pool2d with ceil_mode or dilation is not supported")
    return lax.reduce_window(x, -jnp.inf, lax.max, *_windows(x, kernel, stride, padding))


def _windows(x, kernel, stride, padding):
    kernel, padding = _each_axis(kernel, 2), _each_axis(padding, 2)
    stride = _each_axis(stride, 2) or kernel
    above = (1,) * (x.ndim - 2)
    return (*above, *kernel), (*above, *stride), [(0, 0)] * (x.ndim - 2) + [(p, p) for p in padding]


@operation("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
def adaptive_avg_pool2d(x, size):
    height, width = _each_axis(size, 2)
    if x.shape[-2] % height or x.shape[-1] % width:
        raise ValueError(f"adaptive_avg_pool2d from {x.shape[-2:]} to {size}: only whole ratios")
    blocks = x.reshape(*x.shape[:-2], height, x.shape[-2] // height, width, -1)
    return blocks.mean((-3, -1))


@operation("upsample_nearest2d.vec", "upsample_nearest2d.default")
def upsample_nearest2d(x, size=None, scales=None, *also):
    scales = scales if scales is None or isinstance(scales, Sequence) else (scales, *also)
    size = size or [math.floor(n * by) for n, by in zip(x.shape[-2:], scales or (), strict=True)]
    for axis, place in ((-2, 0), (-1, 1)):
        before = x.shape[axis]
        factor = scales[place] if scales else size[place] / before
        after = size[place]
        if after % before == 0:
            x = jnp.repeat(x, after // before, axis)
        else:
            x = jnp.take(x, np.floor(np.arange(after) / factor).astype(int), axis)
    return x


@operation("upsample_bilinear2d.vec")
def upsample_bilinear2d(x, size, align_corners, scales=None):
    size = size or [math.floor(n * by) for n, by in zip(x.shape[-2:], scales or (), strict=True)]
    for axis, place in ((-2, 0), (-1, 1)):
        before, after = x.shape[axis], size[place]
        ratio = 1 / scales[place] if scales else before / after
        weights = _linear_weights(before, after, ratio, align_corners)
        x = jnp.moveaxis(jnp.moveaxis(x, axis, -1) @ jnp.asarray(weights.T, x.dtype), -1, axis)
    return x


def _linear_weights(before: int, after: int, ratio: float, align_corners: bool) -> np.ndarray:
    """The matrix `[after, before]` of linear interpolation along one axis."""
    if align_corners:
        at = np.arange(after) * ((before - 1) / max(1, after - 1))
    else:
        at = np.maximum((np.arange(after) + 0.5) * ratio - 0.5, 0)
    low = np.minimum(at.astype(int), before - 1)
    high, share = np.minimum(low + 1, before - 1), at - low
    weights = np.zeros((after, before))
    np.add.at(weights, (np.arange(after), low), 1 - share)
    np.add.at(weights, (np.arange(after), high), share)
    return weights


@operation("pixel_shuffle.default")
def pixel_shuffle(x, factor):
    *above, channels, height, width = x.shape
    split_up = x.reshape(*above, channels // factor**2, factor, factor, height, width)
    joined = jnp.moveaxis(split_up, (-4, -3), (-3, -1))
    return joined.reshape(*above, -1, height * factor, width * factor)


@operation("pixel_unshuffle.default")
def pixel_unshuffle(x, factor):
    *above, channels, height, width = x.shape
    split_up = x.reshape(*above, channels, height // factor, factor, width // factor, factor)
    joined = jnp.moveaxis(split_up, (-3, -1), (-4, -3))
    return joined.reshape(*above, channels * factor**2, height // factor, width // factor)


# ------------------------------------------------------------------ normalisations


@operation("group_norm.default")
def group_norm(x, groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    grouped = x.reshape(x.shape[0], groups, -1)
    normed = _standardised(grouped, -1, eps).reshape(x.shape)
    return _scaled(normed, weight, bias, (-1, *[1] * (x.ndim - 2)))


@operation("layer_norm.default")
def layer_norm(x, shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    return _scaled(_standardised(x, tuple(range(-len(shape), 0)), eps), weight, bias, shape)


@operation("rms_norm.default")
def rms_norm(x, shape, weight=None, eps=None):
    eps = jnp.finfo(x.dtype).eps if eps is None else eps
    axes = tuple(range(-len(shape), 0))
    normed = x * lax.rsqrt(jnp.mean(jnp.square(x), axes, keepdims=True) + eps)
    return _scaled(normed, weight, None, shape)


@operation("_native_batch_norm_legit_no_training.default")
def batch_norm(x, weight, bias, running_mean, running_var, momentum, eps):
    over = (-1, *[1] * (x.ndim - 2))
    normed = (x - running_mean.reshape(over)) * lax.rsqrt(running_var.reshape(over) + eps)
    return (_scaled(normed, weight, bias, over),)


def _standardised(x, axes, eps):
    centred = x - x.mean(axes, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + eps)


def _scaled(x, weight, bias, shape):
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


enter({  # their moments, left out, serve only the backward pass
    "native_group_norm.default": lambda x, weight, bias, n, channels, pixels, groups, eps:
        (group_norm(x, groups, weight, bias, eps),),
    "native_layer_norm.default": lambda *of: (layer_norm(*of),),
})  # fmt: skip

"""The parts of a `UNet2D`, under the names of the checkpoint's tensors."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from scoresens.importers.unet2d.settings import ACTIVATIONS, Map, Settings
from scoresens.models.convolution import convolve
from scoresens.models.unet import doubled, halved, normed


class Positional(nnx.Module):
    """The features of a time step: sines and cosines at fixed frequencies."""

    def __init__(self, s: Settings):
        self.size, self.shift = s.block_out_channels[0], s.freq_shift
        self.cosine_first = s.flip_sin_to_cos

    def __call__(self, step: Float[Array, ""]) -> Float[Array, "size"]:
        # Networks are trained with frequencies rounded to float32, which turns angles by 1e-4 at
        # step 1000: the rounded ones are the network's own, also in float64. diffusers then rounds
        # angles and sines too; in float64 they are not rounded here, to stay smooth in the step.
        half = self.size // 2
        powers = np.float32(-math.log(1e4)) * np.arange(half, dtype=np.float32)
        powers = powers / np.float32(half - self.shift)
        angles = step * np.exp(powers.astype(np.float64)).astype(np.float32)
        waves = [jnp.sin(angles), jnp.cos(angles)][:: -1 if self.cosine_first else 1]
        return jnp.concatenate([*waves, jnp.zeros(self.size % 2, step.dtype)])


class Fourier(nnx.Module):
    """The features of a noise level: sines and cosines of its logarithm, at frequencies given."""

    def __init__(self, size: int):
        self.weight = nnx.Param(jnp.zeros(size))

    def __call__(self, step: Float[Array, ""]) -> Float[Array, "features"]:
        # In this order of products: an angle of 1000 turns by 1e-4 when rounded to float32.
        angles = jnp.log(step) * self.weight[...] * 2 * math.pi
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class TimeEmbedding(nnx.Module):
    """`B silu(A features)`, whatever the activation elsewhere."""

    def __init__(self, s: Settings, *, rngs: nnx.Rngs):
        size = s.block_out_channels[0] * (2 if s.time_embedding_type == "fourier" else 1)
        self.linear_1 = nnx.Linear(size, s.embedding, rngs=rngs)
        self.linear_2 = nnx.Linear(s.embedding, s.embedding, rngs=rngs)

    def __call__(self, features: Float[Array, "features"]) -> Float[Array, "embedding"]:
        return self.linear_2(nnx.silu(self.linear_1(features)))


class Down(nnx.Module):
    """The blocks of one resolution on the way down, and the step to the next."""

    def __init__(self, s: Settings, level: int, *, rngs: nnx.Rngs):
        kind, after = s.down_block_types[level], s.block_out_channels[level]
        before = [s.block_out_channels[max(level - 1, 0)]] + [after] * (s.layers_per_block - 1)
        self.resnets = nnx.List([Residual(s, b, after, rngs=rngs) for b in before])
        self.attentions = nnx.List(_attentions(s, kind, after, s.layers_per_block, rngs=rngs))
        self.downsamplers = nnx.List([])
        if level + 1 < len(s.block_out_channels):
            self.downsamplers.append(_resampler(s, kind, after, down=True, rngs=rngs))

    def __call__(self, h: Float[Array, "H W C"], e: Float[Array, "embedding"]) -> tuple:
        """What the next resolution is given, and what the way up will be shown."""
        seen = []
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, e)
            h = self.attentions[i](h) if self.attentions else h
            seen.append(h)
        for downsampler in self.downsamplers:
            h = downsampler(h, e)
            seen.append(h)
        return h, seen


class Middle(nnx.Module):
    """Two blocks at the lowest resolution, with an attention between them or without."""

    def __init__(self, s: Settings, *, rngs: nnx.Rngs):
        size, factor = s.block_out_channels[-1], s.mid_block_scale_factor
        groups = s.attn_norm_num_groups
        if groups is None and s.resnet_time_scale_shift == "default":
            groups = s.norm_num_groups
        count = 1 if s.add_attention else 0
        attentions = [Attention(s, size, groups, factor=factor, rngs=rngs) for _ in range(count)]
        self.attentions = nnx.List(attentions)
        blocks = [Residual(s, size, size, factor=factor, rngs=rngs) for _ in range(2)]
        self.resnets = nnx.List(blocks)

    def __call__(self, h: Float[Array, "H W C"], e: Float[Array, "embedding"]) -> Array:
        h = self.resnets[0](h, e)
        for attention in self.attentions:
            h = attention(h)
        return self.resnets[1](h, e)


class Up(nnx.Module):
    """The blocks of one resolution on the way up, from the lowest, and the step to the next."""

    def __init__(self, s: Settings, level: int, *, rngs: nnx.Rngs):
        widths, kind = s.block_out_channels[::-1], s.up_block_types[level]
        after, layers = widths[level], s.layers_per_block + 1
        before = [widths[max(level - 1, 0)]] + [after] * (layers - 1)
        shown = [after] * (layers - 1) + [widths[min(level + 1, len(widths) - 1)]]
        joined = [b + c for b, c in zip(before, shown, strict=True)]
        self.resnets = nnx.List([Residual(s, j, after, rngs=rngs) for j in joined])
        self.attentions = nnx.List(_attentions(s, kind, after, layers, rngs=rngs))
        self.upsamplers = nnx.List([])
        if level + 1 < len(widths):
            self.upsamplers.append(_resampler(s, kind, after, down=False, rngs=rngs))

    def __call__(self, h: Float[Array, "H W C"], e: Float[Array, "embedding"], seen: list) -> Array:
        """Takes what it joins from the end of `seen`."""
        for i, resnet in enumerate(self.resnets):
            h = resnet(jnp.concatenate([h, seen.pop()], axis=-1), e)
            h = self.attentions[i](h) if self.attentions else h
        for upsampler in self.upsamplers:
            h = upsampler(h, e)
        return h


class Residual(nnx.Module):
    """One residual block `[H, W, before] -> [H, W, after]`, which may resample."""

    def __init__(
        self, s: Settings, before: int, after: int, *, rngs: nnx.Rngs, resample: Map | None = None,
        factor: int | float = 1,
    ):  # fmt: skip
        self.act, self.resample, self.factor = ACTIVATIONS[s.act_fn], resample, factor
        self.scaled = s.resnet_time_scale_shift == "scale_shift"
        self.norm1 = normalisation(before, s.norm_num_groups, s, rngs=rngs)
        self.conv1 = convolution(before, after, rngs=rngs)
        self.time_emb_proj = nnx.Linear(s.embedding, (1 + self.scaled) * after, rngs=rngs)
        self.norm2 = normalisation(after, s.norm_num_groups, s, rngs=rngs)
        self.conv2 = convolution(after, after, rngs=rngs)
        same = before == after
        self.conv_shortcut = None if same else convolution(before, after, 1, rngs=rngs)

    def __call__(self, h: Float[Array, "H W before"], e: Float[Array, "embedding"]) -> Array:
        r = self.act(normed(self.norm1, h))
        if self.resample is not None:
            h, r = self.resample(h), self.resample(r)
        r, e = self.conv1(r), self.time_emb_proj(self.act(e))
        if self.scaled:
            scale, shift = jnp.split(e, 2)
            r = normed(self.norm2, r, 1 + scale, shift)
        else:
            r = normed(self.norm2, r + e)
        r = self.conv2(self.act(r))
        return ((h if self.conv_shortcut is None else self.conv_shortcut(h)) + r) / self.factor


class Attention(nnx.Module):
    """Every pixel looks at every other; `[H, W, C] -> [H, W, C]`."""

    def __init__(
        self, s: Settings, size: int, groups: int | None, *, rngs: nnx.Rngs, factor: int | float = 1
    ):
        width = s.attention_head_dim or size
        self.heads, self.factor = size // width, factor
        inner = self.heads * width  # fewer than size where width does not divide it
        self.group_norm = None if groups is None else normalisation(size, groups, s, rngs=rngs)
        self.to_q = nnx.Linear(size, inner, rngs=rngs)
        self.to_k = nnx.Linear(size, inner, rngs=rngs)
        self.to_v = nnx.Linear(size, inner, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(inner, size, rngs=rngs)])

    def __call__(self, h: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
        x = h if self.group_norm is None else normed(self.group_norm, h)
        x = x.reshape(-1, h.shape[2])
        # In plain products: jax.nn.dot_product_attention rounds its softmax to float32.
        q, k, v = (
            to(x).reshape(len(x), self.heads, -1) for to in (self.to_q, self.to_k, self.to_v)
        )
        weights = nnx.softmax(jnp.einsum("qhd,khd->hqk", q * q.shape[2] ** -0.5, k))
        seen = jnp.einsum("hqk,khd->qhd", weights, v).reshape(len(x), -1)
        return (h + self.to_out[0](seen).reshape(h.shape)) / self.factor


class Resampling(nnx.Module):
    """A convolution of stride 2, or (`padding=None`) one of repeated pixels."""

    def __init__(self, size: int, padding: int | None, *, rngs: nnx.Rngs):
        self.doubles = padding is None
        if padding is None:
            self.conv = convolution(size, size, rngs=rngs)
        else:  # without padding, a row and a column of zeros still follow the last
            self.conv = convolution(size, size, 3, strides=2, padding=[(padding, 1)] * 2, rngs=rngs)

    def __call__(self, h: Float[Array, "H W C"], e: Float[Array, "embedding"]) -> Array:
        return self.conv(doubled(h) if self.doubles else h)


def class_embedding(
    s: Settings, labels: str | None, *, rngs: nnx.Rngs
) -> "TimeEmbedding | nnx.Embed | None":
    if labels == "index":
        return nnx.Embed(s.num_class_embeds or 0, s.embedding, rngs=rngs)
    return TimeEmbedding(s, rngs=rngs) if labels == "timestep" else None


def _attentions(
    s: Settings, kind: str, size: int, number: int, *, rngs: nnx.Rngs
) -> list[Attention]:
    number = number if kind.startswith("Attn") else 0
    return [Attention(s, size, s.norm_num_groups, rngs=rngs) for _ in range(number)]


def _resampler(
    s: Settings, kind: str, size: int, *, down: bool, rngs: nnx.Rngs
) -> "Residual | Resampling":
    how = s.downsample_type if down else s.upsample_type  # which plain blocks do not heed
    if kind.startswith("Resnet") or (kind.startswith("Attn") and how == "resnet"):
        return Residual(s, size, size, resample=halved if down else doubled, rngs=rngs)
    return Resampling(size, s.downsample_padding if down else None, rngs=rngs)


def convolution(
    before: int, after: int, window: int = 3, *, rngs: nnx.Rngs, **settings: Any
) -> nnx.Conv:
    """From `[H, W, before]` to `[H', W', after]`, quick in loops too (`models.convolution`)."""
    size = (window, window)
    return nnx.Conv(before, after, size, conv_general_dilated=convolve, rngs=rngs, **settings)


def normalisation(size: int, groups: int, s: Settings, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    eps = float(s.norm_eps)
    return nnx.GroupNorm(size, groups, epsilon=eps, use_fast_variance=False, rngs=rngs)

"""The U-Net of diffusers, ``UNet2DModel``, for images ``[H, W, C]``: the same function in JAX.

Residual blocks go down through the resolutions and come back up, each joined with what the way
down saw; at some resolutions every pixel then attends to every other:

    e = B silu(A features(step)) + embedding(label)
    h <- (W h + conv act norm(conv act(norm(h)) + b(act(e)))) / s                     default
    h <- (W h + conv act((1 + a(act(e))) norm(conv act(norm(h))) + b(act(e)))) / s    scale_shift
    h <- (h + O softmax(Q K^T / sqrt(d)) V) / s,    Q, K, V = q, k, v of norm(h)      attention

The features of a time step are ``sin(w step), cos(w step)`` with frequencies w from 1 down to 1e-4
("positional"), or ``sin(w log step), cos(w log step)`` with frequencies from the checkpoint
("fourier"); in the second case the output is also divided by the time step.

The modules bear the names of the checkpoint's tensors: a tensor's name is its place.

References: Ho, Jain, Abbeel 2020, arXiv 2006.11239; Song et al. 2021, arXiv 2011.13456.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from scoresens._checks import floating, is_concrete

Map = Callable[[Array], Array]


def _gelu(h: Array) -> Array:
    return nnx.gelu(h, approximate=False)  # torch's default, not JAX's


ACTIVATIONS: dict[str, Map] = {
    "gelu": _gelu, "relu": nnx.relu,
    "mish": jax.nn.mish, "silu": nnx.silu, "swish": nnx.silu,
}  # fmt: skip
CHOICES = {
    "act_fn": tuple(ACTIVATIONS),
    "class_embed_type": (None, "timestep", "identity"),
    "downsample_padding": (0, 1),
    "downsample_type": (None, "conv", "resnet"),
    "mid_block_type": (None, "UNetMidBlock2D"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "time_embedding_type": ("positional", "fourier"),
    "upsample_type": (None, "conv", "resnet"),
}
BLOCKS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
POSITIVE = (
    "in_channels", "out_channels", "layers_per_block", "norm_num_groups", "time_embedding_dim",
    "attention_head_dim", "attn_norm_num_groups", "num_class_embeds",
)  # fmt: skip
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAME = re.compile(rf"(?<=\.)({'|'.join(OLD_NAMES)})(?=\.(?:weight|bias)$)")


@dataclass(frozen=True)
class Settings:
    """The fields of a configuration that change the function, with the defaults of diffusers."""

    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int | float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple = ("DownBlock2D", *["AttnDownBlock2D"] * 3)
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple = (*["AttnUpBlock2D"] * 3, "UpBlock2D")
    block_out_channels: tuple = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: int | float = 1
    downsample_padding: int = 1
    downsample_type: str | None = "conv"
    upsample_type: str | None = "conv"
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: int | float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None

    @property
    def embedding(self) -> int:
        """How many entries e has."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]


def unsupported(config: Mapping[str, Any]) -> str | None:
    """Returns why `unet2d` cannot build a configuration, or None where it can.

    Args:
        config: what the ``config.json`` of a ``UNet2DModel`` holds. Fields that are absent have
            the defaults of diffusers, and fields that it does not know are ignored, as there.

    Returns:
        One sentence that names the field and its value.
    """
    return next(_problems(config), None)


def unet2d(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> "UNet2D":
    """Returns the network of a configuration, with the parameters of a checkpoint.

    Args:
        config: what the ``config.json`` of a ``UNet2DModel`` holds; see `unsupported`.
        tensors: its parameters by name, in torch's layout, as a safetensors file holds them; an
            attention's may bear the names it had before diffusers 0.17 (``query``, ``proj_attn``).

    Returns:
        A `UNet2D` whose parameters have the tensors' dtypes.

    Raises:
        ValueError: if the configuration cannot be built (see `unsupported`), or if tensors are
            missing, are more than the network has, are of other shapes, hold no floating-point
            numbers, or hold NaN or infinity.

    Notes:
        Copies every tensor once, and draws nothing at random.
    """
    skeleton = jax.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0)))
    expected = dict(_named_leaves(skeleton))
    tensors = _renamed(tensors)
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"the tensors lack {_told(missing)}: are they this configuration's?")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"the tensors have {_told(extra)}, which no part of the network takes")
    leaves = [_parameter(name, tensors[name], *of) for name, of in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(skeleton), leaves)


def checkpoint_of(network: "UNet2D") -> dict[str, np.ndarray]:
    """Returns the parameters as `unet2d` takes them, by name and in torch's layout."""
    return {name: _to_torch(kind, leaf) for name, (kind, leaf) in _named_leaves(network)}


class UNet2D(nnx.Module):
    """A network ``(step, x) -> [H, W, out_channels]``, the function of a ``UNet2DModel``.

    It is a JAX pytree whose leaves are its parameters; calling it changes nothing in it. `unet2d`
    makes one from a checkpoint.

    Args:
        config: what the ``config.json`` of a ``UNet2DModel`` holds; see `unsupported`.
        rngs: the source of the initial parameters.

    Raises:
        ValueError: if the configuration cannot be built; see `unsupported`.
    """

    def __init__(self, config: Mapping[str, Any], *, rngs: nnx.Rngs):
        if reason := unsupported(config):
            raise ValueError(f"cannot build this UNet2DModel: {reason}")
        s = Settings(**_given(config))
        widths = s.block_out_channels
        self.channels, self.multiple = s.in_channels, 2 ** (len(widths) - 1)
        self.centred, self.fourier = s.center_input_sample, s.time_embedding_type == "fourier"
        self.labels = s.class_embed_type or ("index" if s.num_class_embeds else None)
        self.time_proj = Fourier(widths[0]) if self.fourier else Positional(s)
        self.time_embedding = TimeEmbedding(s, rngs=rngs)
        self.class_embedding = _class_embedding(s, self.labels, rngs=rngs)
        self.conv_in = _conv(s.in_channels, widths[0], rngs=rngs)
        self.down_blocks = nnx.List([Down(s, level, rngs=rngs) for level in range(len(widths))])
        self.mid_block = Middle(s, rngs=rngs) if s.mid_block_type else None
        self.up_blocks = nnx.List([Up(s, level, rngs=rngs) for level in range(len(widths))])
        self.conv_norm_out = _norm(widths[0], s.norm_num_groups, s, rngs=rngs)
        self.conv_out = _conv(widths[0], s.out_channels, rngs=rngs)

    def __call__(
        self,
        step: int | float | Float[Array, ""] | Int[Array, ""],
        x: Float[Array, "H W C"],
        label: int | float | Float[Array, "..."] | Int[Array, ""] | None = None,
    ) -> Float[Array, "H W out"]:
        """Returns the network's output for one sample.

        Args:
            step: time step (or, if "fourier", noise level), in the checkpoint's own units.
            x: one sample ``[H, W, C]``; map over a batch with ``jax.vmap``. H and W are multiples
                of 2 to the power of the number of times that the network halves them.
            label: what the network is conditioned on, where it is: the class, for
                ``num_class_embeds``; a number, for ``class_embed_type="timestep"``; a vector as
                long as the embedding of the time step, for ``"identity"``.

        Returns:
            The output ``[H, W, out_channels]``, in the wider of x's and the parameters' dtypes;
            the features of the time step are in float32 or wider.

        Raises:
            ValueError: if x has not the shape of one sample, or there is a label where the network
                takes none, none where it takes one, or one it does not know.

        Notes:
            One network evaluation. An attention at resolution ``h x w`` holds ``(h w)^2`` numbers
            a head. A "fourier" network has no finite output at step 0. A class beyond the last
            gives NaN where it is known only under jit.
        """
        x = floating("x", x)
        self._check(x, label)
        step = jnp.asarray(step, jnp.promote_types(x.dtype, jnp.float32))
        e = self._embedding(step, label)
        h = self.conv_in(2 * x - 1 if self.centred else x)
        seen = [h]
        for block in self.down_blocks:
            h, more = block(h, e)
            seen += more
        if self.mid_block is not None:
            h = self.mid_block(h, e)
        for block in self.up_blocks:
            h = block(h, e, seen)
        h = self.conv_out(nnx.silu(_normed(self.conv_norm_out, h)))
        return h / step.astype(h.dtype) if self.fourier else h

    def _embedding(self, step: Float[Array, ""], label: Any) -> Float[Array, "embedding"]:
        e = self.time_embedding(self.time_proj(step))
        if self.class_embedding is None:
            return e if label is None else e + jnp.asarray(label)
        if isinstance(self.class_embedding, nnx.Embed):  # called, it would round to float32
            return e + jnp.take(self.class_embedding.embedding[...], jnp.asarray(label), axis=0)
        return e + self.class_embedding(self.time_proj(jnp.asarray(label, step.dtype)))

    def _check(self, x: Array, label: Any) -> None:
        fits = x.ndim == 3 and x.shape[2] == self.channels
        if not fits or x.shape[0] % self.multiple or x.shape[1] % self.multiple:
            raise ValueError(
                f"expected one sample [H, W, {self.channels}] with H and W multiples of "
                f"{self.multiple}, came {x.shape}: map over a batch with jax.vmap, move the "
                "channels last, or pad"
            )
        if (label is None) != (self.labels is None):
            takes = f"takes a label ({self.labels})" if self.labels else "takes no label"
            raise ValueError(f"this network {takes}, came {label}")
        if isinstance(self.class_embedding, nnx.Embed) and is_concrete(label):
            classes = self.class_embedding.num_embeddings
            if not 0 <= int(label) < classes:
                raise ValueError(f"expected a class from 0 to {classes - 1}, came {label}")


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
    """``B silu(A features)``, whatever the activation elsewhere."""

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
        """Returns what the next resolution is given, and what the way up will be shown."""
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
        attention = [Attention(s, size, groups, factor=factor, rngs=rngs)]
        self.attentions = nnx.List(attention if s.add_attention else [])
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
        """Takes what it joins from the end of ``seen``."""
        for i, resnet in enumerate(self.resnets):
            h = resnet(jnp.concatenate([h, seen.pop()], axis=-1), e)
            h = self.attentions[i](h) if self.attentions else h
        for upsampler in self.upsamplers:
            h = upsampler(h, e)
        return h


class Residual(nnx.Module):
    """One residual block ``[H, W, before] -> [H, W, after]``, which may resample."""

    def __init__(
        self, s: Settings, before: int, after: int, *, rngs: nnx.Rngs, resample: Map | None = None,
        factor: int | float = 1,
    ):  # fmt: skip
        self.act, self.resample, self.factor = ACTIVATIONS[s.act_fn], resample, factor
        self.scaled = s.resnet_time_scale_shift == "scale_shift"
        self.norm1 = _norm(before, s.norm_num_groups, s, rngs=rngs)
        self.conv1 = _conv(before, after, rngs=rngs)
        self.time_emb_proj = nnx.Linear(s.embedding, (1 + self.scaled) * after, rngs=rngs)
        self.norm2 = _norm(after, s.norm_num_groups, s, rngs=rngs)
        self.conv2 = _conv(after, after, rngs=rngs)
        same = before == after
        self.conv_shortcut = None if same else nnx.Conv(before, after, (1, 1), rngs=rngs)

    def __call__(self, h: Float[Array, "H W before"], e: Float[Array, "embedding"]) -> Array:
        r = self.act(_normed(self.norm1, h))
        if self.resample is not None:
            h, r = self.resample(h), self.resample(r)
        r, e = self.conv1(r), self.time_emb_proj(self.act(e))
        if self.scaled:
            scale, shift = jnp.split(e, 2)
            r = _normed(self.norm2, r) * (1 + scale) + shift
        else:
            r = _normed(self.norm2, r + e)
        r = self.conv2(self.act(r))
        return ((h if self.conv_shortcut is None else self.conv_shortcut(h)) + r) / self.factor


class Attention(nnx.Module):
    """Every pixel looks at every other; ``[H, W, C] -> [H, W, C]``."""

    def __init__(
        self, s: Settings, size: int, groups: int | None, *, rngs: nnx.Rngs, factor: int | float = 1
    ):
        width = s.attention_head_dim or size
        self.heads, self.factor = size // width, factor
        inner = self.heads * width  # fewer than size where width does not divide it
        self.group_norm = None if groups is None else _norm(size, groups, s, rngs=rngs)
        self.to_q = nnx.Linear(size, inner, rngs=rngs)
        self.to_k = nnx.Linear(size, inner, rngs=rngs)
        self.to_v = nnx.Linear(size, inner, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(inner, size, rngs=rngs)])

    def __call__(self, h: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
        x = h if self.group_norm is None else _normed(self.group_norm, h)
        x = x.reshape(-1, h.shape[2])
        # In plain products: jax.nn.dot_product_attention rounds its softmax to float32.
        q, k, v = (
            to(x).reshape(len(x), self.heads, -1) for to in (self.to_q, self.to_k, self.to_v)
        )
        weights = nnx.softmax(jnp.einsum("qhd,khd->hqk", q * q.shape[2] ** -0.5, k))
        seen = jnp.einsum("hqk,khd->qhd", weights, v).reshape(len(x), -1)
        return (h + self.to_out[0](seen).reshape(h.shape)) / self.factor


class Resampling(nnx.Module):
    """A convolution of stride 2, or (``padding=None``) one of repeated pixels."""

    def __init__(self, size: int, padding: int | None, *, rngs: nnx.Rngs):
        self.doubles = padding is None
        if padding is None:
            self.conv = _conv(size, size, rngs=rngs)
        else:  # without padding, a row and a column of zeros still follow the last
            self.conv = nnx.Conv(size, size, (3, 3), 2, padding=[(padding, 1)] * 2, rngs=rngs)

    def __call__(self, h: Float[Array, "H W C"], e: Float[Array, "embedding"]) -> Array:
        return self.conv(_doubled(h) if self.doubles else h)


def _class_embedding(
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
        return Residual(s, size, size, resample=_halved if down else _doubled, rngs=rngs)
    return Resampling(size, s.downsample_padding if down else None, rngs=rngs)


def _conv(before: int, after: int, *, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(before, after, (3, 3), rngs=rngs)


def _norm(size: int, groups: int, s: Settings, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    eps = float(s.norm_eps)
    return nnx.GroupNorm(size, groups, epsilon=eps, use_fast_variance=False, rngs=rngs)


def _normed(norm: nnx.GroupNorm, h: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
    return norm(h[None])[0]  # GroupNorm takes its first axis for the batch


def _halved(h: Float[Array, "H W C"]) -> Array:
    rows, columns, channels = h.shape
    return h.reshape(rows // 2, 2, columns // 2, 2, channels).mean((1, 3))


def _doubled(h: Float[Array, "H W C"]) -> Array:
    return h.repeat(2, axis=0).repeat(2, axis=1)


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every field of `Settings` as the configuration gives it, JSON's lists as tuples."""
    given = {f.name: config.get(f.name, f.default) for f in fields(Settings)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields what cannot be built, each check relying on those before it."""
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        yield f"_class_name is {kind!r}, not 'UNet2DModel'"
    given = _given(config)
    for field in fields(Settings):
        value: Any = given[field.name]
        type_: Any = field.type
        if not isinstance(value, type_):
            yield f"{field.name} is {value!r}, not of type {getattr(type_, '__name__', type_)}"
    for name in POSITIVE:
        if given[name] is not None and given[name] < 1:
            yield f"{name} is {given[name]!r}, not positive"
    for name, choices in CHOICES.items():
        if given[name] not in choices:
            yield f"{name} is {given[name]!r}, not one of {choices}"
    yield from _problems_of_blocks(given)


def _problems_of_blocks(given: dict[str, Any]) -> Iterator[str]:
    widths, groups = given["block_out_channels"], given["norm_num_groups"]
    for width in widths:
        if not isinstance(width, int) or width < 1 or width % groups:
            yield f"block_out_channels has {width!r}, no multiple of norm_num_groups ({groups})"
    attended = [widths[-1]] if given["add_attention"] else []
    for name, choices in BLOCKS.items():
        if len(given[name]) != len(widths):
            yield f"{name} has {len(given[name])} entries, block_out_channels {len(widths)}"
        order = -1 if name == "up_block_types" else 1
        for kind, width in zip(given[name], widths[::order], strict=False):
            if kind not in choices:
                yield f"{name} has {kind!r}, not one of {choices}"
            attended += [width] if kind.startswith("Attn") else []
    if attended and (given["attention_head_dim"] or 1) > min(attended):
        yield f"attention_head_dim is {given['attention_head_dim']}, of {min(attended)} channels"
    if widths[-1] % (given["attn_norm_num_groups"] or 1):
        yield f"attn_norm_num_groups is {given['attn_norm_num_groups']}, of {widths[-1]} channels"
    if given["time_embedding_type"] == "positional" and given["freq_shift"] == widths[0] // 2:
        yield f"freq_shift is {given['freq_shift']}, half of {widths[0]} channels"


def _renamed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors under present names; an old one beside its present one stays."""
    renamed = {}
    for name, tensor in tensors.items():
        present = OLD_NAME.sub(lambda found: OLD_NAMES[found[0]], name)
        renamed[name if present in tensors else present] = tensor
    return renamed


def _named_leaves(model: UNet2D) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Yields the tensors' names, each with its parameter's kind and the parameter."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        place, _, kind = name.rpartition(".")
        yield f"{place}.{'bias' if kind == 'bias' else 'weight'}", (kind, leaf)


def _parameter(name: str, found: np.ndarray, kind: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns a tensor in JAX's layout: kernels are ``[*window, in, out]``, torch's ``[out, in,
    *window]``."""
    shape = leaf.shape
    if kind == "kernel":
        shape = (shape[-1], shape[-2], *shape[:-2])
    if found.shape != shape:
        raise ValueError(f"tensor {name} should be of shape {shape}, came {found.shape}")
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"tensor {name} should hold floating-point numbers, came {found.dtype}")
    if bad := int(np.sum(~np.isfinite(found))):
        raise ValueError(f"tensor {name} has {bad} entries that are NaN or infinite")
    if kind == "kernel":
        found = found.transpose(*range(2, found.ndim), 1, 0)
    return jnp.array(found)


def _to_torch(kind: str, leaf: jax.Array) -> np.ndarray:
    """The inverse of the turn in `_parameter`."""
    found = np.asarray(leaf)
    if kind == "kernel":
        found = np.ascontiguousarray(found.transpose(-1, -2, *range(found.ndim - 2)))
    return found


def _told(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"

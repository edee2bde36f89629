"""A small convolutional U-Net, for images `[H, W, C]`.

Residual blocks go down through `depth` resolutions, averaging 2 x 2 pixels between them, and come
back up, repeating pixels, each joined with what the way down saw at its resolution:

    h <- W h + conv silu( (1 + a(e)) norm(conv silu(norm(h))) + b(e) ),    e = embedding(c_noise)

References: Ronneberger, Fischer, Brox 2015, arXiv 1505.04597; Ho, Jain, Abbeel 2020, arXiv
2006.11239.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from scoresens.models.convolution import convolve
from scoresens.models.preconditioning import EMBEDDING, NoiseEmbedding

GROUPS = 4


class UNet(nnx.Module):
    """A smooth network `[H, W, C] -> [H, W, C]` for a `Denoiser`, without attention.

    Args:
        shape: `(H, W, C)`, with H and W multiples of `2 ** (depth - 1)`.
        width: channels at full resolution, a multiple of 4; twice as many below.
        depth: number of resolutions.
        rngs: the source of the initial parameters.

    Raises:
        ValueError: if the shape is not an image's, or cannot be halved `depth - 1` times, or the
            width is not a multiple of 4.

    Notes:
        0.15 million parameters for the defaults.
    """

    def __init__(self, shape: tuple[int, ...], *, width: int = 16, depth: int = 3, rngs: nnx.Rngs):
        _check(shape, width, depth)
        self.shape, self.width, self.depth = tuple(shape), width, depth
        here = [width] + [2 * width] * (depth - 1)  # channels at each resolution
        above, below = [width, *here[:-1]], [*here[1:], here[-1]]
        self.embedding = NoiseEmbedding(rngs=rngs)
        self.read = _conv(shape[2], width, rngs=rngs)
        self.down = nnx.List([Block(above[i], here[i], rngs=rngs) for i in range(depth)])
        self.middle = Block(here[-1], here[-1], rngs=rngs)
        self.up = nnx.List([Block(below[i] + here[i], here[i], rngs=rngs) for i in range(depth)])
        self.norm = _norm(width, rngs=rngs)
        self.write = _conv(width, shape[2], zero=True, rngs=rngs)

    def __call__(self, c_noise: Float[Array, ""], x: Float[Array, "H W C"]) -> Array:
        """`F(c_noise, x)`, shaped like x."""
        e = self.embedding(c_noise)
        h = self.read(x)
        seen = []
        for level, block in enumerate(self.down):
            h = block(halved(h) if level else h, e)
            seen.append(h)
        h = self.middle(h, e)
        for level in reversed(range(self.depth)):
            h = self.up[level](jnp.concatenate([h, seen[level]], axis=-1), e)
            h = doubled(h) if level else h
        return self.write(nnx.silu(normed(self.norm, h)))


class Block(nnx.Module):
    """One residual block `[H, W, before] -> [H, W, after]`."""

    def __init__(self, before: int, after: int, *, rngs: nnx.Rngs):
        self.norm1 = _norm(before, rngs=rngs)
        self.conv1 = _conv(before, after, rngs=rngs)
        self.norm2 = _norm(after, rngs=rngs)
        self.modulation = nnx.Linear(EMBEDDING, 2 * after, rngs=rngs)
        self.conv2 = _conv(after, after, zero=True, rngs=rngs)
        self.match = nnx.Linear(before, after, rngs=rngs) if before != after else None

    def __call__(self, h: Float[Array, "H W before"], e: Float[Array, "embedding"]) -> Array:
        scale, shift = _halves(self.modulation, e)
        r = self.conv1(nnx.silu(normed(self.norm1, h)))
        r = normed(self.norm2, r, 1 + scale, shift)
        return (h if self.match is None else self.match(h)) + self.conv2(nnx.silu(r))


def _conv(before: int, after: int, *, zero: bool = False, rngs: nnx.Rngs) -> nnx.Conv:
    start = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
    return nnx.Conv(
        before, after, (3, 3), kernel_init=start, conv_general_dilated=convolve, rngs=rngs
    )


def _norm(channels: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=GROUPS, use_fast_variance=False, rngs=rngs)


def _halves(linear: nnx.Linear, e: Float[Array, "embedding"]) -> tuple[Array, Array]:
    """The two halves of `linear(e)`, each a product of its own: slices of one would be taken again
    for every pixel by whatever uses them (XLA on a CPU)."""
    kernel, bias = jax.tree.leaves((linear.kernel, linear.bias))
    kernels, biases = jnp.split(kernel, 2, axis=-1), jnp.split(bias, 2)
    first, second = (e @ kernel + bias for kernel, bias in zip(kernels, biases, strict=True))
    return first, second


def normed(
    norm: nnx.GroupNorm,
    h: Float[Array, "H W C"],
    gain: Float[Array, "C"] | float = 1.0,
    offset: Float[Array, "C"] | float = 0.0,
) -> Float[Array, "H W C"]:
    """`gain norm(h) + offset`, by moments in float32 or wider, as `norm` takes them."""
    scale, bias = jax.tree.leaves((norm.scale, norm.bias))
    wide = h.astype(jnp.promote_types(h.dtype, jnp.float32))
    centred = wide - _group_means(wide, norm.num_groups)
    variance = _group_means(jnp.square(centred), norm.num_groups)
    slope = gain * (scale * jax.lax.rsqrt(variance + norm.epsilon))
    made = centred * slope + (gain * bias + offset)
    return made.astype(jnp.result_type(h, scale))


def _group_means(h: Float[Array, "H W C"], groups: int) -> Float[Array, "C"]:
    """For each channel, the mean over the pixels and channels of its group. Over the pixels first:
    with the channels whole, all of them are added at once, where a CPU (XLA) adds the few of one
    group number by number."""
    channels = h.mean((0, 1))
    return channels.reshape(groups, -1).mean(1).repeat(len(channels) // groups)


def halved(h: Float[Array, "H W C"]) -> Array:
    rows, columns, channels = h.shape
    return h.reshape(rows // 2, 2, columns // 2, 2, channels).mean((1, 3))


def doubled(h: Float[Array, "H W C"]) -> Array:
    return h.repeat(2, axis=0).repeat(2, axis=1)


def _check(shape: tuple[int, ...], width: int, depth: int) -> None:
    if len(shape) != 3:
        raise ValueError(
            f"a U-Net needs images [H, W, C], got shape {tuple(shape)}: "
            "add the missing axes, or use an mlp"
        )
    step = 2 ** (depth - 1)
    if shape[0] % step or shape[1] % step:
        raise ValueError(
            f"a U-Net of depth {depth} needs H and W to be multiples of {step}, got "
            f"{shape[0]} x {shape[1]}: pad the images, or lower depth"
        )
    if width % GROUPS:
        raise ValueError(f"a U-Net's width must be a multiple of {GROUPS}, got {width}")

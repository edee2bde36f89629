"""A `UNet2D`, and how it is filled from a checkpoint and read back."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from scoresens._checks import floating, is_concrete
from scoresens.importers.unet2d._blocks import (
    Down,
    Fourier,
    Middle,
    Positional,
    TimeEmbedding,
    Up,
    class_embedding,
    convolution,
    normalisation,
)
from scoresens.importers.unet2d.settings import Settings, given_of, unsupported
from scoresens.models.unet import normed

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAME = re.compile(rf"(?<=\.)({'|'.join(OLD_NAMES)})(?=\.(?:weight|bias)$)")


def unet2d(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> "UNet2D":
    """The network of a configuration, with the parameters of a checkpoint.

    Args:
        config: what the `config.json` of a `UNet2DModel` holds; see `unsupported`.
        tensors: its parameters by name, in torch's layout, as a safetensors file holds them; an
            attention's may bear the names it had before diffusers 0.17 (`query`, `proj_attn`).

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
    """The parameters as `unet2d` takes them, by name and in torch's layout."""
    return {name: _to_torch(kind, leaf) for name, (kind, leaf) in _named_leaves(network)}


class UNet2D(nnx.Module):
    """A network `(step, x) -> [H, W, out_channels]`, the function of a `UNet2DModel`.

    It is a JAX pytree whose leaves are its parameters; calling it changes nothing in it. `unet2d`
    makes one from a checkpoint.

    Args:
        config: what the `config.json` of a `UNet2DModel` holds; see `unsupported`.
        rngs: the source of the initial parameters.

    Raises:
        ValueError: if the configuration cannot be built; see `unsupported`.
    """

    def __init__(self, config: Mapping[str, Any], *, rngs: nnx.Rngs):
        if reason := unsupported(config):
            raise ValueError(f"cannot build this UNet2DModel: {reason}")
        s = Settings(**given_of(config))
        widths = s.block_out_channels
        self.channels, self.multiple = s.in_channels, 2 ** (len(widths) - 1)
        self.centred, self.fourier = s.center_input_sample, s.time_embedding_type == "fourier"
        self.labels = s.class_embed_type or ("index" if s.num_class_embeds else None)
        self.time_proj = Fourier(widths[0]) if self.fourier else Positional(s)
        self.time_embedding = TimeEmbedding(s, rngs=rngs)
        self.class_embedding = class_embedding(s, self.labels, rngs=rngs)
        self.conv_in = convolution(s.in_channels, widths[0], rngs=rngs)
        self.down_blocks = nnx.List([Down(s, level, rngs=rngs) for level in range(len(widths))])
        self.mid_block = Middle(s, rngs=rngs) if s.mid_block_type else None
        self.up_blocks = nnx.List([Up(s, level, rngs=rngs) for level in range(len(widths))])
        self.conv_norm_out = normalisation(widths[0], s.norm_num_groups, s, rngs=rngs)
        self.conv_out = convolution(widths[0], s.out_channels, rngs=rngs)

    def __call__(
        self,
        step: int | float | Float[Array, ""] | Int[Array, ""],
        x: Float[Array, "H W C"],
        label: int | float | Float[Array, "..."] | Int[Array, ""] | None = None,
    ) -> Float[Array, "H W out"]:
        """The network's output for one sample.

        Args:
            step: time step (or, if "fourier", noise level), in the checkpoint's own units.
            x: one sample `[H, W, C]`; map over a batch with `jax.vmap`. H and W are multiples
                of 2 to the power of the number of times that the network halves them.
            label: what the network is conditioned on, where it is: the class, for
                `num_class_embeds`; a number, for `class_embed_type="timestep"`; a vector as
                long as the embedding of the time step, for `"identity"`.

        Returns:
            The output `[H, W, out_channels]`, in the wider of x's and the parameters' dtypes;
            the features of the time step are in float32 or wider.

        Raises:
            ValueError: if x has not the shape of one sample, or there is a label where the network
                takes none, none where it takes one, or one it does not know.

        Notes:
            One network evaluation. An attention at resolution `h x w` holds `(h w)^2` numbers
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
        h = self.conv_out(nnx.silu(normed(self.conv_norm_out, h)))
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
                f"{self.multiple}, got {x.shape}: map over a batch with jax.vmap, move the "
                "channels last, or pad"
            )
        if (label is None) != (self.labels is None):
            takes = f"takes a label ({self.labels}), got none" if self.labels else "takes no label"
            raise ValueError(f"this network {takes}{'' if self.labels else ', got one'}")
        if isinstance(self.class_embedding, nnx.Embed) and is_concrete(label):
            classes = self.class_embedding.num_embeddings
            if not 0 <= int(label) < classes:
                raise ValueError(f"expected a class from 0 to {classes - 1}, got {label}")


def _renamed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under present names; an old one beside its present one stays."""
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
    """A tensor in JAX's layout: kernels are `[*window, in, out]`, torch's `[out, in,
    *window]`."""
    shape = leaf.shape
    if kind == "kernel":
        shape = (shape[-1], shape[-2], *shape[:-2])
    if found.shape != shape:
        raise ValueError(f"tensor {name} should be of shape {shape}, got {found.shape}")
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"tensor {name} should hold floating-point numbers, got {found.dtype}")
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

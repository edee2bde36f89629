"""Operations on shapes, and new tensors."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from scoresens.importers.aten.registry import axes_of, enter, operation

END = 2**63 - 1  # torch's "to the end" of a slice

# ------------------------------------------------------------------ shapes

enter({
    "view.default reshape.default _unsafe_view.default view_copy.default": jnp.reshape,
    "permute.default": lambda x, dims: jnp.transpose(x, dims),
    "transpose.int": lambda x, dim0, dim1: jnp.swapaxes(x, dim0, dim1),
    "t.default": lambda x: x.T,
    "movedim.int movedim.intlist": jnp.moveaxis,
    "unsqueeze.default": lambda x, dim: jnp.expand_dims(x, dim),
    "repeat.default tile.default": lambda x, repeats: jnp.tile(x, repeats),
    "repeat_interleave.self_int":
        lambda x, repeats, dim=None, output_size=None: jnp.repeat(x, repeats, dim),
    "cat.default": lambda tensors, dim=0: jnp.concatenate(tensors, dim),
    "stack.default": lambda tensors, dim=0: jnp.stack(tensors, dim),
    "split.Tensor": lambda x, size, dim=0: _split(x, size, dim),
    "split_with_sizes.default":
        lambda x, sizes, dim=0: jnp.split(x, np.cumsum(sizes)[:-1].tolist(), dim),
    "chunk.default": lambda x, chunks, dim=0: _split(x, -(-x.shape[dim] // chunks), dim),
    "unbind.int": lambda x, dim=0: [jnp.take(x, i, dim) for i in range(x.shape[dim])],
    "narrow.default": lambda x, dim, start, length:
        lax.slice_in_dim(x, start, start + length, axis=dim % x.ndim),
    "select.int": lambda x, dim, index: jnp.take(x, index % x.shape[dim], dim),
    "index.Tensor": lambda x, indices: x[tuple(slice(None) if i is None else i for i in indices)],
    "index_select.default": lambda x, dim, index: jnp.take(x, index, dim),
    "flip.default": lambda x, dims: jnp.flip(x, tuple(dims)),
    "roll.default": lambda x, shifts, dims=(): jnp.roll(x, tuple(shifts), axes_of(dims)),
    "tril.default": lambda x, diagonal=0: jnp.tril(x, diagonal),
    "triu.default": lambda x, diagonal=0: jnp.triu(x, diagonal),
    "constant_pad_nd.default": lambda x, widths, value=0: pad(x, widths, "constant", value),
})  # fmt: skip


def _split(x, size, dim):
    return jnp.split(x, list(range(size, x.shape[dim], size)), dim)


@operation("flatten.using_ints")
def flatten(x, start_dim=0, end_dim=-1):
    start, end = start_dim % x.ndim, end_dim % x.ndim
    return jnp.reshape(x, (*x.shape[:start], -1, *x.shape[end + 1 :]))


@operation("unflatten.int")
def unflatten(x, dim, sizes):
    dim %= x.ndim
    return jnp.reshape(x, (*x.shape[:dim], *sizes, *x.shape[dim + 1 :]))


@operation("squeeze.default", "squeeze.dim", "squeeze.dims")
def squeeze(x, dim=None):
    asked = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    return jnp.squeeze(x, tuple(i % x.ndim for i in asked if x.shape[i] == 1))


@operation("expand.default")
def expand(x, size, implicit=False):
    old = (1,) * (len(size) - x.ndim) + x.shape
    return jnp.broadcast_to(x, [o if s == -1 else s for o, s in zip(old, size, strict=True)])


@operation("slice.Tensor")
def slice_(x, dim=0, start=None, end=None, step=1):
    return lax.slice_in_dim(*_bounds(x, dim, start, end), step, dim % x.ndim)


def _bounds(x, dim, start, end):
    size = x.shape[dim]
    start, stop, _ = slice(start, None if end == END else end).indices(size)
    return x, start, max(start, stop)


@operation("gather.default")
def gather(x, dim, index, sparse_grad=False):
    sizes = [slice(None if i == dim % x.ndim else size) for i, size in enumerate(index.shape)]
    return jnp.take_along_axis(x[tuple(sizes)], index, dim)


PADDINGS = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@operation("pad.default")
def pad(x: Array, widths: Sequence[int], mode: str = "constant", value: float | None = None):
    """`widths` counts from the last axis: (before, after), (before, after) of the one above, ..."""
    pairs = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    x = lax.slice(  # a negative width cuts away
        x,
        [max(0, -before) for before, _ in pairs],
        [size - max(0, -after) for size, (_, after) in zip(x.shape, pairs, strict=True)],
    )
    pairs = [(max(0, before), max(0, after)) for before, after in pairs]
    if mode == "constant":
        return jnp.pad(x, pairs, constant_values=0 if value is None else value)
    return jnp.pad(x, pairs, PADDINGS[mode])


# ------------------------------------------------------------------ new tensors


@operation("arange.default", "arange.start", "arange.start_step")
def arange(start, end=None, step=1, dtype=None, **ignored):
    start, end = (0, start) if end is None else (start, end)
    return jnp.arange(start, end, step, dtype=dtype)


enter({
    "linspace": lambda start, end, steps, dtype=None, **_:
        jnp.linspace(start, end, steps, dtype=dtype),
    "full": lambda size, value, dtype=None, **_: jnp.full(size, value, dtype),
    "zeros": lambda size, dtype=None, **_: jnp.zeros(size, dtype),
    "ones": lambda size, dtype=None, **_: jnp.ones(size, dtype),
    "full_like": lambda x, value, dtype=None, **_: jnp.full_like(x, value, dtype=dtype),
    "zeros_like": lambda x, dtype=None, **_: jnp.zeros_like(x, dtype=dtype),
    "ones_like": lambda x, dtype=None, **_: jnp.ones_like(x, dtype=dtype),
    "new_zeros": lambda x, size, dtype=None, **_:
        jnp.zeros(size, x.dtype if dtype is None else dtype),
    "new_ones": lambda x, size, dtype=None, **_:
        jnp.ones(size, x.dtype if dtype is None else dtype),
    "scalar_tensor": lambda value, dtype=None, **_: jnp.asarray(value, dtype),
}, "default")  # fmt: skip

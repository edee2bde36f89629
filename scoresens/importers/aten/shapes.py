"""Operations on shapes, and new tensors."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from scoresens.importers.aten.registry import axes_of, operation

END = 2**63 - 1  # torch's "to the end" of a slice

# ------------------------------------------------------------------ shapes


@operation("view.default", "reshape.default", "_unsafe_view.default", "view_copy.default")
def view(x, shape):
    return jnp.reshape(x, shape)


@operation("flatten.using_ints")
def flatten(x, start_dim=0, end_dim=-1):
    start, end = start_dim % x.ndim, end_dim % x.ndim
    return jnp.reshape(x, (*x.shape[:start], -1, *x.shape[end + 1 :]))


@operation("unflatten.int")
def unflatten(x, dim, sizes):
    dim %= x.ndim
    return jnp.reshape(x, (*x.shape[:dim], *sizes, *x.shape[dim + 1 :]))


@operation("permute.default")
def permute(x, dims):
    return jnp.transpose(x, dims)


@operation("transpose.int")
def transpose(x, dim0, dim1):
    return jnp.swapaxes(x, dim0, dim1)


@operation("t.default")
def t(x):
    return x.T


@operation("movedim.int", "movedim.intlist")
def movedim(x, source, destination):
    return jnp.moveaxis(x, source, destination)


@operation("unsqueeze.default")
def unsqueeze(x, dim):
    return jnp.expand_dims(x, dim)


@operation("squeeze.default", "squeeze.dim", "squeeze.dims")
def squeeze(x, dim=None):
    asked = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    return jnp.squeeze(x, tuple(i % x.ndim for i in asked if x.shape[i] == 1))


@operation("expand.default")
def expand(x, size, implicit=False):
    old = (1,) * (len(size) - x.ndim) + x.shape
    return jnp.broadcast_to(x, [o if s == -1 else s for o, s in zip(old, size, strict=True)])


@operation("repeat.default", "tile.default")
def repeat(x, repeats):
    return jnp.tile(x, repeats)


@operation("repeat_interleave.self_int")
def repeat_interleave(x, repeats, dim=None, output_size=None):
    return jnp.repeat(x, repeats, dim)


@operation("cat.default")
def cat(tensors, dim=0):
    return jnp.concatenate(tensors, dim)


@operation("stack.default")
def stack(tensors, dim=0):
    return jnp.stack(tensors, dim)


@operation("split.Tensor")
def split(x, size, dim=0):
    return jnp.split(x, list(range(size, x.shape[dim], size)), dim)


@operation("split_with_sizes.default")
def split_with_sizes(x, sizes, dim=0):
    return jnp.split(x, np.cumsum(sizes)[:-1].tolist(), dim)


@operation("chunk.default")
def chunk(x, chunks, dim=0):
    return split(x, -(-x.shape[dim] // chunks), dim)


@operation("unbind.int")
def unbind(x, dim=0):
    return [jnp.take(x, i, dim) for i in range(x.shape[dim])]


@operation("slice.Tensor")
def slice_(x, dim=0, start=None, end=None, step=1):
    return lax.slice_in_dim(*_bounds(x, dim, start, end), step, dim % x.ndim)


@operation("narrow.default")
def narrow(x, dim, start, length):
    return lax.slice_in_dim(x, start, start + length, axis=dim % x.ndim)


def _bounds(x, dim, start, end):
    size = x.shape[dim]
    start, stop, _ = slice(start, None if end == END else end).indices(size)
    return x, start, max(start, stop)


@operation("select.int")
def select(x, dim, index):
    return jnp.take(x, index % x.shape[dim], dim)


@operation("index.Tensor")
def index(x, indices):
    return x[tuple(slice(None) if i is None else i for i in indices)]


@operation("index_select.default")
def index_select(x, dim, index):
    return jnp.take(x, index, dim)


@operation("gather.default")
def gather(x, dim, index, sparse_grad=False):
    sizes = [slice(None if i == dim % x.ndim else size) for i, size in enumerate(index.shape)]
    return jnp.take_along_axis(x[tuple(sizes)], index, dim)


@operation("flip.default")
def flip(x, dims):
    return jnp.flip(x, tuple(dims))


@operation("roll.default")
def roll(x, shifts, dims=()):
    return jnp.roll(x, tuple(shifts), axes_of(dims))


@operation("tril.default")
def tril(x, diagonal=0):
    return jnp.tril(x, diagonal)


@operation("triu.default")
def triu(x, diagonal=0):
    return jnp.triu(x, diagonal)


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


@operation("constant_pad_nd.default")
def constant_pad_nd(x, widths, value=0):
    return pad(x, widths, "constant", value)


# ------------------------------------------------------------------ new tensors


@operation("arange.default", "arange.start", "arange.start_step")
def arange(start, end=None, step=1, dtype=None, **ignored):
    start, end = (0, start) if end is None else (start, end)
    return jnp.arange(start, end, step, dtype=dtype)


@operation("linspace.default")
def linspace(start, end, steps, dtype=None, **ignored):
    return jnp.linspace(start, end, steps, dtype=dtype)


@operation("full.default")
def full(size, value, dtype=None, **ignored):
    return jnp.full(size, value, dtype)


@operation("zeros.default")
def zeros(size, dtype=None, **ignored):
    return jnp.zeros(size, dtype)


@operation("ones.default")
def ones(size, dtype=None, **ignored):
    return jnp.ones(size, dtype)


@operation("full_like.default")
def full_like(x, value, dtype=None, **ignored):
    return jnp.full_like(x, value, dtype=dtype)


@operation("zeros_like.default")
def zeros_like(x, dtype=None, **ignored):
    return jnp.zeros_like(x, dtype=dtype)


@operation("ones_like.default")
def ones_like(x, dtype=None, **ignored):
    return jnp.ones_like(x, dtype=dtype)


@operation("new_zeros.default")
def new_zeros(x, size, dtype=None, **ignored):
    return jnp.zeros(size, x.dtype if dtype is None else dtype)


@operation("new_ones.default")
def new_ones(x, size, dtype=None, **ignored):
    return jnp.ones(size, x.dtype if dtype is None else dtype)


@operation("scalar_tensor.default")
def scalar_tensor(value, dtype=None, **ignored):
    return jnp.asarray(value, dtype)

"""A data set whose points are divided over the devices of a mesh axis.

Inside `jax.shard_map` each device holds n of the N points, and the shard answers for all of them:
with L_i the log-density of device i's part of the law, and D_i that part's denoiser,

    log rho_tau(x) = logsumexp_i L_i        D(x) = sum_i softmax_i(L_i) D_i

so that devices exchange one number and one image for each x, never points. Sums over points
exchange their totals. `attribute` divides the paths over the same axis besides, and exchanges
where they have been (`own_rows`, `all_rows`): nothing is exchanged while a path is followed.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from scoresens._checks import wide
from scoresens._pytrees import register_dataclass
from scoresens.laws.measures import Points, Posterior, Sums

DIVIDED = ("points", "weights", "coordinates")  # what has a row a point


@register_dataclass
@dataclass(frozen=True)
class Shard(Points):
    """What one device holds of N points; made by `divided`, used inside `jax.shard_map`.

    Points `[n, *shape]` beyond the last are copies of weight zero. Weights `[n]` sum to 1 over all
    devices.
    """

    axis: str = field(default="", metadata={"static": True})  # of the mesh
    count: int = field(default=0, metadata={"static": True})  # N

    @property
    def originals(self):
        return jnp.clip(self.count - self.first, 0, len(self))

    @property
    def first(self) -> Array:
        """The number of this device's first point."""
        return jax.lax.axis_index(self.axis) * len(self)

    @property
    def normalized_weights(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.weights

    def posterior(self, tau, x):
        return combined(super().posterior(tau, x), self)

    def weighted_sums(self, tau, x, reference, coefficients):
        return summed(super().weighted_sums(tau, x, reference, coefficients), self)

    def sums(self, tau, x, weights):
        found = jax.lax.all_gather(super().sums(tau, x, weights), self.axis)
        return Sums.of(found.mass, found.gain, found.mean)


def divided(points: Points, mesh: Mesh, axis: str) -> Shard:
    """The points with their weights, divided over an axis of a mesh, as arrays of JAX.

    Points on the host (`Points.on_host`: an array, a memory map, a `Stream`) are read by the piece:
    no device ever has more of them than its own.

    Args:
        points: N points.
        mesh: the devices.
        axis: along which they are divided; the other axes have copies.

    Returns:
        A shard of all devices together: hand it to `jax.shard_map` with `specs` of it.
    """
    count, place = len(points), NamedSharding(mesh, P(axis))
    total = count + -count % mesh.shape[axis]

    def piece(index):
        start, stop, _ = index[0].indices(total)
        rows = np.asarray(points.points[min(start, count - 1) : stop], wide(points.points.dtype))
        lacking = stop - start - len(rows)
        return np.pad(rows, ((0, lacking), *((0, 0),) * (rows.ndim - 1)), mode="edge")

    images = jax.make_array_from_callback((total, *points.points.shape[1:]), place, piece)
    weights = np.pad(np.asarray(points.normalized_weights), (0, total - count))
    weights = jax.device_put(weights, place)
    bumps = points.bandwidth, points.kernel, points.precision
    shard = Shard(images, weights, *bumps, axis, count)
    return cast(Shard, shard.with_kernel(points.kernel, points.bandwidth))


def specs(data: Points) -> Any:
    """How `jax.shard_map` hands data to each device: of a shard its part, else the whole."""
    if not isinstance(data, Shard):
        return P()

    def spec(path, _):
        return P(data.axis) if path[0].name in DIVIDED else P()

    return jax.tree_util.tree_map_with_path(spec, data)


def summed(part: Any, data: Points) -> Any:
    """Sums over all points from those over each device's."""
    return jax.lax.psum(part, data.axis) if isinstance(data, Shard) else part


def combined(part: Posterior, data: Points) -> Posterior:
    """The posterior of the whole law from that of each device's points."""
    if not isinstance(data, Shard):
        return part
    top = jax.lax.pmax(part.gain, data.axis)
    mass = jnp.exp(part.gain - top)
    total = jax.lax.psum(mass, data.axis)
    share = (mass / total).reshape(*mass.shape, *(1,) * (part.mean.ndim - mass.ndim))
    mean = jax.lax.psum(jnp.where(share > 0, share * part.mean, 0), data.axis)
    return Posterior(top + jnp.log(total), mean)


def own_rows(rows: Any, data: Points) -> Any:
    """Of arrays `[M, ...]` that all devices have, those that this device works on: all, unless the
    data are a shard and its devices divide M."""
    if not isinstance(data, Shard):
        return rows
    count, devices = len(jax.tree.leaves(rows)[0]), jax.lax.axis_size(data.axis)
    if count % devices:
        return rows
    size, first = count // devices, jax.lax.axis_index(data.axis) * (count // devices)
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, size), rows)


def all_rows(found: Any, axis: str, place: int) -> Any:
    """The arrays of all devices on a mesh axis, along the arrays' axis at that place."""

    def gathered(leaf):
        return jax.lax.all_gather(leaf, axis, axis=place, tiled=True)

    return jax.tree.map(gathered, found)


def ranked(
    best: tuple[Float[Array, "... k"], Array], data: Points
) -> tuple[Float[Array, "... k"], Array]:
    """The largest of all devices' largest, by the numbers the points have in the whole set."""
    if not isinstance(data, Shard):
        return best
    values, places = best
    found = (values, jnp.where(places < 0, places, places + data.first))
    values, places = all_rows(found, data.axis, values.ndim - 1)
    top, at = jax.lax.top_k(values, best[0].shape[-1])
    return top, jnp.take_along_axis(places, at, -1)

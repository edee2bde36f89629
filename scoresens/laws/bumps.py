r"""Noised data points, in blocks.

The distances of R places to B points, of which kernels are made (`kernels`), are one product of
matrices: with c near the points,

    |x - y|^2 = |x - c|^2 + |y - c|^2 - 2 (x - c).(y - c)

**Only the last term is a product.** Accelerators round a product's operands, and |y - c|^2 among
them would be an error of an exponent: influences wrong by a factor of 20 at d = 3,072. What is
known of a point or of a place alone is added entry by entry.

**Log-kernels are ratios** to that at a **reference** distance, for the Gaussian

    -( |y - c|^2 - 2 (x - c).(y - c) ) / 2v,      reference^2 = |x - c|^2

and what all points have in common waits outside (`Places.gain`).

**Along axes** that a kernel weighs (6.7), distances are those of coordinates along them
(`Kernel.coordinates`), which stand for the points in this one product.

**Small noise.** In float32 the expansion loses about 1e-7 |x - c||y - c| / v in log K. c is
therefore the mean of the first points, as they weigh, or that of the axes, and where the loss would
show, distances to the nearest few points of each block are taken again as exact differences: only
those matter there, and their reference is 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from scoresens._products import Precision, contracted, inner, product
from scoresens._pytrees import register_dataclass
from scoresens.laws.kernels import BREADTH, Kernel
from scoresens.laws.noises import Gaussian
from scoresens.laws.processes import Scalar

# A table of kernels, R places by B points, is the working memory, and products run fastest while it
# stays in a processor's cache: 2048 points at a time, by 512 places (`sensitivity.tables`, which
# knows how many there are) are 4 MB in float32. Under a caller's `vmap` R is the caller's.
# Accelerators want more at once (`room`).
BLOCK = 2048
NUMBERS = 2**25  # of a block of points at most: 128 MB in float32
NEAREST = 8  # exact distances in each block


def room() -> int:
    """How many times a CPU's points, and places, a block has room for on this device: products too
    small for its cores leave an accelerator waiting. By JAX's default backend, while tracing."""
    return 1 if jax.default_backend() == "cpu" else 8


def block_of(size: int) -> int:
    """How many points of `size` numbers a block has."""
    return max(1, min(BLOCK * room(), NUMBERS // size))


@runtime_checkable
class Bumped(Protocol):
    """What says which bumps points have: a law, or a smoothed model's."""

    bandwidth: Scalar
    kernel: Kernel
    precision: Precision


class Places(NamedTuple):
    """Where bumps are seen from, each place at its noise level. Made by `Origin.places`."""

    x: Float[Array, "*R d"]
    offset: Float[Array, "*R d"]  # from the centre
    seen: Float[Array, "*R r"]  # as distances are taken: the offset, or coordinates along axes
    square: Float[Array, "*R"]  # |x - c|^2, as they are taken
    spread: Float[Array, "*R"]  # v
    reference: Float[Array, "*R"]  # the squared distance that log-kernels are measured from
    over: Float[Array, "*R"]  # v less the yardstick's variance

    def gain(self, kernel: Kernel) -> Float[Array, "*R"]:
        """log K at the reference distance, as a gain."""
        return kernel.gain(self.reference, self.spread, self.over, self.x.shape[-1])


class Origin(NamedTuple):
    """What points are measured from. Made by `Origin.of`."""

    centre: Float[Array, " d"]
    square: Float[Array, ""]  # mean squared distance of the points from it

    @classmethod
    def of(
        cls, points: Any, weights: Any = None, kernel: Kernel = Gaussian(), dtype: Any = None
    ) -> "Origin":
        """Of points `[N, *shape]`, with weights `[N]`: by the first of them, cheap for millions. A
        point of no weight may be anywhere."""
        shape, centre = points.shape[1:], kernel.centre(points.shape[1:])
        if kernel.sample_shape(shape) != shape:  # places are no points: nothing to weigh
            return cls(jnp.asarray(centre, dtype), jnp.zeros((), dtype))
        count = block_of(math.prod(shape))
        first = jnp.asarray(points[:count], dtype)
        first = first.reshape(len(first), -1)
        share = jnp.full(len(first), 1 / len(first), first.dtype)
        if weights is not None:
            given = jax.lax.stop_gradient(jnp.asarray(weights[:count], first.dtype))
            total = jnp.sum(given)
            share = jnp.where(total > 0, given / jnp.where(total > 0, total, 1), share)
        centre = product(first.T, share) if centre is None else centre.astype(first.dtype)
        return cls(centre, inner(share, jnp.sum(jnp.square(first - centre), -1)))

    def places(
        self, bandwidth: Scalar, kernel: Kernel, tau: Scalar | Array, x: Float[Array, "*R d"]
    ) -> Places:
        """The places x at noise levels of a shape that broadcasts to `[*R]`."""
        offset = x - self.centre
        seen = offset if kernel.axes is None else kernel.coordinates(x)
        square = jnp.sum(jnp.square(seen), -1)
        spread = jnp.broadcast_to(kernel.spread(bandwidth, tau), square.shape)
        reference = jnp.where(_far(spread, self.square), square, 0)
        over = jnp.broadcast_to(kernel.spread(bandwidth, 0.0) - BREADTH**2, square.shape)
        return Places(x, offset, seen, square, spread, reference, over)


def _far(spread: Array, square: Array) -> Array:
    """Whether the expansion is good enough, for points so far from the centre: it loses 100 units
    of rounding."""
    return spread > square / 100


def bumps_of(
    points: Float[Array, "B n"],
    origin: Origin,
    kernel: Kernel,
    precision: Precision = None,
    coordinates: Float[Array, "B r"] | None = None,
) -> Any:
    """What stands for B points: `Bumps`, or what their kernel says."""
    block = kernel.block(points, precision)
    return Bumps.of(points, origin, kernel, precision, coordinates) if block is None else block


@register_dataclass
@dataclass(frozen=True)
class Bumps:
    """B points with their bumps. Made by `Bumps.of`. All products with points are here."""

    points: Float[Array, "B d"]
    offsets: Float[Array, "B d"]  # from the centre
    coordinates: Float[Array, "B r"] | None  # None: the kernel has no axes
    norms: Float[Array, " B"]  # squared distances from the centre, as they are taken
    kernel: Kernel
    precision: Precision = field(metadata={"static": True})  # of the products

    @classmethod
    def of(
        cls,
        points: Float[Array, "B d"],
        origin: Origin,
        kernel: Kernel = Gaussian(),
        precision: Precision = None,
        coordinates: Float[Array, "B r"] | None = None,
    ) -> "Bumps":
        """The bumps at these points; their coordinates, if they are not given, are taken here."""
        offsets = points - origin.centre
        if kernel.axes is not None and coordinates is None:
            coordinates = kernel.coordinates(points)
        seen = offsets if coordinates is None else coordinates
        norms = jnp.sum(jnp.square(seen), -1)
        return cls(points, offsets, coordinates, norms, kernel, precision)

    def along(self, rows: Float[Array, "*R d"], places: Places) -> Float[Array, "*R B"]:
        """Products of rows and points, from the centre; the same from all places."""
        return self._products(rows, self.offsets)

    def means(self, places: Places) -> Float[Array, "B d"]:
        """The points."""
        return self.points

    def summed(self, terms: Float[Array, "*R B"], places: Places) -> Float[Array, "*R d"]:
        """Sums of the points, from the centre, times rows of terms; the same from all places."""
        return contracted("...b,bd->...d", terms, self.offsets, self.precision)

    def log_kernels(self, places: Places) -> Float[Array, "*R B"]:
        """log K(x; y) of each place and point, less that at the place's reference distance."""
        each = places.square, places.spread, places.reference
        square, spread, reference = (part[..., None] for part in each)

        def ratio(excess):  # in both branches, to write the table once
            return self.kernel.ratio(excess, reference, spread, places.x.shape[-1])

        def expanded(along):
            return ratio((square - reference) + (self.norms - 2 * along))

        def exact_where_near(along):
            squares = square + (self.norms - 2 * along)
            nearest = jax.lax.top_k(-squares, min(NEAREST, len(self.points)))[1]
            exact = self._squares(nearest, places)
            squares = jnp.put_along_axis(squares, nearest, exact, -1, inplace=False)
            return ratio(squares - reference)

        harmless = _far(jnp.min(places.spread), jnp.max(self.norms))
        along = self._products(places.seen, self._seen)
        return jax.lax.cond(harmless, expanded, exact_where_near, along)

    @property
    def _seen(self):
        """The points, as distances are taken."""
        return self.offsets if self.coordinates is None else self.coordinates

    def _squares(self, which, places):
        """Squared distances to some of the points, without the expansion."""
        if self.coordinates is None:
            return jnp.sum(jnp.square(self.points[which] - places.x[..., None, :]), -1)
        return jnp.sum(jnp.square(self.coordinates[which] - places.seen[..., None, :]), -1)

    def _products(self, rows, table):
        return contracted("...d,bd->...b", rows, table, self.precision)


def safe_log(weights: Array) -> Array:
    """log w with -inf at 0 and a gradient that is 0 there."""
    return jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1.0)), -jnp.inf)


def weighed(weights: Float[Array, " n"], logs: Float[Array, "*R n"]) -> Float[Array, "*R n"]:
    """`w exp(log)`, by the sum of the logarithms where w > 0, so that neither a tiny weight nor a
    large log is lost; where w = 0 it is 0 with the derivatives of the product (of the weight: up to
    e^-30 of the largest number)."""
    some = weights > 0
    logs = logs + jnp.log(jnp.where(some, weights, 1))
    return jnp.where(some, 1, weights) * finite_exp(logs)


def signed(coefficients: Float[Array, "*K n"], logs: Float[Array, " n"]) -> Float[Array, "*K n"]:
    """`c exp(log)` of coefficients of any sign; 0 times what is beyond all numbers is 0."""
    beyond = (logs > most_of(logs)) & (coefficients != 0)
    endless = jnp.where(coefficients > 0, jnp.inf, -jnp.inf)
    return jnp.where(beyond, endless, coefficients * finite_exp(logs))


def most_of(logs: Array) -> float:
    """The logarithm of e^-30 of the largest number."""
    return math.log(jnp.finfo(logs.dtype).max) - 30


def finite_exp(logs: Array) -> Array:
    """exp, at most that of `most_of`, so that 0 times it and its derivatives is 0."""
    return jnp.exp(logs - jax.lax.stop_gradient(jnp.maximum(logs - most_of(logs), 0)))


class Softmax(NamedTuple):
    """Means of rows `[*R]` over points that are seen a block at a time, weighted by `w K`. Nothing
    is exponentiated before it is measured from the largest."""

    top: Float[Array, "*R"]  # the largest log(w K) so far; of points without weight, while all are
    mass: Float[Array, "*R"]  # the sum of w K / exp(top)
    total: Float[Array, "*R d"]  # the same sum of the points, from the centre

    @classmethod
    def empty(cls, x: Float[Array, "*R d"]) -> "Softmax":
        """Before the first block."""
        top = jnp.full(x.shape[:-1], jnp.finfo(x.dtype).min, x.dtype)
        return cls(top, jnp.zeros_like(top), jnp.zeros_like(x))

    def add(
        self,
        log_kernels: Float[Array, "*R B"],
        weights: Float[Array, " B"],
        bumps: Any,
        places: Places,
    ) -> "Softmax":
        """With one more block."""
        some, before = jnp.any(weights > 0), self.mass > 0
        least = jnp.finfo(log_kernels.dtype).min
        best = jnp.max(log_kernels + safe_log(jnp.where(some, weights, 1)), -1, initial=least)
        # Only what sums are measured from. The maximum's own derivative would be nan wherever a
        # compiler rounds the logits twice, and neither copy equals the other's largest.
        higher, other = jnp.maximum(self.top, best), jnp.where(some, best, self.top)
        top = jax.lax.stop_gradient(jnp.where(some == before, higher, other))
        kept, terms = finite_exp(self.top - top), weighed(weights, log_kernels - top[..., None])
        total = kept[..., None] * self.total + bumps.summed(terms, places)
        return Softmax(top, kept * self.mass + jnp.sum(terms, -1), total)

    @property
    def log_mass(self) -> Float[Array, "*R"]:
        """The logarithm of the sum of all exponentiated logits."""
        return self.top + jnp.log(self.mass)

    def mean(self, origin: Origin) -> Float[Array, "*R d"]:
        """The weighted mean of the points."""
        return origin.centre + self.total / self.mass[..., None]


class Block(NamedTuple):
    """B consecutive of N points. The last block begins early, over points that were seen before."""

    start: Int[Array, ""] | int
    fresh: Bool[Array, " B"]  # which points were not seen before

    def rows(self, table: Shaped[Array, "N *shape"]) -> Shaped[Array, "B *shape"]:
        """This block of a table with a row a point."""
        return jax.lax.dynamic_slice_in_dim(table, self.start, len(self.fresh), 0)

    def columns(self, table: Float[Array, "*K N"], seen: float) -> Float[Array, "*K B"]:
        """This block of a table with a column a point, those that were seen before set to
        `seen`."""
        part = jax.lax.dynamic_slice_in_dim(table, self.start, len(self.fresh), -1)
        return jnp.where(self.fresh, part, seen)

    def put(
        self, table: Shaped[Array, "N *shape"], rows: Shaped[Array, "B *shape"]
    ) -> Shaped[Array, "N *shape"]:
        """The table with this block's rows, those that were seen before once more."""
        return jax.lax.dynamic_update_slice_in_dim(table, rows, self.start, 0)


def over_blocks(add: Callable[[Any, Block], Any], carry: Any, count: int, size: int) -> Any:
    """`carry = add(carry, block)` over blocks of `size` of that many points."""
    size = min(count, size)
    if count == size:
        return add(carry, Block(0, jnp.ones(size, bool)))

    def step(carry, first):
        start = jnp.minimum(first, count - size)
        return add(carry, Block(start, start + jnp.arange(size) >= first)), None

    return jax.lax.scan(step, carry, jnp.arange(0, count, size))[0]

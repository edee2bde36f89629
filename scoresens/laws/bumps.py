r"""The kernel of noised data points, in blocks of points.

A point y that carries a bump of **bandwidth** h, the Gaussian N(y, h^2 I) in its place (h = 0: the
point itself), has at x and noise level tau the kernel and the posterior mean

    log K(x; y)  = log N(x; y, v I) = -|x - y|^2 / 2v - d/2 log 2 pi v,      v = tau^2 + h^2
    E[x_0|x, y]  = (h^2 x + tau^2 y) / (h^2 + tau^2)

and the distances of R places to B points are one product of matrices: with c near the points,

    |x - y|^2 = |x - c|^2 + |y - c|^2 - 2 (x - c).(y - c)

**Only the last term is a product.** Accelerators round a product's operands, and |y - c|^2 among
them would be an error of an exponent: influences wrong by a factor of 20 at d = 3,072. What is
known of a point or of a place alone is added entry by entry.

**Log-kernels are ratios.** log K is of the order of d, and float32 keeps of it no more than 1e-7 d:
at d = 196,608 posteriors were wrong by 2 %. What is exponentiated is therefore log K(x; y) - log K
at a **reference** distance, for the Gaussian

    -( |y - c|^2 - 2 (x - c).(y - c) ) / 2v,      reference^2 = |x - c|^2

and what all points have in common waits outside (`Places.gain`). For the same reason log-densities
are carried as **gains**, log rho + d/2 log(2 pi (tau^2 + c^2)), measured against a broad Gaussian's
constant (`yardstick`): what tells two laws apart is not lost among the constants of both.

**Small noise.** In float32 the expansion loses about 1e-7 |x - c||y - c| / v in log K. c is
therefore the mean of the first points, and where the loss would show, distances to the nearest few
points of each block are taken again as exact differences: only those matter there, and their
reference is 0.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scoresens._products import Precision, contracted
from scoresens._pytrees import register_dataclass
from scoresens.laws.processes import Scalar

# A table of kernels, R places by B points, is the working memory, and products run fastest while it
# stays in a processor's cache: 2048 points at a time, by 512 places (`sensitivity.tables`, which
# knows how many there are) are 4 MB in float32. Under a caller's `vmap` R is the caller's.
# Accelerators want more at once (`room`).
BLOCK = 2048
NEAREST = 8  # exact distances in each block
LOG_2PI = math.log(2 * math.pi)


def room() -> int:
    """How many times a CPU's points, and places, a block has room for on this device: products too
    small for its cores leave an accelerator waiting. By JAX's default backend, while tracing."""
    return 1 if jax.default_backend() == "cpu" else 8


def level_of(bandwidth: Scalar, tau: Scalar | Array) -> Array:
    """The noise level at which a smoothed law is met: `sqrt(tau^2 + h^2)`."""
    return jnp.sqrt(jnp.square(tau) + jnp.square(bandwidth))


BREADTH = 0.25  # c of the yardstick, for data of order 1


def yardstick(tau: Scalar | Array, size: int) -> Scalar | Array:
    """d/2 log(2 pi (tau^2 + c^2)): a gain minus its log-density."""
    return 0.5 * size * (jnp.log(jnp.square(tau) + BREADTH**2) + LOG_2PI)


def log_excess(spread: Scalar | Array, over: Scalar | Array) -> Array:
    """log of a variance over the yardstick's, `spread - over`, exact at both ends of the noise."""
    yard = spread - over
    near = over > -0.5 * yard
    apart = jnp.log(jnp.where(near, yard, spread) / yard)
    return jnp.where(near, jnp.log1p(jnp.where(near, over, 0) / yard), apart)


def shares(bandwidth: Scalar, tau: Scalar | Array) -> tuple[Array, Array]:
    """`h^2 / (h^2 + tau^2)` and `tau^2 / (h^2 + tau^2)`: of x and of y in the posterior mean."""
    bump, noise = jnp.square(bandwidth), jnp.square(tau)
    return bump / (bump + noise), noise / (bump + noise)


def smoothed_mean(bandwidth: Scalar, tau: Scalar | Array, x: Array, mean: Array) -> Array:
    """The posterior mean of a law smoothed by h, from that of the law itself at `level_of` (6.5);
    of one bump, from its point. Linear in (x, mean)."""
    of_x, of_y = shares(bandwidth, tau)
    return of_x * x + of_y * mean


class Kernel(abc.ABC):
    """A noised bump as a function of distance. A new one is a class with `evaluate`, a pytree."""

    @abc.abstractmethod
    def evaluate(self, squares: Array, spread: Array, size: int) -> Array:
        """log K, in nats, from `|x - y|^2`, v = tau^2 + h^2 (of shapes that broadcast), and d."""

    def gain(self, squares: Array, spread: Array, over: Array, size: int) -> Array:
        """log K as a gain: measured against a yardstick whose variance is `spread - over`."""
        constant = 0.5 * size * (jnp.log(spread - over) + LOG_2PI)
        return self.evaluate(squares, spread, size) + constant

    def ratio(self, excess: Array, reference: Array, spread: Array, size: int) -> Array:
        """log K at `reference + excess` minus log K at the squared distance `reference`; a kernel
        that knows it without a difference of large numbers is the better for it."""
        there = self.evaluate(reference + excess, spread, size)
        return there - self.evaluate(reference, spread, size)


@register_dataclass
@dataclass(frozen=True)
class Gaussian(Kernel):
    """N(x; y, v I), the kernel of Gaussian noise."""

    def evaluate(self, squares, spread, size):
        return (-0.5 / spread) * squares - 0.5 * size * (jnp.log(spread) + LOG_2PI)

    def gain(self, squares, spread, over, size):
        return (-0.5 / spread) * squares - 0.5 * size * log_excess(spread, over)

    def ratio(self, excess, reference, spread, size):
        return (-0.5 / spread) * excess


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
    square: Float[Array, "*R"]  # |x - c|^2
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
    def of(cls, points: Any, dtype: Any = None) -> "Origin":
        """Of points `[N, *shape]`: by the first of them, cheap for millions."""
        first = jnp.asarray(points[:BLOCK], dtype)
        first = first.reshape(len(first), -1)
        centre = jnp.mean(first, 0)
        return cls(centre, jnp.mean(jnp.sum(jnp.square(first - centre), -1)))

    def places(self, bandwidth: Scalar, tau: Scalar | Array, x: Float[Array, "*R d"]) -> Places:
        """The places x at noise levels of a shape that broadcasts to `[*R]`."""
        offset = x - self.centre
        square = jnp.sum(jnp.square(offset), -1)
        spread = jnp.broadcast_to(jnp.square(tau) + jnp.square(bandwidth), square.shape)
        reference = jnp.where(_far(spread, self.square), square, 0)
        over = jnp.broadcast_to(jnp.square(bandwidth) - BREADTH**2, square.shape)
        return Places(x, offset, square, spread, reference, over)


def _far(spread: Array, square: Array) -> Array:
    """Whether the expansion is good enough, for points so far from the centre: it loses 100 units
    of rounding."""
    return spread > square / 100


@register_dataclass
@dataclass(frozen=True)
class Bumps:
    """B points with their bumps. Made by `Bumps.of`. All products with points are here."""

    points: Float[Array, "B d"]
    offsets: Float[Array, "B d"]  # from the centre
    norms: Float[Array, " B"]  # squared, of the offsets
    kernel: Kernel
    precision: Precision = field(metadata={"static": True})  # of the products

    @classmethod
    def of(
        cls,
        points: Float[Array, "B d"],
        origin: Origin,
        kernel: Kernel = Gaussian(),
        precision: Precision = None,
    ) -> "Bumps":
        """The bumps at these points."""
        offsets = points - origin.centre
        return cls(points, offsets, jnp.sum(jnp.square(offsets), -1), kernel, precision)

    def along(self, rows: Float[Array, "*R d"]) -> Float[Array, "*R B"]:
        """Products of rows and points, from the centre."""
        return contracted("...d,bd->...b", rows, self.offsets, self.precision)

    def summed(self, terms: Float[Array, "*R B"]) -> Float[Array, "*R d"]:
        """Sums of the points, from the centre, times rows of terms."""
        return contracted("...b,bd->...d", terms, self.offsets, self.precision)

    def log_kernels(self, places: Places) -> Float[Array, "*R B"]:
        """log K(x; y) of each place and point, less that at the place's reference distance."""
        square, spread, reference = (part[..., None] for part in places[2:5])

        def ratio(excess):  # in both branches, to write the table once
            return self.kernel.ratio(excess, reference, spread, places.x.shape[-1])

        def expanded(along):
            return ratio((square - reference) + (self.norms - 2 * along))

        def exact_where_near(along):
            squares = square + (self.norms - 2 * along)
            nearest = jax.lax.top_k(-squares, min(NEAREST, len(self.points)))[1]
            exact = jnp.sum(jnp.square(self.points[nearest] - places.x[..., None, :]), -1)
            squares = jnp.put_along_axis(squares, nearest, exact, -1, inplace=False)
            return ratio(squares - reference)

        harmless = _far(jnp.min(places.spread), jnp.max(self.norms))
        return jax.lax.cond(harmless, expanded, exact_where_near, self.along(places.offset))


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
        self, log_kernels: Float[Array, "*R B"], weights: Float[Array, " B"], bumps: Bumps
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
        total = kept[..., None] * self.total + bumps.summed(terms)
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

    def rows(self, table: Float[Array, "N *shape"]) -> Float[Array, "B *shape"]:
        """This block of a table with a row a point."""
        return jax.lax.dynamic_slice_in_dim(table, self.start, len(self.fresh), 0)

    def columns(self, table: Float[Array, "*K N"], seen: float) -> Float[Array, "*K B"]:
        """This block of a table with a column a point, those that were seen before set to
        `seen`."""
        part = jax.lax.dynamic_slice_in_dim(table, self.start, len(self.fresh), -1)
        return jnp.where(self.fresh, part, seen)


def over_blocks(
    add: Callable[[Any, Block], Any], carry: Any, count: int, size: int | None = None
) -> Any:
    """`carry = add(carry, block)` over blocks of `size` (BLOCK, or what there is room for) of that
    many points."""
    size = min(count, size or BLOCK * room())
    if count == size:
        return add(carry, Block(0, jnp.ones(size, bool)))

    def step(carry, first):
        start = jnp.minimum(first, count - size)
        return add(carry, Block(start, start + jnp.arange(size) >= first)), None

    return jax.lax.scan(step, carry, jnp.arange(0, count, size))[0]

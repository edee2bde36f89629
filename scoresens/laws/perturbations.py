r"""Changes of the training data, as directions with a leading axis K.

A perturbation is K signed measures that add up to no mass,

    chi_k = sum_j c_kj (nu_j - rho),        rho_eps = rho + eps chi_k

over components nu_j (points, or the components of a measure). `eps` is called **mass**, and mass 1
means the whole of the named change: `add(y)` at mass 1 is the law of y alone, `remove` at mass 1 is
the data without its points, `reweight` and `replace` at mass 1 are the data with the new weights or
points.

A point can also be **moved**: `move` has the derivative of a component in its place (2.2), and at
mass 1 the point stands where its direction leads. Perturbations add up and scale.

A score changes by (2.1), which in the canonical frame is

    dD_k(x) = sum_j c_kj r_j (D_j - D),     r_j = nu_j,tau(x) / rho_tau(x),

and for a point y_j that moves along u_j by `d/dy_j [ r_j (D_j - D) ] . u_j`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.laws.bumps import Bumped
from scoresens.laws.learned import Learned
from scoresens.laws.measures import Law, Measure, Mixture, Points
from scoresens.laws.processes import Process, Scalar

Indices = Int[ArrayLike, " K"] | Sequence[int]


@register_dataclass
@dataclass(frozen=True)
class Part:
    """n components and what each of K directions does to their weights or their places.

    Coefficients `[K]` are those of `Points` of which each is a direction of its own, n = K: the
    diagonal of a table that nobody makes.
    """

    measure: Law
    coefficients: (
        Float[Array, "K n"] | Float[Array, " K"]
    )  # change of weight per unit of mass; of a move, the weight
    index: Int[Array, " n"] | None = None  # where they stand in the data; None: they are new
    velocity: Float[Array, "n *shape"] | None = None  # of a move, per unit of mass

    @property
    def rides(self) -> bool:
        """Whether its log-density is known along paths alone, where it must ride along."""
        return isinstance(self.measure, Learned)

    @property
    def single(self) -> bool:
        """Whether direction k has component k alone."""
        return self.coefficients.ndim == 1

    def sums(
        self, tau: Scalar, x: Float[Array, "*shape"], reference: Scalar
    ) -> tuple[Float[Array, " K"], Float[Array, "K *shape"]]:
        """`sum_j c_kj r_j` and `sum_j c_kj r_j D_j`, or their derivatives along the velocity."""

        def of(measure):
            ask = measure.single_sums if self.single else measure.weighted_sums
            return ask(tau, x, reference, self.coefficients)

        if self.velocity is None:
            return of(self.measure)
        still = cast(Points, self.measure)

        def at(points):
            return of(replace_field(still, points=points))

        return jax.jvp(at, (still.points,), (self.velocity,))[1]

    def scaled(self, factor: Scalar) -> "Part":
        """The part that does `factor` times as much."""
        if self.velocity is None:
            return replace_field(self, coefficients=factor * self.coefficients)
        return replace_field(self, velocity=factor * self.velocity)

    def __getitem__(self, which: Int[ArrayLike, " n"] | slice) -> "Part":
        """What it does in some of the directions."""
        found = replace_field(self, coefficients=self.coefficients[which])
        if not self.single:
            return found
        return replace_field(
            found,
            measure=cast(Points, self.measure).chosen(cast(Any, which)),
            index=None if self.index is None else self.index[which],
            velocity=None if self.velocity is None else self.velocity[which],
        )


@register_dataclass
@dataclass(frozen=True)
class Perturbation:
    """K directions in the space of data laws. Made by `add`, `remove`, `reweight`, `replace`,
    `move`.

    Those of equal K add up, and all of them scale: `0.5 * add(x) - 2 * remove(data, which)`.
    """

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        """K, the number of directions."""
        return self.parts[0].coefficients.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one data point."""
        return self.parts[0].measure.shape

    @property
    def learned(self) -> tuple[Learned, ...]:
        """The models among the components, whose log-densities must ride along."""
        return tuple(cast(Learned, part.measure) for part in self.parts if part.rides)

    def __getitem__(self, which: Int[ArrayLike, " n"] | slice) -> "Perturbation":
        """Some of the directions, by slice or by indices."""
        return Perturbation(tuple(part[which] for part in self.parts))

    def __add__(self, other: "Perturbation") -> "Perturbation":
        check_perturbation(other)
        if (len(self), self.shape) != (len(other), other.shape):
            raise ValueError(
                f"perturbations of {len(self)} directions of shape {self.shape} and of "
                f"{len(other)} directions of shape {other.shape} cannot be added up"
            )
        return Perturbation(self.parts + other.parts)

    def __mul__(self, factor: Scalar) -> "Perturbation":
        _checks.finite("factor", factor)
        return Perturbation(tuple(part.scaled(factor) for part in self.parts))

    __rmul__ = __mul__

    def __neg__(self) -> "Perturbation":
        return self * -1.0

    def __sub__(self, other: "Perturbation") -> "Perturbation":
        return self + -other

    def bumped_like(self, base: Bumped) -> "Perturbation":
        """Points without a bandwidth of their own take the bump of the law that they change."""
        return self._with(part.measure.bumped_like(base) for part in self.parts)

    def under(self, process: Process) -> "Perturbation":
        """The same, as the noise of a process makes the kernels of its points."""
        return self._with(part.measure.under(process) for part in self.parts)

    def sharp(self, bandwidth: Scalar) -> "Perturbation":
        """For a black box: points of a temperature, a width, a resolution or a spectral bias
        without them, and with this bandwidth."""
        laws = (part.measure for part in self.parts)
        return self._with(law.sharp(bandwidth) if isinstance(law, Points) else law for law in laws)

    def with_known(self, known: Sequence[Measure]) -> "Perturbation":
        """The same with each `learned` law replaced by what is known of it at one place."""
        here = iter(known)
        return self._with(next(here) if part.rides else part.measure for part in self.parts)

    def _with(self, laws: Iterable[Law]) -> "Perturbation":
        pairs = zip(self.parts, laws, strict=True)
        return Perturbation(tuple(replace_field(part, measure=law) for part, law in pairs))

    def denoiser_derivative(
        self,
        tau: Scalar,
        x: Float[Array, "*shape"],
        gain: Scalar,
        denoised: Float[Array, "*shape"],
    ) -> Float[Array, "K *shape"]:
        """dD_k = sum_j c_kj r_j (D_j - D) at one sample x, in the canonical frame (2.1), as far as
        their kernel says that it is learnt.

        Args:
            tau: noise level.
            x: `[*shape]`.
            gain: of log rho_tau(x), which r_j is taken against.
            denoised: D(x, tau), `[*shape]`.
        """
        mass, mean = jnp.zeros(len(self), x.dtype), jnp.zeros((len(self), *x.shape), x.dtype)
        for part in self.parts:
            sums = part.sums(tau, x, gain)
            mass, mean = mass + sums[0], mean + sums[1]
        change = mean - jnp.multiply.outer(mass, denoised)
        return self.parts[0].measure.kernel.learnt(change)


def add(new: Law | Float[ArrayLike, "K *shape"]) -> Perturbation:
    """Directions toward new data: `chi = nu - rho`, so `mass` is the share of nu in the new data.

    Args:
        new: images `[K, *shape]`, each its own direction; or a law, one direction toward the
            whole of it (K = 1): `Points`, a `GaussianMixture`, or another model, `Learned`.

    Raises:
        ValueError: no points, integers, NaN.
    """
    if isinstance(new, Law):
        weights = new.normalized_weights if isinstance(new, Mixture) else jnp.ones(1)
        return _added(new, weights[None])
    points = Points(_checks.samples("new", new))
    return _added(points, jnp.ones(len(points), points.points.dtype))


def remove(data: Points, which: Indices | Bool[ArrayLike, "*K N"]) -> Perturbation:
    """Directions away from some of the data: at mass 1 they are gone, and the rest share their
    weight.

    Args:
        data: the data set.
        which: indices `[K]`, each point its own direction; or a boolean mask `[N]` (one direction,
            the whole set) or `[K, N]`.

    Raises:
        ValueError: an index outside the data, an empty set, or nothing left.

    Notes:
        With w the removed weight, `c_j = -w_j / (1 - w)`: the derivative at mass 0 is the leave-out
        derivative.
    """
    index, taken = _chosen(data, which)
    if taken.ndim == 2:
        index, taken = _filled(index, taken)
    if (totals(taken) == len(data)).any():
        raise ValueError("remove was asked to take every point: nothing would be left of the data")
    taken = jnp.where(jnp.asarray(taken), data.normalized_weights[index], 0)
    left = 1 - totals(taken)
    if _checks.is_concrete(left) and bool(jnp.any(left <= 16 * jnp.finfo(left.dtype).eps)):
        raise ValueError(
            "remove was asked to take every point of positive weight: nothing would be left"
        )
    return _edited(data, index, -(taken.T / left).T)


def reweight(data: Points, weights: Float[ArrayLike, "*K N"]) -> Perturbation:
    """Directions toward the same points with other weights: at mass 1 the data carry `weights`.

    Args:
        data: the data set.
        weights: `[K, N]` or `[N]`, non-negative, rows of any positive sum (they are normalised).

    Raises:
        ValueError: weights that do not fit the data, negative, not finite, or all zero.
    """
    rows = jnp.atleast_2d(_checks.floating("weights", weights))
    _checks.weights("weights", rows, (rows.shape[0], len(data)))
    rows = rows / jnp.sum(rows, -1, keepdims=True)
    return _edited(data, np.arange(len(data)), rows - data.normalized_weights)


def replace(data: Points, index: Indices, new: Float[ArrayLike, "K *shape"]) -> Perturbation:
    """Directions that exchange a data point for another: `chi_k = w_i (new_k - data_i)`, i =
    index[k].

    Args:
        data: the data set.
        index: `[K]`, which points go.
        new: `[K, *shape]`, what comes in their place.

    Raises:
        ValueError: an index outside the data, or images that do not fit it.
    """
    index = _distinct(data, index)
    points = Points(_checks.samples("new", new, data.shape))
    if len(points) != len(index):
        raise ValueError(f"replace got {len(index)} indices and {len(points)} new images")
    shares = data.normalized_weights[index]
    return _added(points, shares) + _edited(data, index, -shares)


def move(
    data: Points,
    which: Indices | Bool[ArrayLike, " N"],
    direction: Float[ArrayLike, "n *shape"],
) -> Perturbation:
    """Directions along which data points are edited: at mass eps, the points named stand at
    `point + eps direction`.

    Args:
        data: the data set.
        which: indices `[n]`, each point a direction of its own (K = n); or a boolean mask `[N]` of
            n points that move together (K = 1).
        direction: `[n, *shape]`, the edit of each, in units of the data.

    Raises:
        ValueError: an index outside the data or given twice, or directions that do not fit.

    Notes:
        The transport (Wasserstein) direction, where `add` is the mixture direction.
    """
    index, moved = _chosen(data, which)
    direction = _checks.samples("direction", direction, data.shape)
    if len(direction) != len(index):
        raise ValueError(f"move got {len(index)} points and {len(direction)} directions")
    chosen = data.chosen(index)
    shares = jnp.where(jnp.asarray(moved), data.normalized_weights[index], 0)
    return Perturbation((Part(chosen, shares, jnp.asarray(index), direction),))


def check_perturbation(perturbation: Perturbation) -> None:
    """Refuse what is no perturbation, such as bare images."""
    if not isinstance(perturbation, Perturbation):
        raise ValueError(
            "perturbation must be made by add, remove, reweight, replace or move, "
            f"got {type(perturbation)}"
        )


def totals(table: Any) -> Any:
    """The sum of each direction's numbers, `[K]`, of a table `[K, n]` or of its diagonal `[K]`."""
    return table if table.ndim == 1 else table.sum(-1)


def _added(measure, coefficients):
    return Perturbation((Part(measure, coefficients),))


def _edited(data, index, coefficients):
    chosen = data.chosen(index)
    return Perturbation((Part(chosen, coefficients, jnp.asarray(index)),))


def _indices(data, index):
    index = np.atleast_1d(np.asarray(index))
    if not np.issubdtype(index.dtype, np.integer) or index.ndim != 1 or index.size == 0:
        raise ValueError(
            f"expected a non-empty list of integer indices, got {index.dtype} {index.shape}"
        )
    if index.min() < -len(data) or index.max() >= len(data):
        raise ValueError(
            f"index {index.min()}..{index.max()} lies outside the data's {len(data)} points"
        )
    return index % len(data)


def _distinct(data, index):
    index = _indices(data, index)
    if len(np.unique(index)) < len(index):
        twice = np.flatnonzero(np.bincount(index) > 1)[:3]
        raise ValueError(f"indices {list(map(int, twice))} are given twice or more; give each once")
    return index


def _filled(index, taken):
    """The points named and copies of the last, which no direction takes, up to a power of two:
    programs compiled for one set of points are those of another of about its size."""
    spare = (1 << (len(index) - 1).bit_length()) - len(index)
    return np.pad(index, (0, spare), mode="edge"), np.pad(taken, ((0, 0), (0, spare)))


def _chosen(data, which):
    """The n points that `which` names `[n]`, and which of them each direction takes: `[K, n]`, or
    the diagonal `[n]` where each point is a direction of its own."""
    which = np.asarray(which)
    if which.dtype != bool:
        index = _distinct(data, which)
        return index, np.ones(len(index), bool)
    mask = np.atleast_2d(which)
    if mask.shape[-1] != len(data) or mask.ndim != 2:
        raise ValueError(
            f"a mask must have shape [{len(data)}] or [K, {len(data)}], got {which.shape}"
        )
    if not mask.any(-1).all():
        raise ValueError("the mask names an empty set of points: a row of it is all False")
    index = np.flatnonzero(mask.any(0))
    return index, mask[:, index]

r"""Changes of a data set of sequences, as directions with a leading axis K.

As in the continuous world (`scoresens.laws.perturbations`), a perturbation is K signed measures
without mass, `chi_k = sum_j c_kj (nu_j - rho)`, of points nu_j, and `rho + mass chi_k` is the
changed law: `add(y)` at mass 1 is the law of y alone, `remove` at mass 1 is the data without its
points, `reweight` at mass 1 is the data with the new weights. They add up and scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_field

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.discrete._symbols import symbols
from scoresens.discrete.sequences import Sequences
from scoresens.laws.processes import Scalar

Indices = Int[ArrayLike, " K"] | Sequence[int]


@register_dataclass
@dataclass(frozen=True)
class Perturbation:
    """K directions in the space of data laws. Made by `add`, `remove`, `reweight`.

    Those of equal K add up, and all of them scale: `0.5 * add(x) - 2 * remove(data, which)`.
    """

    points: Int[Array, "n d"]
    coefficients: Float[Array, "K n"]  # change of weight per unit of mass
    index: Int[Array, " n"]  # where they stand in the data; -1: they are new

    def __len__(self) -> int:
        """K, the number of directions."""
        return self.coefficients.shape[0]

    def __getitem__(self, which: Int[ArrayLike, " n"] | slice) -> "Perturbation":
        """Some of the directions, by slice or by indices."""
        return replace_field(self, coefficients=self.coefficients[which])

    def __add__(self, other: "Perturbation") -> "Perturbation":
        check_perturbation(other)
        ours, theirs = ((len(p), p.points.shape[1]) for p in (self, other))
        if ours != theirs:
            raise ValueError(
                f"perturbations of {ours[0]} directions of {ours[1]} symbols and of {theirs[0]} "
                f"directions of {theirs[1]} symbols cannot be added up"
            )
        return Perturbation(
            jnp.concatenate([self.points, other.points]),
            jnp.concatenate([self.coefficients, other.coefficients], 1),
            jnp.concatenate([self.index, other.index]),
        )

    def __mul__(self, factor: Scalar) -> "Perturbation":
        _checks.finite("factor", factor)
        return replace_field(self, coefficients=factor * self.coefficients)

    __rmul__ = __mul__

    def __neg__(self) -> "Perturbation":
        return self * -1.0

    def __sub__(self, other: "Perturbation") -> "Perturbation":
        return self + -other


def add(new: Int[ArrayLike, "K d"] | Sequences) -> Perturbation:
    """Directions toward new data: `mass` is their share of the new data.

    Args:
        new: sequences `[K, d]`, each its own direction; or a law, one direction toward the whole of
            it (K = 1), flipped as the data are that it is added to.

    Raises:
        ValueError: no sequences, or no symbols.
    """
    if isinstance(new, Sequences):
        return _new(new.points, new.normalized_weights[None])
    points = symbols("new", new, np.iinfo(np.int32).max)
    return _new(points, jnp.eye(len(points)))


def remove(data: Sequences, which: Indices | Bool[ArrayLike, "*K N"]) -> Perturbation:
    """Directions away from some of the data: at mass 1 they are gone, and the rest share their
    weight.

    Args:
        data: the data set.
        which: indices `[K]`, each point its own direction; or a boolean mask `[N]` (one direction,
            the whole set) or `[K, N]`.

    Raises:
        ValueError: an index outside the data or given twice, an empty set, or nothing left.
    """
    index, taken = _chosen(data, which)
    taken = jnp.where(taken, data.normalized_weights[index], 0)
    left = 1 - jnp.sum(taken, -1, keepdims=True)
    if _checks.is_concrete(left) and bool(jnp.any(left <= 16 * jnp.finfo(left.dtype).eps)):
        raise ValueError(
            "remove was asked to take every point of positive weight: nothing would be left"
        )
    return Perturbation(data.points[index], -taken / left, jnp.asarray(index))


def reweight(data: Sequences, weights: Float[ArrayLike, "*K N"]) -> Perturbation:
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
    return Perturbation(data.points, rows - data.normalized_weights, jnp.arange(len(data)))


def changed(
    data: Sequences, perturbation: Perturbation, mass: Scalar
) -> tuple[Sequences, Float[Array, "K all"]]:
    """The data and what is new, in the data's own weights, and the weights `[K, N + n]` of the K
    changed laws `rho + mass chi_k` on the same points.

    Raises:
        ValueError: sequences that do not fit the data, or a mass at which a weight is negative.
    """
    check_fits_data(data, perturbation)
    _checks.finite("mass", mass)
    change = mass * perturbation.coefficients
    fresh = perturbation.index < 0
    kept = data.normalized_weights * (1 - jnp.sum(change, -1, keepdims=True))
    kept = kept.at[:, perturbation.index].add(jnp.where(fresh, 0, change))
    weights = jnp.concatenate([kept, jnp.where(fresh, change, 0)], 1)
    least = 64 * jnp.finfo(weights.dtype).eps
    if _checks.is_concrete(weights) and bool(jnp.any(weights < -least)):
        raise ValueError(
            f"at mass {mass} a weight of the changed data is negative, {float(weights.min()):.3g}: "
            "more is taken than there is; take a smaller mass"
        )
    points = jnp.concatenate([data.points, perturbation.points])
    own = jnp.concatenate([data.normalized_weights, jnp.zeros(len(perturbation.points))])
    return data.replaced(points, own), jnp.maximum(weights, 0)


def check_perturbation(perturbation: Perturbation) -> None:
    """Refuse what is no perturbation of this world, such as bare sequences."""
    if not isinstance(perturbation, Perturbation):
        raise ValueError(
            "perturbation must be made by discrete.add, remove or reweight, "
            f"got {type(perturbation)}"
        )


def check_fits_data(data: Sequences, perturbation: Perturbation) -> None:
    """Refuse sequences of another length or alphabet than the data's."""
    check_perturbation(perturbation)
    symbols("the perturbation", perturbation.points, data.alphabet, data.length)


def _new(points, coefficients):
    return Perturbation(points, coefficients, jnp.full(len(points), -1))


def _chosen(data, which):
    """The n points that `which` names `[n]`, and which of them each direction takes, `[K, n]`."""
    which = np.atleast_1d(np.asarray(which))
    if which.dtype != bool:
        return _distinct(data, which), np.eye(which.size, dtype=bool)
    mask = np.atleast_2d(which)
    if mask.shape[-1] != len(data) or mask.ndim != 2:
        raise ValueError(
            f"a mask must have shape [{len(data)}] or [K, {len(data)}], got {which.shape}"
        )
    if not mask.any(-1).all():
        raise ValueError("the mask names an empty set of points: a row of it is all False")
    index = np.flatnonzero(mask.any(0))
    return index, mask[:, index]


def _distinct(data, index):
    if not np.issubdtype(index.dtype, np.integer) or index.ndim != 1 or index.size == 0:
        raise ValueError(
            f"expected a non-empty list of integer indices, got {index.dtype} {index.shape}"
        )
    if index.min() < -len(data) or index.max() >= len(data):
        raise ValueError(
            f"index {index.min()}..{index.max()} lies outside the data's {len(data)} points"
        )
    index = index % len(data)
    if len(np.unique(index)) < len(index):
        twice = np.flatnonzero(np.bincount(index) > 1)[:3]
        raise ValueError(f"indices {list(map(int, twice))} are given twice or more; give each once")
    return index

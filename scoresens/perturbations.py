r"""Changes of the training data, as directions with a leading axis K.

A perturbation is K signed measures that add up to no mass,

    chi_k = sum_j c_kj (nu_j - rho),        rho_eps = rho + eps chi_k

over components nu_j (points, or the components of a measure). `eps` is called **mass**, and mass 1
means the whole of the named change: `add(y)` at mass 1 is the law of y alone, `remove` at mass 1 is
the data without its points, `reweight` and `replace` at mass 1 are the data with the new weights or
points.

Components are of two kinds, kept apart because a finite change needs to know them apart: those
**added** to the data, and those of the data's own points that are **edited** (their weight grows or
shrinks).

A score changes by (2.1), which in the canonical frame is

    dD_k(x) = sum_j c_kj r_j (D_j - D),     r_j = nu_j,tau(x) / rho_tau(x).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.measures import Measure, Points, Posterior
from scoresens.processes import Scalar

Indices = Int[ArrayLike, " K"] | Sequence[int]


@register_dataclass
@dataclass(frozen=True)
class Part:
    """n components and what each of K directions does to their weights."""

    measure: Measure
    coefficients: Float[Array, "K n"]  # change of weight per unit of mass
    index: Int[Array, " n"] | None = None  # where they stand in the data; None: they are new


@register_dataclass
@dataclass(frozen=True)
class Perturbation:
    """K directions in the space of data laws. Made by `add`, `remove`, `reweight`, `replace`."""

    added: Part | None  # what the data do not hold
    edited: Part | None  # points of the data whose weight grows or shrinks

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that there are."""
        return tuple(part for part in (self.added, self.edited) if part is not None)

    def __len__(self) -> int:
        """K, the number of directions."""
        return self.parts[0].coefficients.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one data point."""
        return self.parts[0].measure.shape

    def with_default_bandwidth(self, bandwidth: Scalar) -> "Perturbation":
        """Points without a bandwidth of their own take this one: those of the law that they
        change."""

        def bumped(part):
            return part and replace_field(
                part, measure=part.measure.with_default_bandwidth(bandwidth)
            )

        return Perturbation(bumped(self.added), bumped(self.edited))

    def denoiser_derivative(
        self,
        tau: Scalar,
        x: Float[Array, "*shape"],
        log_density: Scalar,
        denoised: Float[Array, "*shape"],
    ) -> Float[Array, "K *shape"]:
        """dD_k = sum_j c_kj r_j (D_j - D) at one sample x, in the canonical frame (2.1).

        Args:
            tau: noise level.
            x: `[*shape]`.
            log_density: log rho_tau(x), the logarithm that r_j is taken against.
            denoised: D(x, tau), `[*shape]`.
        """
        mass, mean = jnp.zeros(len(self), x.dtype), jnp.zeros((len(self), *x.shape), x.dtype)
        for part in self.parts:
            sums = part.measure.weighted_sums(tau, x, log_density, part.coefficients)
            mass, mean = mass + sums[0], mean + sums[1]
        return mean - jnp.multiply.outer(mass, denoised)


def add(new: Measure | Float[ArrayLike, "K *shape"]) -> Perturbation:
    """Directions toward new data: `chi = nu - rho`, so `mass` is the share of nu in the new data.

    Args:
        new: images `[K, *shape]`, each its own direction; or a measure, one direction toward the
            whole of it (K = 1).

    Raises:
        ValueError: no points, integers, NaN.
    """
    if isinstance(new, Measure):
        return _added(new, new.normalized_weights[None])
    points = Points(_checks.samples("new", new))
    return _added(points, jnp.eye(len(points), dtype=points.points.dtype))


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
    mask = _mask(data, which)
    touched = np.flatnonzero(mask.any(0))
    weights = data.normalized_weights
    taken = jnp.where(jnp.asarray(mask[:, touched]), weights[touched], 0)
    left = 1 - jnp.sum(taken, -1, keepdims=True)
    if _checks.is_concrete(left) and bool(jnp.any(left <= 16 * jnp.finfo(left.dtype).eps)):
        raise ValueError(
            "remove was asked to take every point of positive weight: nothing would be left"
        )
    return _edited(data, touched, -taken / left)


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
    index = _indices(data, index)
    points = Points(_checks.samples("new", new, data.shape))
    if len(points) != len(index):
        raise ValueError(f"replace got {len(index)} indices and {len(points)} new images")
    shares = jnp.diag(data.normalized_weights[index])
    return Perturbation(_added(points, shares).added, _edited(data, index, -shares).edited)


def check_perturbation(perturbation: Perturbation) -> None:
    """Refuse what is no perturbation, such as bare images."""
    if not isinstance(perturbation, Perturbation):
        raise ValueError(
            "perturbation must be made by add, remove, reweight or replace, "
            f"got {type(perturbation)}"
        )


@register_dataclass
@dataclass(frozen=True)
class Share:
    """What K mixtures hold of one measure: its weights in each, and the log of its mass."""

    measure: Measure
    weights: Float[Array, "K n"] | None  # None: the measure's own in all of them
    log_mass: Float[Array, " K"]

    def posterior(self, tau: Scalar, x: Float[Array, "K *shape"]) -> Posterior:
        """Log-density, mass included, and posterior mean of share k at sample k."""

        def one(x, weights):
            measure = self.measure if weights is None else self.measure.with_weights(weights)
            return measure.posterior(tau, x)

        log_density, mean = jax.vmap(one)(x, self.weights)
        return Posterior(log_density + self.log_mass, mean)


@register_dataclass
@dataclass(frozen=True)
class ChangedLaw:
    """K laws `rho + mass chi_k`, each what is kept of the data mixed with what is added. Made by
    `change`."""

    kept: Share
    added: Share | None

    def __len__(self) -> int:
        """K, the number of laws."""
        return self.kept.log_mass.shape[0]

    def denoise(self, tau: Scalar, x: Float[Array, "K *shape"]) -> Float[Array, "K *shape"]:
        """The ideal denoiser of law k at sample k: `D + w (D_added - D_kept)` as in (6.1)."""
        kept = self.kept.posterior(tau, x)
        if self.added is None:
            return kept.mean
        added = self.added.posterior(tau, x)
        weight = jax.nn.sigmoid(added.log_density - kept.log_density)
        return kept.mean + jax.vmap(jnp.multiply)(weight, added.mean - kept.mean)


def change(data: Measure, perturbation: Perturbation, mass: Scalar) -> ChangedLaw:
    """The laws `rho + mass chi_k` of finitely changed data.

    Args:
        data: the law rho; a perturbation that edits points needs the `Points` it was made from.
        perturbation: K directions.
        mass: eps, finite.

    Raises:
        ValueError: other data than the perturbation was made from, or a mass that makes a weight
            negative.
    """
    _checks.finite("mass", mass)
    left = 1 - mass * sum(jnp.sum(part.coefficients, -1) for part in perturbation.parts)
    left = jnp.asarray(left)
    added = perturbation.added
    return ChangedLaw(
        _kept(data, perturbation.edited, left, mass),
        added and _share(added.measure, mass * added.coefficients, mass),
    )


def _kept(data, edited, left, mass):
    """What K mixtures hold of the data: `left` of the whole, with the weights of some points
    edited."""
    if edited is None:
        return Share(data, None, _log_share(left, mass))
    _same_data(data, edited)
    scaled = jnp.multiply.outer(left, data.normalized_weights)
    weights = scaled.at[:, edited.index].add(mass * edited.coefficients)
    # A weight that cancels to rounding is zero: at small noise a removed point's ghost would rule.
    ghost = 16 * jnp.finfo(scaled.dtype).eps * jnp.abs(scaled)
    return _share(data, jnp.where(jnp.abs(weights) <= ghost, 0, weights), mass)


def _share(measure, weights, mass):
    """Rows of weights as a share; a row without mass keeps the measure's own, out of sight."""
    _log_share(weights, mass)  # refuses a negative weight
    total = jnp.sum(weights, -1, keepdims=True)
    rows = jnp.where(
        total > 0, weights / jnp.where(total > 0, total, 1), measure.normalized_weights
    )
    return Share(measure, rows, _log_share(total[:, 0], mass))


def _added(measure, coefficients):
    return Perturbation(Part(measure, coefficients), None)


def _edited(data, index, coefficients):
    chosen = Points(data.points[index], None, data.bandwidth)
    return Perturbation(None, Part(chosen, coefficients, jnp.asarray(index)))


def _log_share(share, mass):
    """log of a share of the mass, -inf where there is none; refuses a negative one."""
    if _checks.is_concrete(share) and bool(jnp.any(share < -1e-6)):
        raise ValueError(
            f"mass {mass} makes a weight of the changed data negative "
            f"({float(jnp.min(share)):.3g}); "
            "mass 1 is the whole of the named change"
        )
    return jnp.where(share > 0, jnp.log(jnp.where(share > 0, share, 1.0)), -jnp.inf)


def _same_data(data, edited):
    points = edited.measure.points
    if not isinstance(data, Points) or data.shape != points.shape[1:]:
        raise ValueError(
            "a perturbation that edits data points needs base=the same Points that it was made from"
        )
    if not (_checks.is_concrete(edited.index) and _checks.is_concrete(data.points)):
        return
    fits = int(edited.index.max()) < len(data)
    if not (fits and bool(jnp.all(data.points[edited.index] == points))):
        raise ValueError(
            "base holds other points than the data that the perturbation edits; pass the same "
            "Points to both"
        )


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


def _mask(data, which):
    """`which` as a boolean mask [K, N]."""
    which = np.asarray(which)
    if which.dtype != bool:
        index = _indices(data, which)
        return np.eye(len(data), dtype=bool)[index] if len(index) else index
    mask = np.atleast_2d(which)
    if mask.shape[-1] != len(data) or mask.ndim != 2:
        raise ValueError(
            f"a mask must have shape [{len(data)}] or [K, {len(data)}], got {which.shape}"
        )
    if not mask.any(-1).all():
        raise ValueError("remove got an empty set of points: a row of the mask is all False")
    if mask.all(-1).any():
        raise ValueError("remove was asked to take every point: nothing would be left of the data")
    return mask

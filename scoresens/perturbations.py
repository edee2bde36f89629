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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.measures import Measure, Points
from scoresens.processes import Scalar

Indices = Int[ArrayLike, " K"] | Sequence[int]


@register_dataclass
@dataclass(frozen=True)
class Perturbation:
    """K directions in the space of data laws. Made by `add`, `remove`, `reweight`, `replace`."""

    added: Measure | None  # n_a components that the data do not hold
    added_coefficients: Float[Array, "K n_a"] | None
    edited: Points | None  # n_e of the data's points, whose weight changes
    edited_coefficients: Float[Array, "K n_e"] | None
    index: Int[Array, " n_e"] | None  # where the edited points stand in the data

    def __len__(self) -> int:
        """K, the number of directions."""
        parts = (self.added_coefficients, self.edited_coefficients)
        return next(part.shape[0] for part in parts if part is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one data point."""
        return next(part.shape for part in (self.added, self.edited) if part is not None)

    def with_default_bandwidth(self, bandwidth: Scalar) -> "Perturbation":
        """Points without a bandwidth of their own take this one: those of the law that they
        change."""
        return Perturbation(
            None if self.added is None else self.added.with_default_bandwidth(bandwidth),
            self.added_coefficients,
            None if self.edited is None else self.edited.with_default_bandwidth(bandwidth),
            self.edited_coefficients,
            self.index,
        )

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
        for measure, coefficients in (
            (self.added, self.added_coefficients),
            (self.edited, self.edited_coefficients),
        ):
            if measure is not None:
                part = measure.weighted_sums(tau, x, log_density, coefficients)
                mass, mean = mass + part[0], mean + part[1]
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
    points = Points(new)
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
    gone = _edited(data, index, -shares)
    come = _added(points, shares)
    return Perturbation(
        come.added, come.added_coefficients, gone.edited, gone.edited_coefficients, gone.index
    )


@register_dataclass
@dataclass(frozen=True)
class ChangedLaw:
    """K laws `rho + mass chi_k`, each what is kept of the data mixed with what is added. Made by
    `change`."""

    kept: Measure
    kept_weights: Float[Array, "K N"] | None  # None: the data's own
    log_kept: Float[Array, " K"]  # log of the kept share
    added: Measure | None
    added_weights: Float[Array, "K n"] | None
    log_added: Float[Array, " K"]

    def __len__(self) -> int:
        """K, the number of laws."""
        return self.log_kept.shape[0]

    def denoise(self, tau: Scalar, x: Float[Array, "K *shape"]) -> Float[Array, "K *shape"]:
        """The ideal denoiser of law k at sample k, for all K: `D + w (D_added - D_kept)` as in
        (6.1)."""

        def one(x, kept_weights, log_kept, added_weights, log_added):
            kept = _with_weights(self.kept, kept_weights).posterior(tau, x)
            if self.added is None:
                return kept.mean
            added = _with_weights(self.added, added_weights).posterior(tau, x)
            logit = added.log_density + log_added - kept.log_density - log_kept
            return kept.mean + jax.nn.sigmoid(logit) * (added.mean - kept.mean)

        return jax.vmap(one)(
            x, self.kept_weights, self.log_kept, self.added_weights, self.log_added
        )


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
    parts = (perturbation.added_coefficients, perturbation.edited_coefficients)
    share = 1 - mass * sum(jnp.sum(part, -1) for part in parts if part is not None)
    kept_weights, log_kept = None, _log_share(share, mass)
    if perturbation.edited is not None:
        _same_data(data, perturbation)
        own = data.normalized_weights
        edits = jnp.zeros((len(perturbation), len(data)), own.dtype)
        edits = edits.at[:, perturbation.index].add(mass * perturbation.edited_coefficients)
        kept = share[:, None] * own + edits
        # A weight that cancels to rounding is zero: a ghost of a removed point would rule at
        # small noise.
        ghost = 16 * jnp.finfo(own.dtype).eps
        kept = jnp.where(jnp.abs(kept) <= ghost * jnp.abs(share[:, None] * own), 0, kept)
        _log_share(kept, mass)
        kept_weights = _rows(kept, own)
        log_kept = _log_share(jnp.sum(kept, -1), mass)
    added_weights, log_added = None, jnp.full(len(perturbation), -jnp.inf)
    if perturbation.added is not None:
        come = mass * perturbation.added_coefficients
        log_added = _log_share(jnp.sum(come, -1), mass)
        added_weights = _rows(come, perturbation.added.normalized_weights)
    return ChangedLaw(data, kept_weights, log_kept, perturbation.added, added_weights, log_added)


def _added(measure, coefficients):
    return Perturbation(measure, coefficients, None, None, None)


def _edited(data, index, coefficients):
    chosen = Points(data.points[index], None, data.bandwidth)
    return Perturbation(None, None, chosen, coefficients, jnp.asarray(index))


def _with_weights(measure, weights):
    return measure if weights is None else measure.with_weights(weights)


def _log_share(share, mass):
    """log of a share of the mass, -inf where there is none; refuses a negative one."""
    if _checks.is_concrete(share) and bool(jnp.any(share < -1e-6)):
        raise ValueError(
            f"mass {mass} makes a weight of the changed data negative "
            f"({float(jnp.min(share)):.3g}); "
            "mass 1 is the whole of the named change"
        )
    return jnp.where(share > 0, jnp.log(jnp.where(share > 0, share, 1.0)), -jnp.inf)


def _rows(weights, fallback):
    """Rows normalised to 1; a row without mass gets `fallback`, which its share of 0 keeps out of
    sight."""
    total = jnp.sum(weights, -1, keepdims=True)
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), fallback)


def _same_data(data, perturbation):
    points = perturbation.edited.points
    if not isinstance(data, Points) or data.shape != points.shape[1:]:
        raise ValueError(
            "a perturbation that edits data points needs base=the same Points that it was made from"
        )
    if not (_checks.is_concrete(perturbation.index) and _checks.is_concrete(data.points)):
        return
    fits = int(perturbation.index.max()) < len(data)
    if not (fits and bool(jnp.all(data.points[perturbation.index] == points))):
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

r"""Finitely changed laws, and their ideal denoisers.

For `rho_eps = (1 - eps) rho + eps nu` the ideal denoiser is exact for finite eps:

    (6.1)  D_eps = D + w (D_nu - D),   logit w = log eps + log nu_tau - log(1 - eps) - log rho_tau

A perturbation may also take away, in several components at once. With P the noised density of what
is kept and added, M that of what is taken away, and their posterior means,

    D_eps = (P D_P - M D_M) / (P - M) = D_P + q (D_P - D_M),     q = (M/P) / (1 - M/P)

which has a pole where M/P reaches 1: nothing is left there. The law rho may be a data set, whose
own weights are edited (then nothing is subtracted, and there is no pole), or a model's, known at
the place by its log-density and its denoiser.

What is computed is D_eps - D, for the difference of two denoisers that hardly differ is rounding:
of one point among 20,000 it was off by a hundredth, of data far from 0 by its whole. Let C be what
both laws have in common, P what the changed law has beyond it, M what rho has beyond it; then

    (6.9)  D_eps - D = P / (C + P) (D_P - D_C) - M / (C + M) (D_M - D_C)

and of the data's points only those that are edited are looked at more than once.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replace_field
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scoresens import _checks
from scoresens._products import contracted
from scoresens._pytrees import register_dataclass
from scoresens.laws.bumps import safe_log
from scoresens.laws.measures import Law, Measure, Mixture, Points, Posterior
from scoresens.laws.perturbations import Perturbation, totals
from scoresens.laws.processes import Scalar
from scoresens.laws.shards import Shard

POLE = 0.1  # of the density at a place, a change takes at most all but this share


@register_dataclass
@dataclass(frozen=True)
class Share:
    """What K mixtures hold of one law: its weights in each, and the log of its mass."""

    measure: Law  # a measure, by the time its posterior is asked for
    weights: Float[Array, "*K n"] | None  # None: the law's own in all of them
    log_mass: Float[Array, "*K"]
    rider: int | None = field(default=None, metadata={"static": True})  # of a model: which it is
    single: bool = field(default=False, metadata={"static": True})  # mixture k holds point k alone

    def posterior(self, tau: Scalar, x: Float[Array, "*shape"]) -> Posterior:
        """Gain, mass included, and posterior mean of one mixture's share."""
        law: Any = self.measure
        here = law if self.weights is None else law.with_weights(self.weights)
        found = here.posterior(tau, x)
        return Posterior(found.gain + self.log_mass, found.mean)

    def __getitem__(self, which: Int[Array, ""] | int) -> "Share":
        """What one of the mixtures holds."""
        log_mass = self.log_mass[which]
        if self.single:
            points = cast(Points, self.measure)
            alone = replace_field(points, points=points.points[which][None])
            return Share(alone, None, log_mass)
        weights = None if self.weights is None else self.weights[which]
        return replace_field(self, weights=weights, log_mass=log_mass)


@register_dataclass
@dataclass(frozen=True)
class Edits:
    """Data and K mixtures of the same points: what they have in common, and what each has beyond
    it, at the points that are named."""

    common: Share
    points: Points  # n of the data's
    lost: Float[Array, "*K n"] | None  # weights that the data alone have; None: no more
    gained: Float[Array, "*K n"] | None  # that the mixtures alone have

    def __getitem__(self, which: Int[Array, ""] | int) -> "Edits":
        """Of one of the mixtures."""
        beyond = (None if part is None else part[which] for part in (self.lost, self.gained))
        return Edits(self.common[which], self.points, *beyond)

    def around(self, tau: Scalar, x: Float[Array, "*shape"]) -> tuple[Posterior, ...]:
        """What is in common, and the data and the mixture, their means counted from its own."""
        common = self.common.posterior(tau, x)

        def with_more(weights):
            if weights is None:
                return Posterior(common.gain, jnp.zeros_like(common.mean))
            total = jnp.sum(weights)
            rows = jnp.where(total > 0, weights, jnp.ones_like(weights))
            gain = self.points.with_weights(rows).posterior(tau, x).gain + safe_log(total)
            top = jax.lax.stop_gradient(jnp.maximum(common.gain, gain))
            (mass,), (mean,) = self.points.weighted_sums(tau, x, top, weights[None])
            whole = jnp.exp(common.gain - top) + mass
            return Posterior(top + jnp.log(whole), (mean - mass * common.mean) / whole)

        return common, with_more(self.lost), with_more(self.gained)


@register_dataclass
@dataclass(frozen=True)
class ChangedLaw:
    """K laws `rho + mass chi_k`: what is kept of rho, what more there is, and what less. Made by
    `change`; one of them is `law[k]`."""

    log_kept: Float[Array, "*K"]  # the share of what is in common that is kept
    edits: Edits | None  # of the data's weights; None: all of rho is in common
    more: tuple[Share, ...]
    less: tuple[Share, ...]  # taken from the sum

    def __getitem__(self, which: Int[Array, ""] | int) -> "ChangedLaw":
        """One of the laws."""
        edits = None if self.edits is None else self.edits[which]
        more, less = (tuple(share[which] for share in shares) for shares in (self.more, self.less))
        return ChangedLaw(self.log_kept[which], edits, more, less)

    def with_known(self, known: Sequence[Measure]) -> "ChangedLaw":
        """The same with each model among the components replaced by what is known of it at one
        place; in the order of `Perturbation.learned`."""

        def resolved(shares):
            return tuple(
                share if share.rider is None else replace_field(share, measure=known[share.rider])
                for share in shares
            )

        return replace_field(self, more=resolved(self.more), less=resolved(self.less))

    def shift(
        self, tau: Scalar, x: Float[Array, "*shape"], own: Posterior
    ) -> tuple[Float[Array, "*shape"], Bool[Array, ""]]:
        """D_eps - D of one law, and whether M/P was bounded.

        Where two laws do not fit each other M/P can come near 1, the pole, or pass it: it is
        bounded at `1 - POLE`.

        Args:
            tau: noise level.
            x: `[*shape]`.
            own: gain and denoiser of rho at the place; not looked at where its points are edited.
        """
        common, before, after = own, None, Posterior(own.gain, jnp.zeros_like(own.mean))
        if self.edits is not None:
            common, before, after = self.edits.around(tau, x)

        def apart(share):
            found = share.posterior(tau, x)
            return Posterior(found.gain, found.mean - common.mean)

        after = Posterior(after.gain + self.log_kept, after.mean)
        plus = _merged([after, *map(apart, self.more)])
        moved = plus.mean if before is None else plus.mean - before.mean
        if not self.less:
            return moved, jnp.zeros((), bool)
        minus = _merged(list(map(apart, self.less)))
        gap, most = minus.gain - plus.gain, jnp.log1p(-POLE)
        ratio = jnp.exp(jnp.minimum(gap, most))
        return moved + ratio / (1 - ratio) * (plus.mean - minus.mean), gap > most


def change(data: Measure | None, perturbation: Perturbation, mass: Scalar) -> ChangedLaw:
    """The laws `rho + mass chi_k` of finitely changed data.

    Args:
        data: the law rho; a perturbation that edits points needs the `Points` it was made from.
            None where rho is a model's law.
        perturbation: K directions.
        mass: eps, finite.

    Raises:
        ValueError: other data than the perturbation was made from, a mass that takes more than
            there is, or one outside [-1, 1].
    """
    _checks.finite("mass", mass)
    if _checks.is_concrete(mass) and abs(mass) > 1:
        raise ValueError(
            f"mass must lie in [-1, 1], got {mass}: 1 is the whole of the named change, and what "
            "is negative undoes it"
        )
    terms = list(_terms(perturbation, mass))
    left = jnp.asarray(1 - sum(totals(term.weights) for term in terms))
    edits, log_left = [], _log_share(left, mass)
    if data is not None:
        edits = [term for term in terms if term.index is not None]
        terms = [term for term in terms if term.index is None]
    more = tuple(_share(term, 1, mass) for term in terms if _may(term.weights > 0))
    less = tuple(_share(term, -1, mass) for term in terms if _may(term.weights < 0))
    return ChangedLaw(log_left, _edited(data, edits, left, mass) if edits else None, more, less)


class _Term(NamedTuple):
    """Components, and how much of each K laws hold beyond what is kept."""

    measure: Law
    weights: Float[Array, "K n"] | Float[Array, " K"]  # of either sign; [K]: see `Part`
    index: Int[Array, " n"] | None  # pyright: ignore[reportIncompatibleMethodOverride]
    rider: int | None


def _terms(perturbation: Perturbation, mass: Scalar) -> Iterator[_Term]:
    riders = itertools.count()
    for part in perturbation.parts:
        measure, weights = part.measure, part.coefficients
        rider = next(riders) if part.rides else None
        if part.velocity is None:
            yield _Term(measure, mass * weights, part.index, rider)
        else:
            still = cast(Points, measure)
            there = replace_field(still, points=still.points + mass * part.velocity)
            yield _Term(measure, -weights, part.index, None)
            yield _Term(there, weights, None, None)


def _may(flags):
    """Whether any flag is up, or may be (traced)."""
    return not _checks.is_concrete(flags) or bool(jnp.any(flags))


def _merged(parts):
    """Gain and mean of a mixture."""
    logs = jnp.stack([part.gain for part in parts])
    logs = jnp.maximum(logs, jnp.finfo(logs.dtype).min)  # of nothing at all: still a mean
    means = jnp.stack([part.mean for part in parts])
    mean = contracted("j,j...->...", jax.nn.softmax(logs), means)
    return Posterior(jax.nn.logsumexp(logs), mean)


def _edited(data, edits, left, mass):
    """Data whose weights are edited, and K mixtures, divided by `left`, of the same points."""
    weights = data.normalized_weights
    kept = scaled = jnp.multiply.outer(left, weights)
    for edit in edits:
        _same_data(data, edit)
        kept = kept.at[_places(edit)].add(edit.weights)
    # A weight that cancels to rounding is zero: at small noise a removed point's ghost would rule.
    ghost = 16 * jnp.finfo(scaled.dtype).eps * jnp.abs(scaled)
    _log_share(kept, mass)  # refuses a negative weight
    nothing = kept - jax.lax.stop_gradient(kept)  # with the derivative that it has
    kept = jnp.where(jnp.abs(kept) <= ghost, nothing, kept) / jnp.where(left > 0, left, 1)[:, None]

    index = jnp.concatenate([edit.index for edit in edits])
    order = jnp.arange(len(index))
    first = jnp.full(len(data), len(index)).at[index].min(order)[index] == order
    new, old = kept[:, index], jnp.broadcast_to(weights[index], (len(kept), len(index)))
    less = jnp.where(new < old, new, old)
    common = jnp.broadcast_to(weights, kept.shape).at[:, index].set(less)
    named = data.chosen(index)
    beyond = (jnp.where(first, have - less, 0) for have in (old, new))
    lost, gained = (weights if _may(weights > 0) else None for weights in beyond)
    return Edits(_share(_Term(data, common, None, None), 1, mass), named, lost, gained)


def _places(edit):
    """Where the weights of an edit stand in a table `[K, N]`."""
    if edit.weights.ndim == 1:
        return jnp.arange(len(edit.index)), edit.index
    return slice(None), edit.index


def _share(term, sign, mass):
    """The part of a term that has this sign; a row without mass keeps the law's own weights, out of
    sight."""
    have = term.weights >= 0 if sign > 0 else term.weights < 0
    weights, rows = jnp.where(have, sign * term.weights, 0), None
    total, single = totals(weights), weights.ndim == 1
    if isinstance(term.measure, Mixture) and not single:
        some = (total > 0)[:, None]
        shares = weights / jnp.where(some, total[:, None], 1)
        rows = jnp.where(some, shares, term.measure.normalized_weights)
    return Share(term.measure, rows, _log_share(total, mass), term.rider, single)


def _log_share(share, mass):
    """log of a share of the mass, -inf where there is none; refuses a negative one."""
    if _checks.is_concrete(share) and bool(jnp.any(share < -1e-6)):
        raise ValueError(
            f"mass {mass} takes more than there is: a weight of the changed data becomes "
            f"{float(jnp.min(share)):.3g}; mass 1 is the whole of the named change"
        )
    return safe_log(share)


def _same_data(data, edited):
    points = edited.measure.points
    if isinstance(data, Shard):
        raise ValueError("points that a perturbation edits cannot be divided over devices")
    if not isinstance(data, Points) or data.shape != points.shape[1:]:
        raise ValueError(
            "a perturbation that edits data points needs base=the same Points that it was made from"
        )
    if not all(map(_checks.is_concrete, (edited.index, data.points, points))):
        return
    with jax.ensure_compile_time_eval():
        fits = int(edited.index.max()) < len(data)
        fits = fits and bool(jnp.all(data.points[edited.index] == points))
    if not fits:
        raise ValueError(
            "base holds other points than the data that the perturbation edits; pass the same "
            "Points to both"
        )

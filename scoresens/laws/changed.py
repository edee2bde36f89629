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
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.laws.bumps import finite_exp
from scoresens.laws.measures import Law, Measure, Points, Posterior, Sums
from scoresens.laws.noises import Gaussian
from scoresens.laws.perturbations import Perturbation, totals
from scoresens.laws.processes import Scalar
from scoresens.laws.shards import Shard

POLE = 0.1  # of the density at a place, a change takes at most all but this share


@register_dataclass
@dataclass(frozen=True)
class Share:
    """What K mixtures hold of one law: how much of each of its components."""

    measure: Law  # a measure, by the time its sums are asked for
    weights: Float[Array, "*K n"]
    rider: int | None = field(default=None, metadata={"static": True})  # of a model: which it is
    single: bool = field(default=False, metadata={"static": True})  # mixture k holds point k alone

    def sums(self, tau: Scalar, x: Float[Array, "*shape"]) -> Sums:
        """One mixture's share."""
        return cast(Measure, self.measure).sums(tau, x, self.weights)

    def __getitem__(self, which: Int[Array, ""] | int) -> "Share":
        """What one of the mixtures holds."""
        weights = self.weights[which]
        if self.single:
            alone = cast(Points, self.measure).chosen(jnp.asarray(which)[None])
            return Share(alone, weights[None])
        return replace_field(self, weights=weights)


@register_dataclass
@dataclass(frozen=True)
class Edits:
    """Data and K mixtures of the same points: what they have in common, and what each has beyond
    it, at the points that are named."""

    common: Share
    lost: Share | None  # n points' weights that the data alone have; None: no more
    gained: Share | None  # that the mixtures alone have

    def __getitem__(self, which: Int[Array, ""] | int) -> "Edits":
        """Of one of the mixtures."""
        beyond = (share and share[which] for share in (self.lost, self.gained))
        return Edits(self.common[which], *beyond)

    def around(
        self, tau: Scalar, x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Sums, Sums]:
        """The mean of what is in common, and the data and the mixture, counted from there."""
        common = self.common.sums(tau, x)
        some = common.mass > 0
        centre = common.mean / jnp.where(some, common.mass, 1)
        common = common._replace(mean=jnp.where(some, 0, common.mean))

        def with_more(share):
            if share is None:
                return common
            return _merged([common, share.sums(tau, x).counted_from(centre)])

        return centre, with_more(self.lost), with_more(self.gained)


@register_dataclass
@dataclass(frozen=True)
class ChangedLaw:
    """K laws `rho + mass chi_k`: what is kept of rho, what more there is, and what less. Made by
    `change`; one of them is `law[k]`."""

    kept: Float[Array, "*K"]  # the share of rho, edited, that is kept
    edits: Edits | None  # of the data's weights; None: all of rho is in common
    more: tuple[Share, ...]
    less: tuple[Share, ...]  # taken from the sum

    def __getitem__(self, which: Int[Array, ""] | int) -> "ChangedLaw":
        """One of the laws."""
        edits = None if self.edits is None else self.edits[which]
        more, less = (tuple(share[which] for share in shares) for shares in (self.more, self.less))
        return ChangedLaw(self.kept[which], edits, more, less)

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
        """D_eps - D of one law, as far as its kernel says that it is learnt, and whether M/P was
        bounded.

        Where two laws do not fit each other M/P can come near 1, the pole, or pass it: it is
        bounded at `1 - POLE`.

        Args:
            tau: noise level.
            x: `[*shape]`.
            own: gain and denoiser of rho at the place; not looked at where its points are edited.
        """
        centre, before = own.mean, None
        after = Sums(own.gain, jnp.ones_like(own.gain), jnp.zeros_like(own.mean))
        if self.edits is not None:
            centre, before, after = self.edits.around(tau, x)

        def counted(shares):
            return [share.sums(tau, x).counted_from(centre) for share in shares]

        after = Sums(after.gain, self.kept * after.mass, self.kept * after.mean)
        plus = _merged([after, *counted(self.more)])
        there = plus.mean / plus.mass
        moved = there if before is None else there - before.mean / before.mass
        if not self.less:
            return self._kernel.learnt(moved), jnp.zeros((), bool)
        minus = _merged(counted(self.less)).counted_from(there)
        scale = finite_exp(minus.gain - plus.gain) / plus.mass
        ratio, most = scale * minus.mass, 1 - POLE
        beyond = ratio > most
        scale = jnp.where(beyond, most / jnp.where(beyond, minus.mass, 1), scale)
        moved = moved - scale / (1 - scale * minus.mass) * minus.mean
        return self._kernel.learnt(moved), beyond

    @property
    def _kernel(self):
        """That of its components, which say how much of a change is learnt; of no change, any."""
        some = () if self.edits is None else (self.edits.common,)
        shares = (*some, *self.more, *self.less)
        return shares[0].measure.kernel if shares else Gaussian()


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
    _refuse_negative(left, mass)
    left, edits = _without_ghosts(left, jnp.ones_like(left)), []
    if data is not None:
        edits = [term for term in terms if term.index is not None]
        terms = [term for term in terms if term.index is None]
    more = tuple(_share(term, 1) for term in terms if _may_be_positive(term.weights))
    less = tuple(_share(term, -1) for term in terms if _may_be_positive(-term.weights))
    return ChangedLaw(left, _edited(data, edits, left, mass) if edits else None, more, less)


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


def _may_be_positive(weights):
    """Whether any weight is, or may be or become so (traced)."""
    if not _checks.is_concrete(weights):
        return True
    flags = weights > 0  # traced within `jit`, whatever the weights are
    return not _checks.is_concrete(flags) or bool(jnp.any(flags))


def _merged(parts):
    """The sums of a mixture."""
    gains, masses, means = map(jnp.stack, zip(*parts, strict=True))
    return Sums.of(masses, gains, means)


def _edited(data, edits, left, mass):
    """Data whose weights are edited, and K mixtures, divided by `left`, of the same points."""
    for edit in edits:
        _same_data(data, edit)
    changes = [(edit.index, edit.weights) for edit in edits]
    kept, index, common, beyond = _compared(data.normalized_weights, left, changes)
    _refuse_negative(kept, mass)
    named = data.chosen(index)
    lost, gained = (Share(named, rows) if _may_be_positive(rows) else None for rows in beyond)
    return Edits(Share(data, common), lost, gained)


@jax.jit
def _compared(weights, left, changes):
    """Of data and K mixtures of the same points: the mixtures' weights, which points are named, the
    weights in common, and at the points named what the data, and the mixtures, have beyond."""
    kept = scaled = jnp.multiply.outer(left, weights)
    for index, change in changes:
        rows = jnp.arange(len(index)) if change.ndim == 1 else slice(None)  # see `Part`
        kept = kept.at[rows, index].add(change)
    divided = _without_ghosts(kept, scaled) / jnp.where(left > 0, left, 1)[:, None]

    index = jnp.concatenate([index for index, _ in changes])
    order = jnp.arange(len(index))
    first = jnp.full(len(weights), len(index)).at[index].min(order)[index] == order
    new, old = divided[:, index], jnp.broadcast_to(weights[index], (len(kept), len(index)))
    less = jnp.where(new < old, new, old)
    common = jnp.broadcast_to(weights, kept.shape).at[:, index].set(less)
    return kept, index, common, [jnp.where(first, have - less, 0) for have in (old, new)]


def _share(term, sign):
    """The part of a term that has this sign; where it is 0, its derivative counts as more."""
    have = term.weights >= 0 if sign > 0 else term.weights < 0
    weights = jnp.where(have, sign * term.weights, 0)
    return Share(term.measure, weights, term.rider, weights.ndim == 1)


def _refuse_negative(weights, mass):
    if _checks.is_concrete(weights) and bool(jnp.any(weights < -1e-6)):
        raise ValueError(
            f"mass {mass} takes more than there is: a weight of the changed data becomes "
            f"{float(jnp.min(weights)):.3g}; mass 1 is the whole of the named change"
        )


def _without_ghosts(weights, of):
    """Weights `of` which something was taken. One that cancels to rounding is zero, with the
    derivative that it has: at small noise the ghost of what is gone would rule."""
    ghost = 16 * jnp.finfo(weights.dtype).eps * jnp.abs(of)
    return jnp.where(weights > ghost, weights, weights - jax.lax.stop_gradient(weights))


def _same_data(data, edited):
    points = edited.measure.points
    if isinstance(data, Shard):
        raise ValueError("points that a perturbation edits cannot be divided over devices")
    if not isinstance(data, Points) or data.points.shape[1:] != points.shape[1:]:
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

r"""What drives a path, and the log-densities that ride on it.

A path's denoiser is a weighted sum over the laws that a score is made of: one law with weight 1, or
the two of a guided score, `D = (1 - g) D_u + g D_c` (6.2). Whatever the sum drives, the log-density
of each law's own flow is known along the path: at noise level tau, with dx/dtau = (x - D) / tau,

    (3.2)  d log rho_i / dtau = (tr J_Di - d) / tau + (D_i - D).(D_i - x) / tau^3

The same holds for another model `nu` that takes no part in the sum (`Learned`), and for either law
**smoothed** by h (6.5, `learned`), which is followed at `tau_h = sqrt(tau^2 + h^2)`:

           d log rho_{tau_h} / dtau = (tr J_D - d) tau / tau_h^2
               + (D - x).( tau^2 / tau_h^2 (D - x) + x - D_path ) / (tau tau_h^2),    D at tau_h

What is integrated are gains (see `paths`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoresens import _checks
from scoresens._products import inner
from scoresens._pytrees import register_dataclass
from scoresens.flow.ode import gain_rate, noise_end, prior_log_density_at, yardstick
from scoresens.flow.traces import TraceEstimator
from scoresens.laws.learned import Known, Learned, level_of, smoothed_mean
from scoresens.laws.measures import Measure, check_base
from scoresens.laws.perturbations import Perturbation, check_perturbation
from scoresens.laws.processes import Process, Scalar
from scoresens.laws.scores import Guided, Pair, Score, as_pytree, canonical_denoiser


@register_dataclass
@dataclass(frozen=True)
class Smoothed:
    """As a `base`: the model's own law, smoothed by a Gaussian of standard deviation `bandwidth`.

    The black box's better half: density ratios are taken between laws blurred alike, those of
    `base=data` with the model in the data's place. Without data, half the median nearest-neighbour
    distance of the model's own samples (`default_bandwidth`) is a bandwidth to begin with.

    Notes:
        One more network evaluation a stage than `base=None`, at noise level
        `sqrt(tau^2 + bandwidth^2)`, with the trace's products there.
    """

    bandwidth: Scalar

    def __post_init__(self):
        _checks.positive("Smoothed.bandwidth", self.bandwidth)


Base = Measure | Smoothed | None


@register_dataclass
@dataclass(frozen=True)
class Law:
    """One law that a score is made of: its share of the sum, how it changes, and the law that
    density ratios are taken against (None: its own, which then rides along)."""

    process: Process
    score: Score
    weight: Scalar
    perturbation: Perturbation | None
    base: Base
    prior: Measure | None
    rides: bool = field(metadata={"static": True})  # whether its own log-density is followed

    @property
    def measure(self) -> Measure | None:
        """The law that ratios are taken against, where it is not its own."""
        return self.base if isinstance(self.base, Measure) else None

    @property
    def blur(self) -> Scalar:
        """How much its own law is smoothed where its log-density is followed."""
        return self.base.bandwidth if isinstance(self.base, Smoothed) else 0.0

    @property
    def others(self) -> tuple[Learned, ...]:
        """The other models that ride along."""
        return () if self.perturbation is None else self.perturbation.learned


Laws = tuple[Law, ...]


class Seen(NamedTuple):
    """A network at one place."""

    denoised: Float[Array, "*shape"]
    trace: Scalar | None  # tr J_D; None where none is taken


class Riders(NamedTuple):
    """One thing for each log-density that is followed: what is seen, its gain, its node."""

    own: Any  # of the law, None where it does not ride
    others: tuple  # of the models that ride with it


class Look(NamedTuple):
    """A law at one place."""

    denoised: Float[Array, "*shape"]  # what drives the path
    pushed: Float[Array, "K *shape"] | None  # J_D tangents
    seen: Riders


def laws_of(
    process: Process,
    score: Score,
    perturbation: Perturbation | Pair,
    base: Base | Pair,
    prior: Measure | Pair | None,
) -> Laws:
    """The laws that a score is made of, refused if what comes with it does not fit."""
    if not isinstance(score, Guided):
        return (_law(process, score, 1.0, perturbation, base, prior),)
    pairs = [
        _pair(name, value, nothing)
        for name, value, nothing in (
            ("perturbation", perturbation, False),
            ("base", base, True),
            ("prior", prior, True),
        )
    ]
    if pairs[0] == Pair():
        raise ValueError("the Pair of perturbations changes neither of the two laws")
    scores = ((1 - score.weight, score.unconditional), (score.weight, score.conditional))
    return tuple(
        _law(process, own, w, *rest) for (w, own), *rest in zip(scores, *pairs, strict=True)
    )


def directions(laws: Laws) -> int:
    """K, the number of directions, one for all laws."""
    counts = {len(law.perturbation) for law in laws if law.perturbation is not None}
    if len(counts) > 1:
        raise ValueError(f"the two perturbations of a Pair have {sorted(counts)} directions")
    return counts.pop()


def shape_of(laws: Laws) -> tuple[int, ...]:
    """Shape of one sample, one for all laws."""
    shapes = {law.perturbation.shape for law in laws if law.perturbation is not None}
    shapes |= {law.base.shape for law in laws if isinstance(law.base, Measure)}
    if len(shapes) > 1:
        raise ValueError(f"perturbation and base are of samples of shapes {sorted(shapes)}")
    return shapes.pop()


def starts(laws: Laws, noise: Float[Array, "*shape"]) -> tuple[Riders, ...]:
    """Gains at the noise, where every path begins."""

    def one(law):
        hat, tau, _ = noise_end(law.process, noise, None)

        def gain(process, prior, blur):
            level = level_of(blur, tau)
            return prior_log_density_at(process, prior, level, hat) + yardstick(level, hat.size)

        own = gain(law.process, law.prior, law.blur) if law.rides else None
        return Riders(own, tuple(gain(nu.process, nu.prior, nu.bandwidth) for nu in law.others))

    return tuple(map(one, laws))


def look(
    law: Law,
    tau: Scalar,
    x: Float[Array, "*shape"],
    tangents: Float[Array, "K *shape"],
    trace: TraceEstimator | None,
    probes: Any,
) -> Look:
    """A law's networks at one place; `tangents` are pushed through the driving one."""

    def follow(denoise, tangents):
        denoised, push = jax.linearize(denoise, x)
        rule = cast(TraceEstimator, trace)  # given wherever a log-density rides
        spread, pushed = rule.apply(jax.vmap(push), probes, tangents)
        return Seen(denoised, spread), pushed

    def denoiser(of, level):
        return lambda x: canonical_denoiser(of.process, of.score, level, x)

    nothing = jnp.zeros((0, *x.shape), x.dtype)
    others = tuple(
        follow(denoiser(nu, level_of(nu.bandwidth, tau)), nothing)[0] for nu in law.others
    )
    if law.rides and not isinstance(law.base, Smoothed):
        own, pushed = follow(denoiser(law, tau), tangents)
        return Look(own.denoised, pushed, Riders(own, others))
    own = follow(denoiser(law, level_of(law.blur, tau)), nothing)[0] if law.rides else None
    if not len(tangents):
        return Look(denoiser(law, tau)(x), None, Riders(own, others))
    denoised, push = jax.linearize(denoiser(law, tau), x)
    return Look(denoised, jax.vmap(push)(tangents), Riders(own, others))


def rates(
    law: Law, seen: Riders, tau: Scalar, x: Float[Array, "*shape"], denoised: Float[Array, "*shape"]
) -> Riders:
    """How the gains grow along the path that `denoised` drives (3.2)."""

    def one(own, blur):
        if own is None:
            return None
        level, pull = level_of(blur, tau), own.denoised - x
        across = inner(pull, jnp.square(tau / level) * pull + (x - denoised))
        grown = gain_rate(own.trace, level, x.size) * tau / level
        return grown + across / (tau * jnp.square(level))

    return over_riders(one, law, seen)


def known(law: Law, seen: Riders, gains: Riders, tau: Scalar, x: Float[Array, "*shape"]) -> Riders:
    """What is known of each law at level tau: its log-density, in nats, and its denoiser."""

    def one(own, blur, gain):
        if own is None:
            return None
        density = nats(gain, level_of(blur, tau), x)
        return Known(density, smoothed_mean(blur, tau, x, own.denoised))

    return over_riders(one, law, seen, gains)


def over_riders(function: Callable, law: Law, first: Riders, *rest: Riders) -> Riders:
    """`function(first, blur, *rest)` of the law and of each model that rides with it."""
    own = function(first.own, law.blur, *(riders.own for riders in rest))
    each = zip(first.others, law.others, *(riders.others for riders in rest), strict=True)
    return Riders(own, tuple(function(part, nu.bandwidth, *more) for part, nu, *more in each))


def nats(gain: Scalar, tau: Scalar, x: Float[Array, "*shape"]) -> Float[Array, ""]:
    """log rho of a gain."""
    return jnp.asarray(gain - yardstick(tau, x.size))


def derivative(
    law: Law, perturbation: Perturbation, here: Riders, tau: Scalar, x: Float[Array, "*shape"]
) -> Float[Array, "K *shape"]:
    """dD of one law at one place: (2.1) against its own law, or (6.3) against its base."""
    own = here.own if law.measure is None else law.measure
    known = perturbation.with_known(here.others)
    return known.denoiser_derivative(tau, x, *own.posterior(tau, x))


def driven(
    laws: Laws, looks: list[Look], here: list[Riders], tau: Scalar, x: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "K *shape"]]:
    """The denoiser of the path, and how much it moves with the K tangents: J_D dx + dD."""
    moved = jnp.zeros((directions(laws), *x.shape), x.dtype)
    for law, seen, now in zip(laws, looks, here, strict=True):
        moved += law.weight * cast(Array, seen.pushed)
        if law.perturbation is not None:
            moved += law.weight * derivative(law, law.perturbation, now, tau, x)
    return denoised(laws, looks), moved


def denoised(laws: Laws, looks: list[Look]) -> Float[Array, "*shape"]:
    """The denoiser of the path, the weighted sum over the laws."""
    parts = [law.weight * seen.denoised for law, seen in zip(laws, looks, strict=True)]
    return functools.reduce(jnp.add, parts)


def check_law(base: Any) -> None:
    """Refuse a base that is no law, such as bare images."""
    if not isinstance(base, Smoothed):
        check_base(base)


def _law(process, score, weight, perturbation, base, prior):
    if isinstance(perturbation, Pair) or isinstance(base, Pair) or isinstance(prior, Pair):
        raise ValueError("a Pair belongs to a guided score, made by guide; this score has one law")
    if perturbation is not None:
        check_perturbation(perturbation)
        for nu in perturbation.learned:
            _check_same_noise(process, nu)
        if base is not None:
            check_law(base)
            perturbation = perturbation.with_default_bandwidth(base.bandwidth)
    rides = perturbation is not None and not isinstance(base, Measure)
    return Law(process, as_pytree(score), weight, perturbation, base, prior, rides)


def _pair(name, value, nothing):
    if isinstance(value, Pair):
        return value
    if value is None and nothing:
        return Pair()
    raise ValueError(
        f"a guided score has two laws: give Pair(unconditional, conditional) as {name}, "
        f"got {type(value).__name__}"
    )


def _check_same_noise(process, nu):
    """A model's own prior holds where its process ends, and its paths begin there."""
    ours, theirs = (p.noise_level(p.t_max) for p in (process, nu.process))
    if nu.prior is not None or not (_checks.is_concrete(ours) and _checks.is_concrete(theirs)):
        return
    if abs(ours - theirs) > 1e-3 * theirs:
        raise ValueError(
            f"the paths begin at noise level {float(ours):.4g} and the Learned law's process ends "
            f"at {float(theirs):.4g}: give it a prior, such as a Gaussian with the mean and "
            "covariance of its data"
        )

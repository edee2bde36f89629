r"""What drives a path, and the log-densities that ride on it.

A path's denoiser is a weighted sum over the laws that a score is made of: one law with weight 1, or
the two of a guided score, `D = (1 - g) D_u + g D_c` (6.2). Whatever the sum drives, the log-density
of each law's own flow is known along the path: at noise level tau, with dx/dtau = (x - D) / tau,

    (3.2)  d (log rho_i + d log tau) / dtau = tr J_Di / tau + (D_i - D).(D_i - x) / tau^3

The same holds for another model `nu` that takes no part in the sum (`Learned`). What is integrated
is the **gain** `log rho_i + d log tau`, which the solver need not follow down the logarithm.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.learned import Known, Learned
from scoresens.measures import Measure, check_base
from scoresens.paths import noise_end, prior_log_density_at
from scoresens.perturbations import Perturbation, check_perturbation
from scoresens.processes import Process, Scalar
from scoresens.scores import Guided, Pair, Score, as_pytree, canonical_denoiser
from scoresens.traces import TraceEstimator


@register_dataclass
@dataclass(frozen=True)
class Law:
    """One law that a score is made of: its share of the sum, how it changes, and the law that
    density ratios are taken against (None: its own, which then rides along)."""

    process: Process
    score: Score
    weight: Scalar
    perturbation: Perturbation | None
    base: Measure | None
    prior: Measure | None
    rides: bool = field(metadata={"static": True})  # whether its own log-density is followed

    @property
    def others(self) -> tuple[Learned, ...]:
        """The other models that ride along."""
        return () if self.perturbation is None else self.perturbation.learned


Laws = tuple[Law, ...]


class Seen(NamedTuple):
    """A network at one place."""

    denoised: Float[Array, "*shape"]
    trace: Scalar | None  # tr J_D, of those that ride
    pushed: Float[Array, "K *shape"] | None  # J_D riders


class Look(NamedTuple):
    """A law at one place, and the models that ride with it. In the state of a path, the same shape
    holds their gains."""

    own: Any
    others: tuple


def laws_of(
    process: Process,
    score: Score,
    perturbation: Perturbation | Pair,
    base: Measure | Pair | None,
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
    shapes |= {law.base.shape for law in laws if law.base is not None}
    if len(shapes) > 1:
        raise ValueError(f"perturbation and base are of samples of shapes {sorted(shapes)}")
    return shapes.pop()


def starts(laws: Laws, noise: Float[Array, "*shape"]) -> tuple[Look, ...]:
    """Gains at the noise, where every path begins."""

    def other(law, nu):
        hat, tau, _ = noise_end(law.process, noise, None)
        return _gain(prior_log_density_at(nu.process, nu.prior, tau, hat), tau, hat)

    def one(law):
        hat, tau, nats = noise_end(law.process, noise, law.prior)
        own = _gain(nats, tau, hat) if law.rides else None
        return Look(own, tuple(other(law, nu) for nu in law.others))

    return tuple(map(one, laws))


def look(
    law: Law,
    tau: Scalar,
    x: Float[Array, "*shape"],
    riders: Float[Array, "K *shape"],
    trace: TraceEstimator | None,
    probes: Any,
) -> Look:
    """A law's networks at one place; `riders` are pushed through the driving one."""

    def see(denoise, riders, rides):
        if not rides and not len(riders):
            return Seen(denoise(x), None, None)
        denoised, push = jax.linearize(denoise, x)
        if not rides:
            return Seen(denoised, None, jax.vmap(push)(riders))
        return Seen(denoised, *trace.apply(jax.vmap(push), probes, riders))

    def denoise(x):
        return canonical_denoiser(law.process, law.score, tau, x)

    nothing = jnp.zeros((0, *x.shape), x.dtype)
    others = tuple(see(lambda x, nu=nu: nu.denoise(tau, x), nothing, True) for nu in law.others)
    return Look(see(denoise, riders, law.rides), others)


def rates(
    seen: Look, tau: Scalar, x: Float[Array, "*shape"], denoised: Float[Array, "*shape"]
) -> Look:
    """How the gains grow along the path that `denoised` drives (3.2)."""

    def one(own):
        if own.trace is None:
            return None
        across = jnp.vdot(own.denoised - denoised, own.denoised - x)
        return own.trace / tau + across / tau**3

    return Look(one(seen.own), tuple(map(one, seen.others)))


def known(seen: Look, gains: Look, tau: Scalar, x: Float[Array, "*shape"]) -> Look:
    """What is known of the law and of the riders: log-densities, in nats, and denoisers."""

    def one(own, gain):
        return None if gain is None else Known(nats(gain, tau, x), own.denoised)

    others = map(one, seen.others, gains.others)
    return Look(one(seen.own, gains.own), tuple(others))


def nats(gain: Scalar, tau: Scalar, x: Float[Array, "*shape"]) -> Scalar:
    """log rho of a gain."""
    return gain - x.size * jnp.log(tau)


def derivative(
    law: Law, here: Look, tau: Scalar, x: Float[Array, "*shape"]
) -> Float[Array, "K *shape"]:
    """dD of one law at one place: (2.1) against its own law, or (6.3) against its base."""
    own = here.own if law.base is None else law.base
    perturbation = law.perturbation.with_known(here.others)
    return perturbation.denoiser_derivative(tau, x, *own.posterior(tau, x))


def driven(
    laws: Laws, looks: list[Look], here: list[Look], tau: Scalar, x: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "K *shape"]]:
    """The denoiser of the path, and how much it moves with the K tangents: J_D dx + dD."""
    denoised = sum(law.weight * seen.own.denoised for law, seen in zip(laws, looks, strict=True))
    moved = sum(law.weight * seen.own.pushed for law, seen in zip(laws, looks, strict=True))
    changes = [
        law.weight * derivative(law, now, tau, x)
        for law, now in zip(laws, here, strict=True)
        if law.perturbation is not None
    ]
    return denoised, moved + sum(changes)


def _gain(log_density, tau, x):
    return log_density + x.size * jnp.log(tau)


def _law(process, score, weight, perturbation, base, prior):
    if isinstance(perturbation, Pair) or isinstance(base, Pair) or isinstance(prior, Pair):
        raise ValueError("a Pair belongs to a guided score, made by guide; this score has one law")
    if perturbation is not None:
        check_perturbation(perturbation)
        for nu in perturbation.learned:
            _check_same_noise(process, nu)
        if base is not None:
            check_base(base)
            perturbation = perturbation.with_default_bandwidth(base.bandwidth)
    rides = base is None and perturbation is not None
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

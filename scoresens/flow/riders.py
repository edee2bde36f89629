r"""What drives a path, and the log-densities that ride along it.

A path's denoiser is a weighted sum over the laws that a score is made of, its **drivers**: one law
with weight 1, or the two of a guided score, `D = (1 - g) D_u + g D_c` (6.2). Whatever drives the
path, the log-density of each driver's own law can ride along: at noise level tau, on the flow,

    (3.2)  d log rho_i / dtau = (tr J_Di - d) / tau + (D_i - x).(D_i - D) / tau^3

which is (3.1) where D_i = D. The same holds for another model `nu` that takes no part in the sum
(`Learned`), and for either law **smoothed** by h (6.5), followed at `tau_h = sqrt(tau^2 + h^2)`:

           d log rho_{tau_h} / dtau = (tr J_D - d) tau / tau_h^2
               + (D - x).( tau^2 / tau_h^2 (D - x) + x - D_path ) / (tau tau_h^2),    D at tau_h

What is integrated are gains (`starts`). Along the reverse SDE see `diffusion`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scoresens import _checks
from scoresens._products import inner
from scoresens._pytrees import register_dataclass
from scoresens.flow.starts import check_process, gain_rate, noise_end, prior_gain
from scoresens.flow.traces import TraceEstimator
from scoresens.laws.kernels import (
    BREADTH,
    check_comparable,
    level_of,
    log_excess,
    smoothed_mean,
    yardstick,
)
from scoresens.laws.learned import Base, Known, Learned, Smoothed, check_base
from scoresens.laws.measures import Measure
from scoresens.laws.perturbations import Perturbation, check_perturbation
from scoresens.laws.processes import Process, Scalar
from scoresens.laws.scores import Guided, Pair, Score, as_pytree, canonical_denoiser


@register_dataclass
@dataclass(frozen=True)
class Driver:
    """A law that a score is made of: its share of the sum, how it changes, and the law that density
    ratios are taken against (None: its own, which then rides along)."""

    process: Process
    score: Score
    weight: Scalar = 1.0
    perturbation: Perturbation | None = None
    base: Base = None
    prior: Measure | None = None
    rides: bool = field(default=False, metadata={"static": True})  # its own log-density is followed

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


Drivers = tuple[Driver, ...]


class Evaluation(NamedTuple):
    """A network at one place."""

    denoised: Float[Array, "*shape"]
    trace: Scalar | None  # tr J_D; None where none is taken
    doubt: Scalar = 0.0  # the trace's standard error


class Riders(NamedTuple):
    """One thing for each log-density that is followed: an evaluation, a gain, a node, a `Known`."""

    own: Any  # of the driver, None where it does not ride
    others: tuple  # of the models that ride with it


class View(NamedTuple):
    """A driver at one place."""

    denoised: Float[Array, "*shape"]  # what drives the path
    pushed: Float[Array, "K *shape"] | None  # J_D tangents
    riders: Riders  # of evaluations


def drivers_of(
    process: Process,
    score: Score,
    perturbation: Perturbation | Pair,
    base: Base | Pair,
    prior: Measure | Pair | None,
) -> Drivers:
    """The laws that a score is made of, refused if what comes with it does not fit."""
    check_process(process)
    if not isinstance(score, Guided):
        return (_driver(process, score, 1.0, perturbation, base, prior),)
    pairs = [
        _pair(name, value, optional)
        for name, value, optional in (
            ("perturbation", perturbation, False),
            ("base", base, True),
            ("prior", prior, True),
        )
    ]
    if pairs[0] == Pair():
        raise ValueError("the Pair of perturbations changes neither of the two laws")
    scores = ((1 - score.weight, score.unconditional), (score.weight, score.conditional))
    return tuple(
        _driver(process, part, weight, *rest)
        for (weight, part), *rest in zip(scores, *pairs, strict=True)
    )


def rides(drivers: Drivers) -> bool:
    """Whether any log-density is followed."""
    return any(driver.rides or driver.others for driver in drivers)


def directions(drivers: Drivers) -> int:
    """K, the number of directions, one for all drivers."""
    counts = {len(d.perturbation) for d in drivers if d.perturbation is not None}
    if len(counts) > 1:
        raise ValueError(f"the two perturbations of a Pair have {sorted(counts)} directions")
    return counts.pop()


def some(drivers: Drivers, which: Int[Array, " n"]) -> Drivers:
    """The drivers with some of their directions."""
    return tuple(replace(d, perturbation=d.perturbation and d.perturbation[which]) for d in drivers)


def shape_of(drivers: Drivers) -> tuple[int, ...]:
    """Shape of one sample, one for all drivers."""
    shapes = {d.perturbation.shape for d in drivers if d.perturbation is not None}
    shapes |= {d.base.shape for d in drivers if isinstance(d.base, Measure)}
    if len(shapes) > 1:
        raise ValueError(f"perturbation and base are of samples of shapes {sorted(shapes)}")
    return shapes.pop()


def gains_at_noise(driver: Driver, noise: Float[Array, "*shape"]) -> Riders:
    """Gains at the noise, where every path begins."""
    hat, tau = noise_end(driver.process, noise)

    def gain(process, prior, blur):
        return prior_gain(process, prior, level_of(blur, tau), hat)

    own = gain(driver.process, driver.prior, driver.blur) if driver.rides else None
    return Riders(own, tuple(gain(nu.process, nu.prior, nu.bandwidth) for nu in driver.others))


def view(
    driver: Driver,
    tau: Scalar,
    x: Float[Array, "*shape"],
    tangents: Float[Array, "K *shape"],
    trace: TraceEstimator | None,
    probes: Any,
) -> View:
    """A driver's networks at one place; `tangents` are pushed through the driving one."""

    def follow(denoiser, tangents):
        denoised, push = jax.linearize(denoiser, x)
        rule = cast(TraceEstimator, trace)  # given wherever a log-density rides
        found, pushed = rule.estimate(jax.vmap(push), probes, tangents)
        return Evaluation(denoised, *found), pushed

    def denoiser(of, level):
        return lambda x: canonical_denoiser(of.process, of.score, level, x)

    none = jnp.zeros((0, *x.shape), x.dtype)
    others = tuple(
        follow(denoiser(nu, level_of(nu.bandwidth, tau)), none)[0] for nu in driver.others
    )
    if driver.rides and not isinstance(driver.base, Smoothed):
        own, pushed = follow(denoiser(driver, tau), tangents)
        return View(own.denoised, pushed, Riders(own, others))
    own = follow(denoiser(driver, level_of(driver.blur, tau)), none)[0] if driver.rides else None
    if not len(tangents):
        return View(denoiser(driver, tau)(x), None, Riders(own, others))
    denoised, push = jax.linearize(denoiser(driver, tau), x)
    return View(denoised, jax.vmap(push)(tangents), Riders(own, others))


def held_view(
    driver: Driver,
    tau: Scalar,
    x: Float[Array, "*shape"],
    trace: TraceEstimator | None,
    probes: Any,
) -> View:
    """A driver at one place, its denoiser to be differentiated by the place, and what rides not:
    the weights of a direction are held where the path is."""
    denoised = canonical_denoiser(driver.process, driver.score, tau, x)
    if not driver.rides:
        return View(denoised, None, Riders(None, ()))
    none = jnp.zeros((0, *x.shape), x.dtype)
    return View(
        denoised, None, view(driver, tau, jax.lax.stop_gradient(x), none, trace, probes).riders
    )


def gain_rates(
    driver: Driver,
    evaluated: Riders,
    tau: Scalar,
    x: Float[Array, "*shape"],
    denoised: Float[Array, "*shape"],
) -> Riders:
    """How the gains grow along the flow that `denoised` drives (3.2)."""

    def one(own, blur):
        if own is None:
            return None
        if own.denoised is denoised:  # its own flow: (3.1)
            return gain_rate(own.trace, tau, x.size)
        level, pull = level_of(blur, tau), own.denoised - x
        across = inner(pull, jnp.square(tau / level) * pull + (x - denoised))
        grown = gain_rate(own.trace, level, x.size) * tau / level
        return grown + across / (tau * jnp.square(level))

    return over_riders(one, driver, evaluated)


def known_from_gains(
    driver: Driver, evaluated: Riders, gains: Riders, tau: Scalar, x: Float[Array, "*shape"]
) -> Riders:
    """What is known of each law at level tau: its log-density, as a gain, and its denoiser."""

    def one(own, blur, gain):
        return None if own is None else known_of(own, gain, blur, tau, x)

    return over_riders(one, driver, evaluated, gains)


def known_of(
    own: Evaluation, gain: Scalar, blur: Scalar, tau: Scalar, x: Float[Array, "*shape"]
) -> Known:
    """What is known at level tau of a law that was met at `tau_h`, where its gain is of that
    level's yardstick."""
    bump = jnp.square(blur)
    gain = gain - 0.5 * x.size * log_excess(jnp.square(tau) + BREADTH**2 + bump, bump)
    return Known(gain, smoothed_mean(blur, tau, x, own.denoised))


def over_riders(function: Callable, driver: Driver, first: Riders, *rest: Riders) -> Riders:
    """`function(first, blur, *rest)` of the driver and of each model that rides with it."""
    own = function(first.own, driver.blur, *(riders.own for riders in rest))
    each = zip(first.others, driver.others, *(riders.others for riders in rest), strict=True)
    return Riders(own, tuple(function(part, nu.bandwidth, *more) for part, nu, *more in each))


def nats(gain: Scalar | Array, tau: Scalar | Array, size: int) -> Array:
    """log rho of a gain, in d dimensions."""
    return jnp.asarray(gain - yardstick(tau, size))


def total(drivers: Drivers, parts: list[Array]) -> Array:
    """The weighted sum over the drivers of one array each; one driver alone has weight 1."""
    if len(drivers) == 1:
        return parts[0]
    weighted = [d.weight * part for d, part in zip(drivers, parts, strict=True)]
    return functools.reduce(jnp.add, weighted)


def _driver(process, score, weight, perturbation, base, prior):
    if isinstance(perturbation, Pair) or isinstance(base, Pair) or isinstance(prior, Pair):
        raise ValueError("a Pair belongs to a guided score, made by guide; this score has one law")
    if perturbation is not None:
        check_perturbation(perturbation)
        for nu in perturbation.learned:
            _check_same_noise(process, nu)
        perturbation = perturbation.under(process)
        if base is not None:
            check_base(base)
            base = cast(Measure, base.under(process)) if isinstance(base, Measure) else base
            perturbation = perturbation.bumped_like(base)
        for part in perturbation.parts if base is None else ():
            check_comparable(part.measure.kernel)
    rides = perturbation is not None and not isinstance(base, Measure)
    return Driver(process, as_pytree(score), weight, perturbation, base, prior, rides)


def _pair(name, value, optional):
    if isinstance(value, Pair):
        return value
    if value is None and optional:
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

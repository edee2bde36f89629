r"""How noise becomes a sample: the probability flow, or the reverse SDE.

A route takes one sample from its noise at tau_max down to tau_min in the canonical frame,

    (1.1)   dx/dtau = (x - D) / tau                          `Flow()`
    (1.2)   dz = D dw + dB_w,   z = w x,  w = 1 / tau^2      `Diffusion(key)`, see `diffusion`

with D the sum over the drivers, and the log-densities that ride (`riders`). A verb says what else
travels, its `Cargo`: tangents, which move as `J_D dx + dD` does in the place of D,

    (4.1)   d(dx)/dtau = (dx - J_D dx - dD) / tau
    (4.2)   d(dz)/dw = J_D dx + dD

another denoiser in the place of D, such as that of changed data, or **taps**: what is added to the
denoiser at every stage, so that the gradient with respect to them is the path's discrete adjoint.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.flow import _nodes as nodes
from scoresens.flow import diffusion
from scoresens.flow._nodes import Errors
from scoresens.flow.riders import (
    Drivers,
    Evaluation,
    Riders,
    View,
    gain_rates,
    gains_at_noise,
    held_view,
    known_from_gains,
    nats,
    rides,
    total,
    view,
)
from scoresens.flow.solve import Solve, by_nodes, grid, integrate, pace, tableau, walk
from scoresens.flow.starts import fold, lowest_level, noise_end, prior_gain
from scoresens.flow.traces import TraceEstimator
from scoresens.laws.kernels import level_of
from scoresens.laws.learned import Known, Smoothed
from scoresens.laws.processes import Process, Scalar, check_gaussian


class Stage(NamedTuple):
    """Where a path is at one of its stages, and what is known there."""

    tau: Scalar
    x: Float[Array, "*shape"]
    views: tuple[View, ...]  # of each driver
    known: tuple[Riders, ...]  # log-density and denoiser of each law that rides


class Cargo(NamedTuple):
    """What travels along a route, one sample's; functions are pytrees (`Partial`)."""

    drivers: Drivers
    trace: TraceEstimator | None = None  # of what rides
    probes: Any = None
    moved: Callable[[Drivers, Stage], Array] | None = None  # J_D dx + dD of the tangents [K]
    changed: Callable[[Drivers, Stage], Array] | None = None  # the denoiser in the place of the sum
    flagged: Callable[[Drivers, Stage], Bool[Array, ""]] | None = None  # counted at each step's end


class Passed(NamedTuple):
    """What one stage of a tapped path leaves behind."""

    tau: Scalar
    x: Float[Array, "*shape"]
    known: Known | None  # of the driver's own law, if it rides


class End(NamedTuple):
    """The data end of one path."""

    x: Float[Array, "*shape"]
    tangents: Float[Array, "K *shape"]
    nats: tuple[Scalar | None, ...]  # log rho of each driver's own law; None where it does not ride
    steps: Int[Array, ""] | int
    solved: Bool[Array, ""]
    flags: Int[Array, ""] | None  # steps at whose end the flag was up
    passed: Passed | None  # [steps, stages, ...], of a tapped path
    errors: Errors | None = None  # of the log-densities, where they were followed from node to node


class Route(abc.ABC):
    """How noise becomes a sample: `Flow()` or `Diffusion(key)`."""

    noisy: bool  # whether paths are random

    @abc.abstractmethod
    def of_samples(self, count: int) -> "Route":
        """The route of each of `count` samples, to be mapped over."""

    @abc.abstractmethod
    def follow(
        self,
        cargo: Cargo,
        noise: Float[Array, "*shape"],
        solve: Solve,
        *,
        directions: int = 0,
        taps: Float[Array, "steps stages *shape"] | None = None,
    ) -> End:
        """One sample from its noise, in the process's frame, to the data end, with its cargo.

        Args:
            cargo: what travels.
            noise: `[*shape]`.
            solve: the numerics; the fixed grid of an explicit Runge-Kutta rule for taps and SDE.
            directions: K tangents, which start at zero.
            taps: what is added to the denoiser at each stage. What rides is then held fixed: no
                derivative passes through it.
        """


@register_dataclass
@dataclass(frozen=True)
class Flow(Route):
    """The probability flow (1.1): the sample is a function of its noise alone."""

    noisy = False

    def of_samples(self, count):
        return self

    def follow(self, cargo, noise, solve, *, directions=0, taps=None):
        process = cargo.drivers[0].process
        _check_followed(cargo)
        (hat, tau), end = noise_end(process, noise), lowest_level(process, solve)
        gains = tuple(gains_at_noise(driver, noise) for driver in cargo.drivers)
        state = (hat, _zeros(directions, hat), gains)
        if by_nodes(solve) and rides(cargo.drivers):
            return _flow_by_nodes(cargo, state, (tau, end), solve, taps)
        run = _flow_by_steps if by_nodes(solve) or taps is not None else _flow_by_diffrax
        return run(cargo, state, (tau, end), solve, taps)


class Reverse(Route):
    """The reverse SDE (1.2), along Brownian paths that are held fixed while the data change.

    Abstract: `of_samples`, `brownian`.
    """

    noisy = True

    @abc.abstractmethod
    def brownian(
        self, process: Process, noise: Float[Array, "*shape"], solve: Solve
    ) -> diffusion.Brownian:
        """The Brownian path of one sample."""

    def follow(self, cargo, noise, solve, *, directions=0, taps=None):
        drivers = cargo.drivers
        check_gaussian(drivers[0].process, "the reverse SDE")
        run = self.brownian(drivers[0].process, noise, solve)
        held = taps is not None

        def evaluate(w, state, before, tap, _):
            z, tangents = state
            place = _place(cargo, w**-0.5, z / w, tangents / w, held)

            def advance(driver, node, view, denoised):
                at = _hold((denoised, w, z), held)
                return diffusion.advanced(driver, node, view.riders, *at)

            def known(driver, node, view):
                return diffusion.known_at(driver, node, w, _hold(z, held))

            (denoised, moved), after, stage = _driven(cargo, before, place, advance, known)
            return (_tapped(denoised, tap), moved), after, _seen(cargo, stage, held)

        start = (run.z, _zeros(directions, run.z))
        nodes = diffusion.nodes_at_noise(drivers, noise, run, cargo.trace)
        before = (nodes, cargo.changed and jnp.zeros_like(run.z))
        (z, tangents), before, seen = walk(
            evaluate, start, before, run.clock, solve, kicks=run.kicks, taps=taps,
            to_last=not held and bool(rides(drivers) or cargo.flagged),
        )  # fmt: skip
        flags, bottom = None if held else _flags(cargo, seen), run.clock[-1]
        x, tangents = z / bottom, tangents / bottom
        gains = [riders.own and riders.own.gain for riders in before[0]]
        own = _nats(drivers, gains, bottom**-0.5, x)
        return End(x, tangents, own, solve.steps, jnp.array(True), flags, seen if held else None)


@register_dataclass
@dataclass(frozen=True)
class Diffusion(Reverse):
    """The reverse SDE (1.2), along Brownian paths that are drawn.

    Args:
        key: of the Brownian paths; sample i uses `fold_in(key, i)`, or its own of a row of keys
            `[M]`.
    """

    key: PRNGKeyArray | Key[Array, " M"]

    def __post_init__(self):
        _checks.key_given("Diffusion", self.key, "the Brownian paths are drawn from it")

    def of_samples(self, count):
        return Diffusion(fold(self.key, count))

    def brownian(self, process, noise, solve):
        return diffusion.brownian(process, noise, self.key, solve)


def _check_followed(cargo):
    """Refuses a log-density that rides a path other than its law's own flow (3.2) where the noise
    is not Gaussian."""
    first, *more = cargo.drivers
    foreign = cargo.changed or more or first.others or isinstance(first.base, Smoothed)
    if rides(cargo.drivers) and foreign:
        check_gaussian(first.process, "a log-density along a path not its law's own flow")


def climb(
    cargo: Cargo, x: Float[Array, "*shape"], tau: Scalar, solve: Solve
) -> tuple[Array, Scalar | None, Int[Array, ""] | int, Bool[Array, ""], Errors | None]:
    """One canonical state at level tau up the flow of its one driver: the noise in the process's
    frame, the gain of log rho^_tau(x) if it rides (3.1), the steps, whether the solver got there,
    and how far off the gain may be."""
    (driver,) = cargo.drivers
    t_max = jnp.asarray(driver.process.t_max, x.dtype)
    top = driver.process.noise_level(t_max)
    state = (x, _zeros(0, x), (Riders(jnp.zeros((), x.dtype) if driver.rides else None, ()),))
    if by_nodes(solve) and driver.rides:
        (hat, _), chain, _ = _walk_flow(cargo, state, (tau, top), solve)
        gained, errors = chain[0].own.gain, nodes.largest_errors(chain)
        steps, solved = solve.steps, jnp.array(True)
    else:
        (hat, _, (riders,)), steps, solved = integrate(_flow_field, cargo, state, tau, top, solve)
        gained, errors = riders.own, None
    noise = driver.process.from_canonical(t_max, hat)
    if not driver.rides:
        return noise, None, steps, solved, errors
    hat = driver.process.to_canonical(t_max, noise)
    return noise, prior_gain(driver.process, driver.prior, top, hat) - gained, steps, solved, errors


# ------------------------------------------------------------------ one stage


class _Place(NamedTuple):
    """Where a path is at a stage, and its drivers there."""

    tau: Scalar
    x: Float[Array, "*shape"]
    views: tuple[View, ...]


def _place(cargo, tau, x, tangents, held):
    return _Place(tau, x, _views(cargo, tau, x, tangents, held))


def _driven(cargo, before, place, advance, known):
    """At one stage: what drives the path and what its tangents move with; what the next stage needs
    (the laws that are followed, and by how much the path's denoiser differs from the drivers' sum);
    and the stage.

    A changed denoiser may depend on log-densities that are followed along the path it drives: they
    are followed with the last difference first, and again with the new one."""
    (chain, shift), drivers = before, cargo.drivers
    plain = total(drivers, [view.denoised for view in place.views])

    def follow(denoised):
        return tuple(
            advance(driver, riders, view, denoised)
            for driver, riders, view in zip(drivers, chain, place.views, strict=True)
        )

    here = follow(plain if shift is None else plain + shift)
    found = tuple(
        known(driver, riders, view)
        for driver, riders, view in zip(drivers, here, place.views, strict=True)
    )
    stage = Stage(place.tau, place.x, place.views, found)
    denoised, moved = _drive(cargo, stage)
    if shift is not None:
        here, shift = follow(denoised), denoised - plain
    return (denoised, moved), (here, shift), stage


def _zeros(directions, x):
    return jnp.zeros((directions, *x.shape), x.dtype)


def _views(cargo, tau, x, tangents, held):
    if held:
        return tuple(held_view(d, tau, x, cargo.trace, cargo.probes) for d in cargo.drivers)
    return tuple(view(d, tau, x, tangents, cargo.trace, cargo.probes) for d in cargo.drivers)


def _drive(cargo, stage):
    """The denoiser that drives the path, and what the tangents move with."""
    changed, moved = cargo.changed or _sum_of_drivers, cargo.moved or _nothing_moved
    return changed(cargo.drivers, stage), moved(cargo.drivers, stage)


def _sum_of_drivers(drivers, stage):
    return total(drivers, [view.denoised for view in stage.views])


def _nothing_moved(drivers, stage):
    return _zeros(0, stage.x)


def _passed(stage):
    return Passed(stage.tau, stage.x, stage.known[0].own)


def _seen(cargo, stage, held):
    """What a stage leaves behind."""
    if held:
        return _passed(stage)
    return cargo.flagged and cargo.flagged(cargo.drivers, stage)


def _flags(cargo, seen):
    """At how many steps' ends the flag was up: at all nodes but the first."""
    return cargo.flagged and jnp.sum(cast(Array, seen)[1:, 0])


def _hold(place, held):
    return jax.lax.stop_gradient(place) if held else place


def _tapped(denoised, tap):
    return denoised if tap is None else denoised + tap


def _nats(drivers, gains, end, x):
    """log rho of each driver's own law at the data end."""
    return tuple(
        None if gain is None else nats(gain, level_of(driver.blur, end), x.size)
        for driver, gain in zip(drivers, gains, strict=True)
    )


# ------------------------------------------------------------------ the flow, from node to node


def _flow_by_nodes(cargo, state, levels, solve, taps):
    (x, tangents), chain, seen = _walk_flow(cargo, state, levels, solve, taps)
    own = _nats(cargo.drivers, [riders.own and riders.own.gain for riders in chain], levels[1], x)
    flags, passed = (seen, None) if taps is None else (None, cast(Passed, seen))
    errors = nodes.largest_errors(chain)
    return End(x, tangents, own, solve.steps, jnp.array(True), flags, passed, errors)


def _walk_flow(cargo, state, levels, solve, taps=None):
    """x and tangents at the end, the laws that were followed, and what was seen: of a tapped path
    all its stages, else at how many steps' ends the flag was up."""
    (x, tangents, gains), held = state, taps is not None
    (top, bottom), offsets = levels, tableau(solve).c
    clock = grid(top, bottom, solve)

    def evaluate(tau, state, before, tap, stage):
        x, tangents = state
        chain, shift, past = before
        place = _place(cargo, tau, x, tangents, held)

        def here(denoised):
            rules, (at, drive) = nodes.rules(offsets, stage, past), _hold((x, denoised), held)
            return nodes.Here(rules, tau, pace(tau, top, bottom, solve), at, drive)

        def advance(driver, riders, view, denoised):
            return nodes.advanced(driver, past, riders, view.riders, here(denoised))

        def known(driver, riders, view):
            gains, at = nodes.gains_of(riders), _hold(x, held)
            return known_from_gains(driver, view.riders, gains, tau, at)

        (denoised, moved), (found, shift), at = _driven(
            cargo, (chain, shift), place, advance, known
        )
        chain, past = tuple(map(nodes.joined, chain, found)), nodes.passed(past, here(denoised))
        rates = (x - _tapped(denoised, tap)) / tau, (tangents - moved) / tau
        return rates, (chain, shift, past), _seen(cargo, at, held)

    shift = cargo.changed and jnp.zeros_like(x)
    before = (tuple(map(nodes.begun_laws, gains)), shift, nodes.begun(x, clock[0]))
    state, before, seen = walk(
        evaluate, (x, tangents), before, clock, solve, taps=taps, to_last=not held
    )
    return state, before[0], seen if held else _flags(cargo, seen)


# ------------------------------------------------------------------ the flow, gains among its state


def _flow_by_diffrax(cargo, state, levels, solve, _):
    (top, bottom), count = levels, cargo.flagged and _flow_flag
    (x, tangents, gains), steps, solved, *flags = integrate(
        _flow_field, cargo, state, top, bottom, solve, count=count
    )
    own = _nats(cargo.drivers, [riders.own for riders in gains], bottom, x)
    return End(x, tangents, own, steps, solved, flags[0] if flags else None, None)


def _flow_by_steps(cargo, state, levels, solve, taps):
    """What diffrax does on a fixed grid, as a program that is smaller and that JAX can keep from
    one process to the next (diffrax's checks call back to Python)."""
    held = taps is not None

    def evaluate(tau, state, before, tap, _):
        rates, stage = _flow_rates(cargo, tau, state, tap, held)
        return rates, before, _seen(cargo, stage, held)

    clock, to_last = grid(levels[0], levels[1], solve), not held and bool(cargo.flagged)
    (x, tangents, gains), _, seen = walk(
        evaluate, state, (), clock, solve, taps=taps, to_last=to_last
    )
    own = _nats(cargo.drivers, [riders.own for riders in gains], levels[1], x)
    flags, passed = (None, cast(Passed, seen)) if held else (_flags(cargo, seen), None)
    return End(x, tangents, own, solve.steps, jnp.array(True), flags, passed)


def _flow_field(tau, state, cargo):
    """(x, K tangents, gains of log rho) together: one linearisation a network, one linear pass over
    tangents and probes."""
    return _flow_rates(cargo, tau, state, None, held=False)[0]


def _flow_rates(cargo, tau, state, tap, held):
    x, tangents, gains = state
    place = _place(cargo, tau, x, tangents, held)
    stage = _flow_stage(cargo, place, gains)
    denoised, moved = _drive(cargo, stage)
    at = _hold((x, denoised), held)
    grown = tuple(
        gain_rates(driver, view.riders, tau, *at)
        for driver, view in zip(cargo.drivers, place.views, strict=True)
    )
    return ((x - _tapped(denoised, tap)) / tau, (tangents - moved) / tau, grown), stage


def _flow_stage(cargo, place, gains):
    known = tuple(
        known_from_gains(driver, view.riders, riders, place.tau, place.x)
        for driver, view, riders in zip(cargo.drivers, place.views, gains, strict=True)
    )
    return Stage(place.tau, place.x, place.views, known)


def _flow_flag(tau, state, cargo):
    """The flag at a step's end: log-densities tell, whatever the networks say."""
    x, _, gains = state
    views = tuple(
        View(x, None, jax.tree.map(lambda _: Evaluation(x, None), riders)) for riders in gains
    )
    return cargo.flagged(cargo.drivers, _flow_stage(cargo, _Place(tau, x, views), gains))

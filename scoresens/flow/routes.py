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
from scoresens.flow import diffusion
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
from scoresens.flow.solve import Solve, grid, integrate, walk
from scoresens.flow.starts import fold, lowest_level, noise_end, prior_log_density_at, yardstick
from scoresens.flow.traces import TraceEstimator
from scoresens.laws.bumps import level_of
from scoresens.laws.learned import Known
from scoresens.laws.processes import Scalar


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
        (hat, tau), end = noise_end(process, noise), lowest_level(process, solve)
        gains = tuple(gains_at_noise(driver, noise) for driver in cargo.drivers)
        state = (hat, _zeros(directions, hat), gains)
        flags, passed = [], None
        if taps is None:
            count = cargo.flagged and _flow_flag
            state, steps, solved, *flags = integrate(
                _flow_field, cargo, state, tau, end, solve, count=count
            )
        else:
            steps, solved = solve.steps, jnp.array(True)
            state, passed = _tapped_flow(cargo, state, grid(tau, end, solve), solve, taps)
        x, tangents, gains = state
        own = [
            None if riders.own is None else nats(riders.own, level_of(driver.blur, end), x)
            for driver, riders in zip(cargo.drivers, gains, strict=True)
        ]
        return End(x, tangents, tuple(own), steps, solved, flags[0] if flags else None, passed)


@register_dataclass
@dataclass(frozen=True)
class Diffusion(Route):
    """The reverse SDE (1.2), along Brownian paths that are held fixed while the data change.

    Args:
        key: of the Brownian paths; sample i uses `fold_in(key, i)`, or its own of a row of keys
            `[M]`.
    """

    key: PRNGKeyArray | Key[Array, " M"]

    noisy = True

    def __post_init__(self):
        _checks.key_given("Diffusion", self.key, "the Brownian paths are drawn from it")

    def of_samples(self, count):
        return Diffusion(fold(self.key, count))

    def follow(self, cargo, noise, solve, *, directions=0, taps=None):
        drivers = cargo.drivers
        run = diffusion.brownian(drivers[0].process, noise, self.key, solve)
        held = taps is not None

        def evaluate(w, state, before, tap):
            z, tangents = state
            views = _views(cargo, w**-0.5, z / w, tangents / w, held)
            (denoised, moved), after, stage = _diffusion_stage(cargo, before, w, z, views, held)
            seen = _passed(stage) if held else cargo.flagged and cargo.flagged(drivers, stage)
            return (denoised if tap is None else denoised + tap, moved), after, seen

        start = (run.z, _zeros(directions, run.z))
        nodes = diffusion.nodes_at_noise(drivers, noise, run, cargo.trace)
        before = (nodes, cargo.changed and jnp.zeros_like(run.z))
        (z, tangents), before, seen = walk(
            evaluate, start, before, run.clock, solve, kicks=run.kicks, taps=taps
        )
        bottom, flags = run.clock[-1], None
        if not held and (rides(drivers) or cargo.flagged):
            _, before, last = evaluate(bottom, (z, tangents), before, None)
            flags = cargo.flagged and jnp.sum(cast(Array, seen)[1:, 0]) + cast(Array, last)
        own = tuple(riders.own and riders.own.nats for riders in before[0])
        x, tangents = z / bottom, tangents / bottom
        return End(x, tangents, own, solve.steps, jnp.array(True), flags, seen if held else None)


def climb(
    cargo: Cargo, x: Float[Array, "*shape"], tau: Scalar, solve: Solve
) -> tuple[Array, Scalar | None, Int[Array, ""], Bool[Array, ""]]:
    """One canonical state at level tau up the flow of its one driver: the noise in the process's
    frame, log rho^_tau(x) if it rides (3.1), the steps, and whether the solver got there."""
    (driver,) = cargo.drivers
    t_max = jnp.asarray(driver.process.t_max, x.dtype)
    top = driver.process.noise_level(t_max)
    gains = (Riders(jnp.zeros((), x.dtype) if driver.rides else None, ()),)
    state, *ran = integrate(_flow_field, cargo, (x, _zeros(0, x), gains), tau, top, solve)
    hat, _, (gained,) = state
    noise = driver.process.from_canonical(t_max, hat)
    if not driver.rides:
        return noise, None, *ran
    at_noise = prior_log_density_at(
        driver.process, driver.prior, top, driver.process.to_canonical(t_max, noise)
    )
    start = at_noise + yardstick(top, x.size) - yardstick(tau, x.size)
    return noise, start - gained.own, *ran


# ------------------------------------------------------------------ one stage


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


def _hold(place, held):
    return jax.lax.stop_gradient(place) if held else place


# ------------------------------------------------------------------ the flow


def _flow_field(tau, state, cargo):
    """(x, K tangents, gains of log rho) together: one linearisation a network, one linear pass over
    tangents and probes."""
    views = _views(cargo, tau, *state[:2], held=False)
    return _flow_rates(cargo, _flow_stage(cargo, tau, state, views), state)


def _flow_stage(cargo, tau, state, views):
    x, _, gains = state
    known = tuple(
        known_from_gains(driver, view.riders, riders, tau, x)
        for driver, view, riders in zip(cargo.drivers, views, gains, strict=True)
    )
    return Stage(tau, x, views, known)


def _flow_rates(cargo, stage, state, tap=0.0, held=False):
    (x, tangents, _), tau = state, stage.tau
    denoised, moved = _drive(cargo, stage)
    place = _hold((x, denoised), held)
    grown = tuple(
        gain_rates(driver, view.riders, tau, *place)
        for driver, view in zip(cargo.drivers, stage.views, strict=True)
    )
    return (x - denoised - tap) / tau, (tangents - moved) / tau, grown


def _flow_flag(tau, state, cargo):
    """The flag at a step's end: log-densities tell, whatever the networks say."""
    x, _, gains = state
    views = tuple(
        View(x, None, jax.tree.map(lambda _: Evaluation(x, None), riders)) for riders in gains
    )
    return cargo.flagged(cargo.drivers, _flow_stage(cargo, tau, state, views))


def _tapped_flow(cargo, state, nodes, solve, taps):
    def evaluate(tau, state, before, tap):
        stage = _flow_stage(cargo, tau, state, _views(cargo, tau, *state[:2], held=True))
        return _flow_rates(cargo, stage, state, tap, held=True), before, _passed(stage)

    state, _, passed = walk(evaluate, state, (), nodes, solve, taps=taps)
    return state, passed


# ------------------------------------------------------------------ the reverse SDE


def _diffusion_stage(cargo, before, w, z, views, held):
    """At one stage: what drives the path and its tangents, what the next stage needs (nodes, and by
    how much the path's denoiser differs from the drivers' sum), and the stage.

    A changed denoiser may depend on log-densities that are followed along the path it drives: they
    are followed with the last difference first, and again with the new one."""
    (nodes, shift), drivers = before, cargo.drivers
    plain = total(drivers, [view.denoised for view in views])

    def follow(denoised):
        place = _hold((denoised, w, z), held)
        return tuple(
            diffusion.advanced(driver, node, view.riders, *place)
            for driver, node, view in zip(drivers, nodes, views, strict=True)
        )

    here = follow(plain if shift is None else plain + shift)
    known = tuple(
        diffusion.known_at(driver, node, w, _hold(z, held))
        for driver, node in zip(drivers, here, strict=True)
    )
    stage = Stage(w**-0.5, z / w, views, known)
    denoised, moved = _drive(cargo, stage)
    if shift is not None:
        here, shift = follow(denoised), denoised - plain
    return (denoised, moved), (here, shift), stage

r"""The reverse SDE: its Brownian path, and log-densities along it.

In the variables of stochastic localization, `z = x^ / tau^2` and `w = 1 / tau^2`, the reverse SDE
has a bounded drift and a constant diffusion,

    (1.2)  dz = D dw + dB_w

so that Ito's and Stratonovich's integrals agree on z, a Heun step is valid, and an Euler step is
the ancestral sampler's. With `psi(z, w) = E[exp(z.x_0 - w |x_0|^2 / 2)]`, grad log psi = D and

    log rho^ = log psi - |z|^2 / (2 w) + d/2 log(w / 2 pi)
    (3.3)  d log psi = D.dz - 1/2 |D|^2 dw                                         (Ito)
                     = D o dz - 1/2 (|D|^2 + tr J_D / w) dw               (Stratonovich)

for z on any path with this noise, whatever drives it. Between two nodes of the grid, with c the
first node's denoiser and delta the second's minus it, the Gaussian part is taken exactly,

    log rho^' - log rho^ = log N(x^'; c, tau'^2 I) - log N(x^; c, tau^2 I) + remainder

and the remainder is a left-point sum, 0 (`Ito`: no trace, strong order 1/2), or the trapezoid

    1/2 delta.(dz - c dw - 1/2 delta dw) + 1/4 delta.gamma dw
        - 1/4 (tr J_D + tr J_D') log(w'/w)                                              (order 1)

with gamma the change of the path's own drift: the mean of a product, not the product of means.
Both vanish where D has settled, which a sum of log rho^'s own increments does not. Root mean square
errors on a mixture in two dimensions at 50, 100, 200, 400 steps from tau = 20 to 0.01: 0.020,
0.0097, 0.0046, 0.0023 with the exact trace, 1.6, 1.2, 0.79, 0.56 without.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scoresens._products import inner
from scoresens._pytrees import register_dataclass
from scoresens.flow.riders import (
    Driver,
    Drivers,
    Evaluation,
    Riders,
    gains_at_noise,
    known_of,
    over_riders,
)
from scoresens.flow.solve import Solve, grid
from scoresens.flow.starts import kick_key, lowest_level, noise_end
from scoresens.flow.traces import TraceEstimator
from scoresens.laws.kernels import BREADTH, level_of, log_excess
from scoresens.laws.learned import Smoothed
from scoresens.laws.processes import Process, Scalar


@register_dataclass
@dataclass(frozen=True)
class Ito(TraceEstimator):
    """No trace: the left-point rule for log-densities along the reverse SDE, strong order 1/2."""

    needs_key = False
    takes_trace = False

    def draw(self, key, x):
        return None

    def apply(self, push, probes, riders):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, push(riders) if riders.shape[0] else riders

    def estimate(self, push, probes, riders):  # pyright: ignore[reportIncompatibleMethodOverride]
        none, images = self.apply(push, probes, riders)
        return (none, jnp.zeros((), riders.dtype)), images


class Brownian(NamedTuple):
    """One sample's start, its clock, and the noise of its steps."""

    z: Float[Array, "*shape"]
    clock: Float[Array, " nodes"]  # w, rising
    kicks: Float[Array, "steps *shape"]


class Node(NamedTuple):
    """A network where its log-density is followed from."""

    w: Scalar
    z: Float[Array, "*shape"]
    drift: Float[Array, "*shape"]  # dz/dw of the path, but for its noise
    evaluated: Evaluation
    gain: Scalar  # of log rho^ here


def brownian(
    process: Process, noise: Float[Array, "*shape"], key: PRNGKeyArray, solve: Solve
) -> Brownian:
    """The Brownian path of one sample: increment i is drawn from `kick_key(key, i)`."""
    hat, tau = noise_end(process, noise)
    clock = grid(tau, lowest_level(process, solve), solve) ** -2
    steps = jnp.arange(solve.steps)
    unit = jax.vmap(lambda i: jax.random.normal(kick_key(key, i), hat.shape, hat.dtype))(steps)
    kicks = jax.vmap(jnp.multiply)(jnp.sqrt(jnp.diff(clock)), unit)
    return Brownian(clock[0] * hat, clock, kicks)


def nodes_at_noise(
    drivers: Drivers, noise: Float[Array, "*shape"], run: Brownian, rule: TraceEstimator | None
) -> tuple[Riders, ...]:
    """Nodes at the noise, where nothing has been evaluated yet."""
    x, tau = run.z / run.clock[0], run.clock[0] ** -0.5
    trace = None if isinstance(rule, Ito) else jnp.zeros_like(tau)
    if trace is None and any(isinstance(driver.base, Smoothed) for driver in drivers):
        raise ValueError("Ito() does not follow a Smoothed law: give a trace estimator")

    def node(gain, blur):
        if gain is None:
            return None
        level = level_of(blur, tau)
        w = level**-2
        nothing = jnp.zeros_like(x)
        return Node(w, w * x, nothing, Evaluation(nothing, trace, jnp.zeros_like(tau)), gain)

    return tuple(over_riders(node, driver, gains_at_noise(driver, noise)) for driver in drivers)


def advanced(
    driver: Driver,
    before: Riders,
    evaluated: Riders,
    denoised: Float[Array, "*shape"],
    w: Scalar,
    z: Float[Array, "*shape"],
) -> Riders:
    """The nodes here, each log-density followed from the node before (3.3), along the path that
    `denoised` drives. A smoothed law has a clock of its own, w_h = 1 / (1/w + h^2), on which the
    path's noise is no unit one: only the trapezoid holds there."""

    def one(before, blur, evaluated):
        if before is None:
            return None
        own, x = level_of(blur, w**-0.5) ** -2, z / w
        here = Node(own, own * x, x + w / own * (denoised - x), evaluated, before.gain)
        return here._replace(gain=before.gain + _gained(before, here))

    return over_riders(one, driver, before, evaluated)


def known_at(driver: Driver, nodes: Riders, w: Scalar, z: Float[Array, "*shape"]) -> Riders:
    """What is known of each law at its node: its log-density, as a gain, and its denoiser."""

    def one(node, blur):
        return node and known_of(node.evaluated, node.gain, blur, w**-0.5, z / w)

    return over_riders(one, driver, nodes)


def _gained(node, here):
    """The gain here minus the gain at the node."""
    c = node.evaluated.denoised

    def bump(at):
        off = at.z - at.w * c
        constant = c.size * log_excess(1 / at.w, -(BREADTH**2))
        return -0.5 * (constant + jnp.sum(jnp.square(off)) / at.w)

    gained = bump(here) - bump(node)
    if here.evaluated.trace is None:
        return gained
    shift, elapsed = here.evaluated.denoised - c, here.w - node.w
    along = here.z - node.z - elapsed * (c + 0.5 * shift - 0.5 * (here.drift - node.drift))
    spread = (node.evaluated.trace + here.evaluated.trace) * jnp.log(here.w / node.w)
    return gained + 0.5 * inner(shift, along) - 0.25 * spread

r"""Log-densities along the flow, from node to node of a fixed grid.

Along any curve x(tau), with D_c the denoiser that drives the numerical path and s a law's score,

    d log rho = (tr J - d) dtau / tau + (u - v).s dtau + s.(dx - u dtau),      u = (x - D_c) / tau

The first two are (3.2); the third is what the solver's own error does, for the nodes of a path lie
beside the flow. A Runge-Kutta sum of (3.1) over the stages of a step leaves it out, and is itself
no better than the step: at the default 40 steps its error is in proportion to d, 125 nats at
d = 3,072 on an image-like spectrum, and density ratios are the exponential of it. Here

- both integrals are Adams and Moulton's, over the last four nodes: nothing more is evaluated;
- what a Gaussian of variance `l` would give is taken exactly and the quadrature is of the rest,
  with l such that its trace is the law's own: d l / (l + tau^2) = tr J. With a^2 = l + tau^2,

    x - x_0 - int u dtau = a ( x/a - x_0/a_0 - int m d(1/a) ),      m = x + (D_c - x) a^2 / tau^2

On the same spectrum the error is 0.1 nats at the levels that images live at (tau > 0.3), and the
rule of one node less says how large it is.
"""

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scoresens._products import contracted, inner
from scoresens.flow.riders import Driver, Evaluation, Riders, over_riders
from scoresens.laws.kernels import BREADTH, level_of, log_excess
from scoresens.laws.processes import Scalar

NODES = 3  # passed nodes that are kept
SETTLED = 0.9999  # of tr J / d: beyond, all of the law is resolved and l would be infinite


class Errors(NamedTuple):
    """How far off a log-density may be, nats."""

    grid: Scalar  # the sum of the differences to the rule of one node less, each without its sign
    trace: Scalar  # the sum of the trace's standard errors, as if all had one sign


class Followed(NamedTuple):
    """One law whose log-density is followed; traces newest first."""

    gain: Scalar  # at the newest node
    errors: Errors
    trace: Float[Array, "*nodes"]
    across: Float[Array, "*nodes"]  # (u - v).s tau


class Past(NamedTuple):
    """The last nodes that a path has passed, newest first."""

    length: Int[Array, ""]  # how many of them are there
    tau: Float[Array, "nodes"]
    pace: Float[Array, "nodes"]  # d log tau / d node
    x: Float[Array, "nodes *shape"]
    denoised: Float[Array, "nodes *shape"]  # D_c


class Here(NamedTuple):
    """A place that a path has come to."""

    rules: Float[Array, "2 weights"]  # of an integral since the newest node
    tau: Scalar
    pace: Scalar
    x: Float[Array, "*shape"]
    denoised: Float[Array, "*shape"]  # D_c


def begun(x: Float[Array, "*shape"], tau: Scalar) -> Past:
    """Before the first node: it stands at the beginning of the path itself."""
    levels = jnp.full(NODES, tau, x.dtype)
    places = jnp.broadcast_to(x, (NODES, *x.shape))
    return Past(jnp.zeros((), int), levels, jnp.zeros_like(levels), places, places)


def begun_laws(gains: Riders) -> Riders:
    """The laws at the beginning of a path."""

    def one(gain):
        nothing = jnp.zeros(NODES, gain.dtype)
        zero = jnp.zeros_like(gain)
        return Followed(gain, Errors(zero, zero), nothing, nothing)

    return jax.tree.map(one, gains)


def gains_of(chain: Riders) -> Riders:
    """Of all laws that are followed."""
    own = chain.own and chain.own.gain
    return Riders(own, tuple(law.gain for law in chain.others))


def largest_errors(chains: tuple[Riders, ...]) -> Errors:
    """Of all laws that are followed."""
    laws = [law for chain in chains for law in (chain.own, *chain.others) if law is not None]
    errors = (law.errors for law in laws)
    return jax.tree.map(lambda *parts: jnp.max(jnp.stack(parts)), *errors)


def passed(past: Past, here: Here) -> Past:
    """One node more."""
    count = jnp.minimum(past.length + 1, NODES)
    kept = (past.tau, past.pace, past.x, past.denoised)
    tau, pace, x, denoised = (_newest(*pair) for pair in zip(here[1:], kept, strict=True))
    return Past(count, tau, pace, x, denoised)


def joined(chain: Riders, here: Riders) -> Riders:
    """The laws at one node more."""

    def one(before, now):
        if before is None:
            return None
        trace, across = _newest(now.trace, before.trace), _newest(now.across, before.across)
        return Followed(now.gain, now.errors, trace, across)

    others = map(one, chain.others, here.others)
    return Riders(one(chain.own, here.own), tuple(others))


def advanced(driver: Driver, past: Past, chain: Riders, evaluated: Riders, here: Here) -> Riders:
    """Each law here, its log-density followed from the newest node."""

    def one(own, blur, before):
        return None if own is None else _advanced(past, before, own, blur, here)

    return over_riders(one, driver, evaluated, chain)


def _advanced(past: Past, before: Followed, own: Evaluation, blur: Scalar, here: Here) -> Followed:
    size, tau = here.x.size, jnp.append(here.tau, past.tau)
    level = level_of(blur, tau)
    spread_here = cast(Array, own.trace)  # taken wherever a log-density is followed
    settled = jnp.clip(spread_here / size, 0, SETTLED)
    spread = jnp.square(level[0]) * settled / (1 - settled)
    pull = own.denoised - here.x
    across = 0.0
    if own.denoised is not here.denoised:
        apart = jnp.square(here.tau / level[0]) * pull + (here.x - here.denoised)
        across = inner(pull, apart) / jnp.square(level[0])
    trace, across = jnp.append(spread_here, before.trace), jnp.append(across, before.across)

    pace = jnp.append(here.pace, past.pace)
    rest = trace - size * spread / (spread + jnp.square(level))
    rates = (rest * jnp.square(tau / level) + across) * pace
    weights, lower = here.rules
    constants = log_excess(jnp.square(level[:2]) + spread, spread - BREADTH**2)
    exact = -0.5 * size * (constants[0] - constants[1])

    missed, less = _missed(past, here, spread)
    score = pull / jnp.square(level[0])
    bent = 0.5 * (1 - settled) / jnp.square(level[0]) * jnp.sum(jnp.square(missed))
    gained = exact + jnp.sum(weights * rates) + inner(score, missed) + bent
    doubt = jnp.sum((weights - lower) * rates) + inner(score, missed - less)
    elapsed = jnp.abs(jnp.log(level[0] / level[1]))
    grid, probes = before.errors
    errors = Errors(grid + jnp.abs(doubt), probes + own.doubt * elapsed)
    return Followed(before.gain + gained, errors, trace[0], across[0])


def _missed(past, here, spread):
    """`x - x_0 - int u dtau` since the newest node, by each of the rules."""
    breadth = jnp.sqrt(spread + jnp.square(past.tau))
    now = jnp.sqrt(spread + jnp.square(here.tau))
    shift = now / breadth[0]
    weights = here.rules[:, 1:] * now * jnp.square(past.tau) * past.pace / breadth**3
    slope = (spread + jnp.square(past.tau)) / jnp.square(past.tau)
    mean = here.x + (here.denoised - here.x) * jnp.square(now / here.tau)
    of_x = contracted("rl,l...->r...", weights * (1 - slope), past.x)
    of_mean = contracted("rl,l...->r...", weights * slope, past.denoised)
    still = here.x - shift * past.x[0] - (1 - shift) * mean
    return still + of_x + of_mean - jnp.multiply.outer(jnp.sum(weights, 1), mean)


def _newest(now, before):
    return jnp.concatenate([jnp.asarray(now, before.dtype)[None], before[:-1]])


def rules(offsets: tuple[float, ...], stage: Int[Array, ""] | int, past: Past) -> Array:
    """Of an integral from the newest node to a stage, `[2, NODES + 1]`: the weights of the place
    and of the nodes before it, and those of the rule of one node less. Stage 0 is a node itself, a
    whole step after the newest."""
    tables = np.stack([_adams_moulton(offset or 1.0) for offset in offsets])
    count = past.length
    lower = jnp.maximum(count - 1, jnp.minimum(count, 1))
    return jnp.asarray(tables, past.tau.dtype)[stage, jnp.stack([count, lower])]


@functools.cache
def _adams_moulton(reach: float) -> np.ndarray:
    """By the number of nodes there are, 0 to NODES: exact for polynomials through all of them."""
    table = np.zeros((NODES + 1, NODES + 1))
    for count in range(1, NODES + 1):
        places = np.array([reach, *-np.arange(count)])
        powers = np.arange(count + 1)
        moments = reach ** (powers + 1) / (powers + 1)
        table[count, : count + 1] = np.linalg.solve(places ** powers[:, None], moments)
    return table

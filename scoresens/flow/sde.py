r"""The reverse SDE: its paths, and log-densities along them.

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

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scoresens import _checks
from scoresens._products import inner
from scoresens._pytrees import register_dataclass
from scoresens.flow.ode import Path, checked_start, finish, fold, lowest_level, noise_end
from scoresens.flow.riders import Law, Laws, Riders, Seen, Smoothed, look, nats, over_riders, starts
from scoresens.flow.solve import Solve, grid, over_samples, stats_of, walk
from scoresens.flow.traces import TraceEstimator
from scoresens.laws.learned import Known, level_of, smoothed_mean
from scoresens.laws.measures import Measure
from scoresens.laws.processes import Process, Scalar
from scoresens.laws.scores import Score


@register_dataclass
@dataclass(frozen=True)
class Ito(TraceEstimator):
    """No trace: the left-point rule for log-densities along the reverse SDE, strong order 1/2."""

    needs_key = False
    takes_trace = False

    def draw(self, key, x):
        return None

    def apply(self, push, probes, riders):
        return None, push(riders) if riders.shape[0] else riders


def sample_sde(
    process: Process,
    score: Score,
    noise: Float[Array, "M *shape"],
    *,
    key: PRNGKeyArray,
    trace: TraceEstimator | None = None,
    prior: Measure | None = None,
    solve: Solve = Solve(),
) -> Path:
    """Samples at the data end of the reverse SDE (1.2), and their log-density (3.3).

    Args:
        process: the forward process.
        score: `score(t, x)` of one sample.
        noise: `[M, *shape]` in the process's frame at t_max (`process.sample_prior`).
        key: the Brownian paths, and the probes of an estimator; sample i uses `fold_in(key, i)`.
        trace: how to follow log rho: an estimator of tr J_D (strong order 1 with `Exact`), or
            `Ito()` (no trace, order 1/2); None follows the samples alone.
        prior: the law whose noised log-density starts log rho, as in `sample_ode`.
        solve: the numerics; the grid must be fixed, the solver an explicit Runge-Kutta one.

    Returns:
        Path: `x [M, *shape]` in units of the data, `log_density [M]` in nats.

    Raises:
        ValueError: shapes, dtypes or a score that do not fit, a missing key, an adaptive solve.
        FloatingPointError: results that are not finite (outside `jit`).

    Notes:
        Cost: `2 steps` network evaluations a sample with Heun; a trace estimator adds its products
        at each. On 40 steps variances are 7-10 % small: take 160 or more.

    References:
        Anderson 1982; Song et al. 2021, arXiv 2011.13456, eq. 6; the variables: Montanari 2023,
        arXiv 2305.10690; log-densities: Skreta et al. 2024, arXiv 2412.17762.
    """
    _checks.key_given("sample_sde", key, "the Brownian path is drawn from it")
    noise, score = checked_start(process, score, noise)
    law = Law(process, score, 1.0, None, None, prior, rides=trace is not None)
    keys = fold(key, len(noise))
    return finish(solve, *_diffuse(law, noise, keys, trace, solve))


@functools.partial(jax.jit, static_argnames="solve")
def _diffuse(law, noise, keys, rule, solve):
    def one(noise, key):
        run = brownian(law.process, noise, key, solve)
        probes = None if rule is None else rule.draw(jax.random.fold_in(key, solve.steps), noise)
        riders = jnp.zeros((0, *noise.shape), noise.dtype)

        def evaluate(w, state, before, tap):
            z, tau = state[0], w**-0.5
            seen = look(law, tau, z / w, riders, rule, probes)
            return (seen.denoised,), advance(law, before, seen.seen, seen.denoised, w, z)

        before = begin((law,), noise, run, rule)[0]
        (z,), before, _ = walk(evaluate, (run.z,), before, run.clock, solve, kicks=run.kicks)
        if rule is None:
            return z / run.clock[-1], None
        _, end = evaluate(run.clock[-1], (z,), before, None)
        return z / run.clock[-1], end.own.nats

    x, density = over_samples(one, solve, noise, keys)
    steps, solved = jnp.full(len(noise), solve.steps), jnp.ones(len(noise), bool)
    return x, density, stats_of((x, density), steps, solved)


# ------------------------------------------------------------------ what other verbs build on


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
    seen: Seen
    nats: Scalar  # log rho^ here


def brownian(
    process: Process, noise: Float[Array, "*shape"], key: PRNGKeyArray, solve: Solve
) -> Brownian:
    """The Brownian path of one sample: increment i is drawn from `fold_in(key, i)`."""
    hat, tau, _ = noise_end(process, noise, None)
    clock = grid(tau, lowest_level(process, solve), solve) ** -2
    keys = fold(key, solve.steps)
    unit = jax.vmap(lambda k: jax.random.normal(k, hat.shape, hat.dtype))(keys)
    kicks = jax.vmap(jnp.multiply)(jnp.sqrt(jnp.diff(clock)), unit)
    return Brownian(clock[0] * hat, clock, kicks)


def begin(
    laws: Laws, noise: Float[Array, "*shape"], run: Brownian, rule: TraceEstimator | None
) -> tuple[Riders, ...]:
    """Nodes at the noise, where nothing has been seen yet."""
    x, tau = run.z / run.clock[0], run.clock[0] ** -0.5
    trace = None if isinstance(rule, Ito) else jnp.zeros_like(tau)
    if trace is None and any(isinstance(law.base, Smoothed) for law in laws):
        raise ValueError("Ito() does not follow a Smoothed law: give a trace estimator")

    def node(gain, blur):
        if gain is None:
            return None
        level = level_of(blur, tau)
        w = level**-2
        nothing = jnp.zeros_like(x)
        return Node(w, w * x, nothing, Seen(nothing, trace), nats(gain, level, x))

    gains = zip(laws, starts(laws, noise), strict=True)
    return tuple(over_riders(node, law, own) for law, own in gains)


def advance(
    law: Law,
    before: Riders,
    seen: Riders,
    denoised: Float[Array, "*shape"],
    w: Scalar,
    z: Float[Array, "*shape"],
) -> Riders:
    """The nodes here, each log-density followed from the node before (3.3), along the path that
    `denoised` drives. A smoothed law has a clock of its own, w_h = 1 / (1/w + h^2), on which the
    path's noise is no unit one: only the trapezoid holds there."""

    def one(before, blur, seen):
        if before is None:
            return None
        own, x = level_of(blur, w**-0.5) ** -2, z / w
        here = Node(own, own * x, x + w / own * (denoised - x), seen, before.nats)
        return here._replace(nats=before.nats + _gained(before, here))

    return over_riders(one, law, before, seen)


def known(law: Law, nodes: Riders, w: Scalar, z: Float[Array, "*shape"]) -> Riders:
    """What is known of the law and of the models that ride."""

    def one(node, blur):
        if node is None:
            return None
        return Known(node.nats, smoothed_mean(blur, w**-0.5, z / w, node.seen.denoised))

    return over_riders(one, law, nodes)


def _gained(node, here):
    """log rho^ here minus log rho^ at the node."""
    c = node.seen.denoised

    def bump(at):
        off = at.z - at.w * c
        return 0.5 * c.size * jnp.log(at.w) - 0.5 * jnp.sum(jnp.square(off)) / at.w

    gained = bump(here) - bump(node)
    if here.seen.trace is None:
        return gained
    shift, elapsed = here.seen.denoised - c, here.w - node.w
    along = here.z - node.z - elapsed * (c + 0.5 * shift - 0.5 * (here.drift - node.drift))
    spread = (node.seen.trace + here.seen.trace) * jnp.log(here.w / node.w)
    return gained + 0.5 * inner(shift, along) - 0.25 * spread

r"""How far a model is from the Fokker-Planck equation that noised laws obey.

The log-density of a law carried by the forward process `dx = f dt + g dW` obeys

    d_t log rho = -div f - f.grad log rho + g^2/2 (Lap log rho + |grad log rho|^2).

A network's potential phi, or its score s, obeys it up to a **residual**:

    (7.1)   R = d_t phi + div f + f.grad phi - g^2/2 (Lap phi + |grad phi|^2)
    (7.1s)  grad R = d_t s - grad( g^2/2 (div s + |s|^2) - f.s - div f )     no potential needed

Where `s = grad phi`, the second is the first's gradient. A score network need not be a gradient:
what keeps it from one is the antisymmetric part of its Jacobian,

    A = (J - J^T) / 2,    |A|_F^2 = tr A^T A.

Laplacian, divergence and norms are traces of linear maps, so that each can be exact or estimated by
probes (`traces`). The Laplacian is the trace of the score's Jacobian, d products from one
linearisation. Beside it, on softplus networks (benchmarks/fokker_planck.py), folx's forward
Laplacian took 1.2 times as long in 2 dimensions, 0.7 times in 64, and 7 times in 784; jet has no
rule for softplus. A residual costs what d bare products cost, its score form five times that.

References: Deveney et al. 2023, arXiv 2311.15996 (R); Lai et al. 2023, arXiv 2210.04296 (its score
form).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scoresens import _checks
from scoresens.flow.solve import Solve, in_batches
from scoresens.flow.starts import check_process, sample_keys
from scoresens.flow.traces import Exact, TraceEstimator, drawn
from scoresens.laws.processes import Process, Scalar, check_gaussian, root
from scoresens.laws.scores import Potential, Score, as_pytree

SOLVE = Solve(batch_size=1024)  # points side by side


class NonConservative(NamedTuple):
    """How far a score is from a gradient, at M points."""

    norm: Float[Array, " M"]  # |A|_F
    whole: Float[Array, " M"]  # |J|_F

    @property
    def share(self) -> Float[Array, " M"]:
        """|A|_F / |J|_F, from 0 (a gradient) to 1; 0 where J is."""
        return self.norm / jnp.where(self.whole > 0, self.whole, 1)


def fokker_planck_residual(
    process: Process,
    potential: Potential,
    t: Float[Array, " M"] | Scalar,
    x: Float[Array, "M *shape"],
    *,
    trace: TraceEstimator = Exact(),
    key: PRNGKeyArray | None = None,
    solve: Solve = SOLVE,
) -> Float[Array, " M"]:
    """The residual of a potential in the log-density's equation (7.1), 0 for the log-density of a
    noised law.

    Args:
        process: the forward process; its own frame is that of t and x.
        potential: `potential(t, x)`, a number for one sample.
        t: times `[M]`, or one for all, in [0, t_max].
        x: `[M, *shape]`.
        trace: how to take the Laplacian.
        key: for estimators that draw probes; point i uses `fold_in(key, i)`.
        solve: its `batch_size`, points side by side; memory grows with it.

    Returns:
        `[M]`, in nats per unit of time. A stochastic trace is unbiased for R, not for R^2.

    Raises:
        ValueError: shapes, dtypes or times that do not fit, a potential that is not scalar, a
            missing key.

    Notes:
        Cost: one evaluation with its gradient in (t, x), and d products of the score's Jacobian
        (one a probe). A term that depends on t alone adds its own rate.
    """
    check = _checks.potential_shape
    return _asked(potential_residual_at, check, process, potential, t, x, trace, key, solve)


def score_residual(
    process: Process,
    score: Score,
    t: Float[Array, " M"] | Scalar,
    x: Float[Array, "M *shape"],
    *,
    trace: TraceEstimator = Exact(),
    key: PRNGKeyArray | None = None,
    solve: Solve = SOLVE,
) -> Float[Array, "M *shape"]:
    """The residual of a score in the score's own equation (7.1s), 0 for the score of a noised law.

    Args:
        score: `score(t, x)` of one sample, of any network.
        (the others as in `fokker_planck_residual`)

    Returns:
        `[M, *shape]`, per unit of time and of x. Where the score is a potential's gradient, the
        gradient of `fokker_planck_residual`.

    Notes:
        Cost: one derivative in t, and the reverse pass of the divergence's d products. At t where
        g^2 is infinite or sigma is 0 it is not defined.

    References:
        Lai et al. 2023, arXiv 2210.04296, eq. 9 (there for VP and VE).
    """
    check = _checks.score_shape
    return _asked(score_residual_at, check, process, score, t, x, trace, key, solve)


def non_conservative_part(
    score: Score,
    t: Float[Array, " M"] | Scalar,
    x: Float[Array, "M *shape"],
    *,
    trace: TraceEstimator = Exact(),
    key: PRNGKeyArray | None = None,
    solve: Solve = SOLVE,
) -> NonConservative:
    """The size of the antisymmetric part of a score's Jacobian, 0 for every gradient.

    Args:
        score: `score(t, x)` of one sample, or any field `(t, x) -> array like x`.
        (the others as in `fokker_planck_residual`)

    Returns:
        NonConservative: `norm [M]` and that of the `whole` Jacobian, per unit of x and of the
            field; `share [M]`. With a stochastic trace the norms' squares are what is unbiased,
            and the share of one point may exceed 1: divide means of squares.

    Notes:
        Cost: three products with the Jacobian and three with its transpose a direction (d, or the
        probes).
    """
    check = _checks.score_shape
    return _asked(_non_conservative_at, check, None, score, t, x, trace, key, solve)


# ------------------------------------------------------------------ at one point


def potential_residual_at(
    process: Process,
    potential: Potential,
    trace: TraceEstimator,
    probes: Any,
    t: Scalar,
    x: Float[Array, "*shape"],
) -> Float[Array, ""]:
    """R at one point (7.1), differentiable in the potential's parameters and in x."""
    slopes = functools.partial(jax.grad(potential, argnums=(0, 1)), t)
    (rate, score), push = jax.linearize(slopes, x)
    laplacian = _trace(trace, lambda v: push(v)[1], probes, x)
    shrink = _log_alpha_rate(process, t)
    transport = shrink * (x.size + jnp.vdot(x, score))
    return rate + transport - 0.5 * _g2(process, t) * (laplacian + jnp.vdot(score, score))


def score_residual_at(
    process: Process,
    score: Score,
    trace: TraceEstimator,
    probes: Any,
    t: Scalar,
    x: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """The residual of the score's equation at one point (7.1s), differentiable in the score's
    parameters."""
    shrink, g2 = _log_alpha_rate(process, t), _g2(process, t)

    def rate_of_log_density(x):
        s, push = jax.linearize(functools.partial(score, t), x)
        divergence = _trace(trace, push, probes, x)
        return 0.5 * g2 * (divergence + jnp.vdot(s, s)) - shrink * jnp.vdot(x, s)

    _, rate = jax.jvp(lambda t: score(t, x), (t,), (jnp.ones_like(t),))
    return rate - jax.grad(rate_of_log_density)(x)


def _trace(trace, push, probes, x):
    nothing = jnp.zeros((0, *x.shape), x.dtype)
    return trace.apply(jax.vmap(push), probes, nothing)[0]


def _log_alpha_rate(process, t):
    """f(t, x) = (log alpha)' x."""
    return jax.grad(process.log_alpha)(t)


def _g2(process, t):
    return jnp.square(process.diffusion(t))


def _non_conservative_at(_, score, trace, probes, t, x):
    _, push = jax.linearize(functools.partial(score, t), x)
    pull = jax.linear_transpose(push, x)

    def twist(v):
        return 0.5 * (push(v) - pull(v)[0])

    twisted = _trace(trace, lambda v: -twist(twist(v)), probes, x)  # A^T = -A
    whole = _trace(trace, lambda v: pull(push(v))[0], probes, x)
    return NonConservative(*(root(jnp.maximum(square, 0)) for square in (twisted, whole)))


# ------------------------------------------------------------------ at many points


def _asked(rule, check, process, function, t, x, trace, key, solve):
    """The rule's values at what was asked for, once it is checked."""
    x, function = _checks.samples("x", x), as_pytree(function)
    if process is not None:
        check_process(process)
        check_gaussian(process, "a Fokker-Planck residual")
    t_max = jnp.inf if process is None else process.t_max
    t = _checks.times("t", t, len(x), t_max).astype(x.dtype)
    check(function, t[0], x[0])
    keys = sample_keys(trace, key, len(x))
    return _at_each(rule, process, function, t, x, trace, keys, solve.batch_size)


@functools.partial(jax.jit, static_argnames=("rule", "batch_size"))
def _at_each(rule, process, function, t, x, trace, keys, batch_size):
    def one(t, x, key):
        probes = drawn(trace, key, x)
        return rule(process, function, trace, probes, t, x)

    return in_batches(one, batch_size, t, x, keys)

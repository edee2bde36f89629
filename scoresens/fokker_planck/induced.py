r"""The two laws that a model's samplers induce, and their log-densities.

From one prior at t_max, a score s that is not quite that of a noised law sends its probability flow
and its reverse SDE to two laws, p^ODE and p^SDE:

    (1.1)   dx/dt = f - g^2/2 s
    (1.2)   dX = (-f + g^2 s) dtau + g dW,    tau = t_max - t

The SDE's density relative to the potential phi, `w = log p^SDE - phi`, is an expectation over the
*forward* process X, whose transitions are known (Feynman-Kac):

    (7.2)   w_t(x) = log E[ exp( int_t^T R_s(X_s) ds + w_T(X_T) ) | X_t = x ],
            w_T = log prior - phi_T

with the residual R of `fokker_planck`; the flow's density follows its paths (3.1).

Two grids of time are in use. Euler's rule runs on process times that the caller names, both laws on
the same ones, as the literature's own samplers do. Everything else runs on the canonical grid of
`Solve`, where the forward process is a Brownian motion in tau^2 and the reverse SDE is integrated
in the variables of `sde`.
"""

import functools
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scoresens import _checks
from scoresens.flow.diffusion import brownian
from scoresens.flow.euler import falling
from scoresens.flow.sampling import encode
from scoresens.flow.solve import Solve, grid, in_batches, over_samples, walk
from scoresens.flow.starts import checked_start, fold, lowest_level, sample_keys
from scoresens.flow.traces import Exact, TraceEstimator, drawn
from scoresens.fokker_planck.residuals import potential_residual_at
from scoresens.laws.processes import Process, check_gaussian, root
from scoresens.laws.scores import Potential, Score, as_pytree, canonical_denoiser, from_potential

RISE = 0x72697365  # the stream of a key that forward paths are drawn from, apart from the noise's


class Paths(NamedTuple):
    """M paths at the nodes of a grid, from data (times[0]) to noise (times[-1])."""

    times: Float[Array, " nodes"]
    x: Float[Array, "nodes M *shape"]  # in the process's own frame


class InducedDensity(NamedTuple):
    """Log-densities of an induced law at M points."""

    log_density: Float[Array, " M"]  # nats
    standard_error: Float[Array, " M"] | None  # of the paths drawn; None for the flow


# ------------------------------------------------------------------ paths


def reverse_paths(
    process: Process,
    score: Score,
    noise: Float[Array, "M *shape"],
    *,
    key: PRNGKeyArray,
    solve: Solve = Solve(steps=100),
) -> Paths:
    """Paths of the reverse SDE (1.2) at every node of the grid: samples of p^SDE_t for all t.

    Args:
        noise: `[M, *shape]` in the process's frame at t_max.
        key: of the Brownian paths; sample i uses `fold_in(key, i)`.
        solve: the grid; an explicit Runge-Kutta solver.

    Returns:
        Paths: `times [S+1]` rising, `x [S+1, M, *shape]`; x[-1] is the noise.

    Notes:
        The paths of `sample_sde` for the same key. Keeps M (S + 1) samples.
    """
    noise, score = checked_start(process, score, noise)
    check_gaussian(process, "the reverse SDE")
    _checks.key_given("reverse_paths", key, "the Brownian paths are drawn from it")
    return _reverse(process, score, noise, fold(key, len(noise)), solve)


def forward_paths(
    process: Process,
    x: Float[Array, "M *shape"],
    times: Float[Array, " nodes"],
    *,
    key: PRNGKeyArray,
) -> Paths:
    """Paths of the forward process from samples at times[0], by its exact transitions.

    Args:
        x: `[M, *shape]` in the process's frame at times[0].
        times: rising, within [0, t_max].
        key: sample i uses `fold_in(key, i)`.

    Returns:
        Paths: `times [S+1]`, `x [S+1, M, *shape]`; x[0] is what was given.
    """
    x = _checks.samples("x", x)
    check_gaussian(process, "the forward SDE")
    times = falling(process, jnp.asarray(times)[::-1])[::-1].astype(x.dtype)
    return Paths(times, _forward(process, x, times, fold(key, len(x))))


# ------------------------------------------------------------------ log-densities


def induced_log_density(
    process: Process,
    potential: Potential,
    x: Float[Array, "M *shape"],
    *,
    law: Literal["sde", "ode"],
    key: PRNGKeyArray | None = None,
    paths: int = 64,
    trace: TraceEstimator = Exact(),
    solve: Solve = Solve(steps=100),
) -> InducedDensity:
    """The log-density at the data end of the law that the reverse SDE (7.2) or the flow (3.1)
    induces.

    Args:
        process: the forward process, whose prior both laws start from.
        potential: `potential(t, x)`; its score drives the samplers.
        x: `[M, *shape]`, taken to be at noise level `solve.tau_min`.
        law: "sde": the mean over forward paths from each point (needs `key`); "ode": one path a
            point, up to the noise.
        key: of the forward paths; point i uses `fold_in(key, i)`.
        paths: forward paths a point, an even number: each has its mirror image.
        trace: how to take the Laplacian, or the divergence.
        solve: the grid of time.

    Returns:
        InducedDensity: `log_density [M]` in nats, with its standard error for "sde". The logarithm
            of a mean is low by about half the squared error.

    Raises:
        ValueError: shapes that do not fit, a potential that is not scalar, a missing key, an
            unknown law, an odd number of paths.

    Notes:
        Cost: "sde" `paths (steps + 1)` residuals a point, the trapezoidal rule in t (order 2);
        "ode" `2 steps` evaluations with a trace. The weights' spread grows with the residual:
        look at the standard error.

    References:
        Deveney et al. 2023, arXiv 2311.15996; Song et al. 2021, arXiv 2011.13456, eq. 39.
    """
    x, potential = _checks.samples("x", x), as_pytree(potential)
    _checks.potential_shape(potential, jnp.asarray(process.t_max, x.dtype), x[0])
    if law == "ode":
        score = from_potential(potential)
        up = encode(process, score, x, trace=trace, key=key, solve=solve)
        return InducedDensity(cast(Array, up.log_density), None)
    if law != "sde":
        raise ValueError(f"law must be 'sde' or 'ode', got {law!r}")
    check_gaussian(process, "the density of the reverse SDE")
    if paths < 2 or paths % 2:
        raise ValueError(f"paths must be an even number, 2 or more, got {paths}")
    _checks.key_given("induced_log_density", key, "the forward paths are drawn from it")
    sample_keys(trace, key, 1)
    return _feynman_kac(process, potential, x, trace, fold(cast(Array, key), len(x)), paths, solve)


# ------------------------------------------------------------------ what other verbs build on


def frame(
    process: Process, times: Float[Array, " nodes"]
) -> tuple[Float[Array, " nodes"], Float[Array, " nodes"]]:
    """tau and alpha at each time."""
    return jax.vmap(lambda t: (jnp.asarray(process.noise_level(t)), jnp.asarray(process.alpha(t))))(
        times
    )


def rising_times(process: Process, solve: Solve) -> Float[Array, " nodes"]:
    """The process times of the canonical grid, from data to noise."""
    top = process.noise_level(jnp.asarray(process.t_max, jnp.result_type(float)))
    levels = grid(top, lowest_level(process, solve), solve)
    times = jax.vmap(lambda tau: jnp.asarray(process.time(tau)))(levels[::-1])
    return times.at[-1].set(process.t_max)  # not a rounding beyond it


def log_weight(
    process: Process,
    potential: Potential,
    trace: TraceEstimator,
    times: Float[Array, " nodes"],
    start: Int[Array, ""] | int,
    x: Float[Array, "*shape"],
    normals: Float[Array, "S *shape"],
    key: PRNGKeyArray | None,
) -> Float[Array, ""]:
    """The exponent of (7.2) along one forward path from x at times[start], differentiable in x."""
    probes = drawn(trace, key, x)
    levels, alphas = frame(process, times)
    hats = _brownian_rise(levels, x / alphas[start], normals, start)
    widths = trapezoid(times, start)

    def add(total, node):
        t, alpha, hat, width = node
        here = potential_residual_at(process, potential, trace, probes, t, alpha * hat)
        return total + width * here, None

    total, _ = jax.lax.scan(add, jnp.zeros((), x.dtype), (times, alphas, hats, widths))
    return total + log_prior_ratio(process, potential, alphas[-1] * hats[-1])


def trapezoid(times: Float[Array, " nodes"], start: Int[Array, ""] | int = 0) -> Array:
    """What the trapezoidal rule weighs each node with, in an integral from times[start] on."""
    halves = 0.5 * jnp.where(jnp.arange(len(times) - 1) >= start, jnp.diff(times), 0)
    return jnp.append(halves, 0) + jnp.append(0, halves)


def log_prior_ratio(
    process: Process, potential: Potential, x: Float[Array, "*shape"]
) -> Float[Array, ""]:
    """w_T = log prior - phi_T at one point of the noise end."""
    return process.prior_log_density(x) - potential(jnp.asarray(process.t_max, x.dtype), x)


def log_mean_exp(exponents: Float[Array, " K"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The logarithm of a mean of exponentials, and its standard error from pairs of mirrored
    draws."""
    count = len(exponents)
    value = jax.nn.logsumexp(exponents) - jnp.log(count)
    pairs = jnp.exp(exponents - value).reshape(2, count // 2).mean(0)
    spread = jnp.std(pairs, ddof=1) if count > 2 else jnp.inf
    return value, spread / jnp.sqrt(count // 2)


def mirrored(
    key: PRNGKeyArray, paths: int, steps: int, x: Float[Array, "*shape"]
) -> Float[Array, "K S *shape"]:
    """Normal increments of `paths` forward paths, the second half minus the first."""
    half = jax.random.normal(jax.random.fold_in(key, RISE), (paths // 2, steps, *x.shape), x.dtype)
    return jnp.concatenate([half, -half])


# ------------------------------------------------------------------ kernels


@functools.partial(jax.jit, static_argnames="solve")
def _reverse(process, score, noise, keys, solve):
    def one(noise, key):
        run = brownian(process, noise, key, solve)

        def evaluate(w, state, before, tap, _):
            x = state[0] / w
            return (canonical_denoiser(process, score, w**-0.5, x),), before, x

        (z,), _, seen = walk(evaluate, (run.z,), (), run.clock, solve, kicks=run.kicks)
        return jnp.concatenate([seen[:, 0], z[None] / run.clock[-1]])[::-1]

    times = rising_times(process, solve).astype(noise.dtype)
    hats = jnp.moveaxis(over_samples(one, solve, noise, keys), 1, 0)
    return Paths(times, jax.vmap(process.from_canonical)(times, hats))


@jax.jit
def _forward(process, x, times, keys):
    levels, alphas = frame(process, times)

    def one(x, key):
        own = jax.random.fold_in(key, RISE)
        normals = jax.random.normal(own, (len(times) - 1, *x.shape), x.dtype)
        return _brownian_rise(levels, x / alphas[0], normals, 0)

    hats = jnp.moveaxis(jax.vmap(one)(x, keys), 1, 0)
    return jax.vmap(jnp.multiply)(alphas, hats)


def _brownian_rise(levels, hat, normals, start):
    """The canonical forward process from x^ at node `start`: variance tau^2 is gained; it stands
    still before."""
    gains = jnp.diff(levels) * (levels[1:] + levels[:-1])  # of tau^2, without cancellation
    deviations = root(jnp.where(jnp.arange(len(gains)) >= start, gains, 0))
    rises = jnp.cumsum(jax.vmap(jnp.multiply)(deviations, normals), 0)
    return hat + jnp.concatenate([jnp.zeros_like(rises[:1]), rises])


@functools.partial(jax.jit, static_argnames=("paths", "solve"))
def _feynman_kac(process, potential, x, trace, keys, paths, solve):
    times = rising_times(process, solve).astype(x.dtype)

    def one(x, key):
        probe_key = key if trace.needs_key else None
        normals = mirrored(key, paths, len(times) - 1, x)
        at = process.from_canonical(times[0], x)
        weigh = functools.partial(log_weight, process, potential, trace, times, 0, at)
        w, error = log_mean_exp(jax.vmap(lambda n: weigh(n, probe_key))(normals))
        return potential(times[0], at) + w + x.size * process.log_alpha(times[0]), error

    rows = max(1, solve.batch_size // paths)
    return InducedDensity(*in_batches(one, rows, x, keys))

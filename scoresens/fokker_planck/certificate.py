r"""The gap between the laws of a model's two samplers: how wide it is, and a bound from samples.

With `w = log p^SDE - phi`, q_t the forward process started from p^SDE_0, and T = t_max,

    (7.3)   E := int_0^T g^2/2 E_{p^SDE}|grad w|^2 dt
               = int_0^T E_{p^SDE}[R] dt + E_prior[w_T] - E_{p^SDE_0}[w_0]
    (7.4)   E <= int_0^T ( E_{p^SDE}[R] - E_q[R] ) dt + E_prior[w_T] - E_{q_T}[w_T]
    (7.5)   W_2(p^SDE_0, p^ODE_0) <= int_0^T e^M g^2/2 (E|grad w|^2)^(1/2) dt
                                  <= ( int_0^T g^2/2 e^(2M) dt )^(1/2) E^(1/2),  M(t) = int_0^t m,

where m(t) bounds how fast the flow, run towards the data, drives two points apart: the largest
eigenvalue of the symmetric part of -J_v. (7.4) needs samples and residuals alone, and does not
change when a function of time is added to phi: it is the **certificate**. (7.3) needs w, an
expectation over forward paths (7.2), and is what the certificate is measured against.

m(t) is estimated as the largest eigenvalue met on samples of the reverse SDE, which can only be too
small: bounds that use it are estimates of bounds.

References: Deveney et al. 2023, arXiv 2311.15996, theorem 1 and its proof; here with the terms that
vanish for an exact start and end kept.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scoresens import _checks
from scoresens.flow.solve import Solve, in_batches
from scoresens.flow.starts import sample_keys
from scoresens.flow.traces import Exact, TraceEstimator, drawn
from scoresens.fokker_planck.induced import (
    Paths,
    forward_paths,
    log_mean_exp,
    log_prior_ratio,
    log_weight,
    mirrored,
    reverse_paths,
    trapezoid,
)
from scoresens.fokker_planck.residuals import potential_residual_at
from scoresens.laws.processes import Process
from scoresens.laws.scores import Potential, as_pytree, from_potential
from scoresens.statistics import estimates
from scoresens.statistics.estimates import Estimate


class Certificate(NamedTuple):
    """A bound on the gap from samples and residuals alone (7.4, 7.5)."""

    energy: Estimate  # the right side of (7.4), nats
    w2: Estimate  # the last bound of (7.5), in units of x
    growth: Float[Array, " nodes"]  # M(t), estimated from samples
    times: Float[Array, " nodes"]  # from data to noise
    residual_reverse: Estimate  # int E[R] dt along p^SDE, nats
    residual_forward: Estimate  # int E[R] dt along q
    prior_start: Estimate  # E[w_T] of the prior
    prior_end: Estimate  # E[w_T] of q_T
    kept: Int[Array, ""]  # paths that stayed finite, of those given; the others are left out


class Gap(NamedTuple):
    """The gap by its definition (7.3), and the first bound of (7.5)."""

    energy: Estimate  # the left side of (7.3), nats
    identity: Estimate  # its right side
    w2: Float[Array, ""]  # the first bound of (7.5), in units of x
    speed: Estimate  # [S + 1], (E|grad w|^2) at each time, per unit of x, squared
    times: Float[Array, " nodes"]
    kept: Int[Array, ""]


def gap_certificate(
    process: Process,
    potential: Potential,
    noise: Float[Array, "M *shape"],
    *,
    key: PRNGKeyArray,
    trace: TraceEstimator = Exact(),
    solve: Solve = Solve(steps=200),
) -> Certificate:
    """A bound on the distance between the laws of a model's reverse SDE and of its flow, from
    samples and residuals (7.4), (7.5).

    Args:
        process: the forward process.
        potential: `potential(t, x)`.
        noise: `[M, *shape]`, draws of the process's prior (`process.sample_prior`), M >= 2.
        key: of the Brownian paths of both directions; sample i uses `fold_in(key, i)`.
        trace: how to take Laplacians; an unbiased trace leaves `energy` unbiased.
        solve: the grid of time, from t_max to noise level `tau_min`.

    Returns:
        Certificate: `energy` and `w2` with 95 % intervals over paths, and the terms that make
            them. `w2` rests on `growth`, which samples can only estimate from below. An energy
            whose interval reaches below 0 certifies nothing smaller than its upper end.

    Raises:
        ValueError: shapes that do not fit, a potential that is not scalar, a missing key, fewer
            than two paths.
        FloatingPointError: fewer than two paths stayed finite (within `jit` the numbers are then
            NaN, and `kept` says why).

    Notes:
        Cost a sample: `2 steps` evaluations for the path, `2 (steps + 1)` residuals, and d products
        with an eigendecomposition, d^3, at each node. Integrals by the trapezoidal rule.
    """
    noise, potential = _asked(process, potential, noise, key, trace)
    reverse, forward = jax.random.split(key)
    down = reverse_paths(process, from_potential(potential), noise, key=reverse, solve=solve)
    good = _finite_paths(down)
    ends = jax.vmap(jnp.where)(good, down.x[0], noise)  # the others are left out below
    up = forward_paths(process, ends, down.times, key=forward)
    terms = [_integrals(process, potential, trace, paths, key, solve) for paths in (down, up)]
    ratio = jax.vmap(functools.partial(log_prior_ratio, process, potential))
    terms = jnp.stack([*terms, ratio(noise), ratio(up.x[-1])], 1)
    growth = _growth(process, potential, _kept(down, good), solve.batch_size)
    energy = _mean(terms @ jnp.array([1.0, -1.0, 1.0, -1.0], terms.dtype), good)
    stretch = jnp.sqrt(_integral(0.5 * _g2(process, down.times) * jnp.exp(2 * growth), down.times))
    w2 = Estimate(*(stretch * jnp.sqrt(jnp.maximum(bound, 0)) for bound in energy))
    reverse_part, forward_part, start, end = (_mean(term, good) for term in terms.T)
    parts = (reverse_part, forward_part, start, end)
    return Certificate(energy, w2, growth, down.times, *parts, jnp.sum(good))


def ode_sde_gap(
    process: Process,
    potential: Potential,
    noise: Float[Array, "M *shape"],
    *,
    key: PRNGKeyArray,
    paths: int = 64,
    trace: TraceEstimator = Exact(),
    solve: Solve = Solve(steps=100),
) -> Gap:
    """Both sides of the identity (7.3), and the first bound of (7.5), from samples.

    Args:
        noise: `[M, *shape]`, draws of the process's prior; M of at least twice `steps + 1` samples:
            sample i looks at grad w at time `i mod (steps + 1)`.
        paths: forward paths that w and its gradient are estimated from, a multiple of 4: two halves
            that are independent make the square of the gradient nearly unbiased.
        (the others as in `gap_certificate`)

    Returns:
        Gap: the two sides with 95 % intervals; their biases fall as 1 / paths.

    Notes:
        Cost a sample: two times `paths (steps + 1)` residuals, one of them differentiated in x.
        Raises as `gap_certificate`.
    """
    noise, potential = _asked(process, potential, noise, key, trace)
    count = len(noise)
    if paths < 4 or paths % 4:
        raise ValueError(f"paths must be a multiple of 4, got {paths}")
    if count < 2 * (solve.steps + 1):
        raise ValueError(
            f"ode_sde_gap spreads its samples over {solve.steps + 1} times: give at least "
            f"{2 * (solve.steps + 1)} of them, got {count}"
        )
    down = reverse_paths(process, from_potential(potential), noise, key=key, solve=solve)
    good = _finite_paths(down)
    looks = jnp.arange(count) % (solve.steps + 1)
    slopes, w0 = _ratios(process, potential, trace, down, looks, key, paths, solve)
    residuals = _integrals(process, potential, trace, down, key, solve)
    ends = jax.vmap(functools.partial(log_prior_ratio, process, potential))(noise)
    growth = _growth(process, potential, _kept(down, good), solve.batch_size)
    half_g2 = 0.5 * _g2(process, down.times)
    weights = half_g2 * trapezoid(down.times)
    energy = _mean(len(weights) * weights[looks] * slopes, good)
    identity = _mean(residuals + ends - w0, good)
    speed = _by_time(slopes, looks, good, len(weights))
    w2 = _integral(jnp.exp(growth) * half_g2 * jnp.sqrt(jnp.maximum(speed.value, 0)), down.times)
    return Gap(energy, identity, w2, speed, down.times, jnp.sum(good))


# ------------------------------------------------------------------ kernels


@functools.partial(jax.jit, static_argnames="solve")
def _integrals(process, potential, trace, paths, key, solve):
    """int R dt along each path, by the trapezoidal rule."""
    widths = trapezoid(paths.times)

    def one(x, index):
        sample_key = jax.random.fold_in(key, index) if trace.needs_key else None
        probes = drawn(trace, sample_key, x[0])
        here = functools.partial(potential_residual_at, process, potential, trace, probes)
        return jnp.vdot(widths, jax.lax.map(lambda node: here(*node), (paths.times, x)))

    x = jnp.moveaxis(paths.x, 1, 0)
    return in_batches(one, solve.batch_size, x, jnp.arange(len(x)))


@functools.partial(jax.jit, static_argnames="batch_size")
def _growth(process, potential, paths, batch_size):
    """M(t) of (7.5): the integral from the data end of the largest eigenvalue, over the paths'
    samples, of the symmetric part of -J_v."""

    def rate(t, x):
        shape = x.shape

        def back(x):  # -v, flat
            x = x.reshape(shape)
            pull = 0.5 * jnp.square(process.diffusion(t)) * jax.grad(potential, 1)(t, x)
            return (pull - process.drift(t, x)).reshape(-1)

        jacobian = jax.jacfwd(back)(x.reshape(-1))
        return jnp.linalg.eigvalsh(0.5 * (jacobian + jacobian.T))[-1]

    def worst(node):
        t, x = node
        return jnp.max(in_batches(lambda x: rate(t, x), batch_size, x))

    rates = jax.lax.map(worst, paths)
    halves = 0.5 * jnp.diff(paths.times) * (rates[1:] + rates[:-1])
    return jnp.append(0, jnp.cumsum(halves)).astype(rates.dtype)


@functools.partial(jax.jit, static_argnames=("paths", "solve"))
def _ratios(process, potential, trace, down, looks, key, paths, solve):
    """|grad w|^2 of each sample at its own time, by two independent halves, and w_0 at its end."""
    times = down.times

    def weights(start, x, normals, key):
        weigh = functools.partial(log_weight, process, potential, trace, times, start)
        return jax.vmap(lambda n: weigh(x, n, key))(normals)

    def one(path, look, index):
        sample_key = jax.random.fold_in(key, index)
        probe = sample_key if trace.needs_key else None
        draws = [
            mirrored(jax.random.fold_in(sample_key, i), paths // 2, len(times) - 1, path[0])
            for i in range(4)
        ]
        here = path[look]
        slopes = [
            jax.grad(lambda x, n=n: log_mean_exp(weights(look, x, n, probe))[0])(here)
            for n in draws[:2]
        ]
        ends = jnp.concatenate([weights(0, path[0], n, probe) for n in draws[2:]])
        return jnp.vdot(*slopes), log_mean_exp(ends)[0]

    rows = max(1, solve.batch_size // paths)
    x = jnp.moveaxis(down.x, 1, 0)
    return in_batches(one, rows, x, looks, jnp.arange(len(x)))


# ------------------------------------------------------------------ small pieces


def _asked(process, potential, noise, key, trace):
    noise, potential = _checks.samples("noise", noise), as_pytree(potential)
    _checks.potential_shape(potential, jnp.asarray(process.t_max, noise.dtype), noise[0])
    _checks.key_given("the gap's estimate", key, "Brownian paths are drawn from it", rows=False)
    sample_keys(trace, key, 1)
    if len(noise) < 2:
        raise ValueError(f"noise must hold two samples or more for an interval, got {len(noise)}")
    return noise, potential


def _g2(process, times):
    return jnp.square(jax.vmap(process.diffusion)(times))


def _integral(values, times):
    return jnp.vdot(trapezoid(times), values)


def _finite_paths(paths):
    """Which paths stayed finite."""
    good = jnp.all(jnp.isfinite(paths.x), axis=(0, *range(2, paths.x.ndim)))
    if _checks.is_concrete(good) and int(jnp.sum(good)) < 2:
        raise FloatingPointError(
            "fewer than two paths stayed finite: the score drives samples to infinity, or the "
            "grid is too coarse for it (raise Solve.steps)"
        )
    return good


def _kept(paths, good):
    """The paths, with one that stayed finite in the place of each that did not."""
    fits = good.reshape(-1, *(1,) * (paths.x.ndim - 2))
    return Paths(paths.times, jnp.where(fits, paths.x, paths.x[:, jnp.argmax(good)][:, None]))


def _mean(values, good):
    """The mean over the paths that stayed finite, with its interval."""
    number, safe = jnp.sum(good), jnp.where(good, values, 0)
    mean = jnp.sum(safe) / number
    square = jnp.sum(jnp.where(good, safe - mean, 0) ** 2) / (number - 1)
    return estimates.around(mean, jnp.sqrt(square / number))


def _by_time(values, looks, good, count):
    """Means of values by the time that they were taken at, with their intervals."""
    number = jnp.zeros(count).at[looks].add(good)
    safe = jnp.where(good, values, 0)
    mean = jnp.zeros(count).at[looks].add(safe) / number
    square = jnp.zeros(count).at[looks].add(jnp.where(good, safe - mean[looks], 0) ** 2)
    return estimates.around(mean, jnp.sqrt(square / (number - 1) / number))

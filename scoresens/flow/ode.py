r"""Paths of the probability flow between data and noise, and log-densities along them.

All paths run in the canonical frame, where the state is in units of the data and the clock is the
noise level tau (mathematics in `processes`). Down from `tau_max = noise_level(t_max)` to `tau_min`:

    (1.3)  dx/dtau = (x - D(x, tau)) / tau                                  probability flow
    (3.1)  d log rho/dtau = -div v = (tr J_D - d) / tau                     along the flow
    (3.2)  d log rho/dtau = (tr J_D - d) / tau + (u - v).s         along any curve dx/dtau = u

What is integrated is the **gain** `log rho + d/2 log(tau^2 + c^2)`, the log-density measured
against a broad Gaussian's: the fall by `d log tau` at high noise is taken exactly, and the solver
follows the data's own structure alone (40 Heun steps on digits: 0.3 nats off at the data end with
c = 0.25, 1.9 with log rho itself, 12 with c = 0).

Results are in units of the data at noise level `tau_min` (0.002 by default, invisible on data of
order 1): `x` is a draw of rho_tau_min, and `log_density` is log rho_tau_min(x). Noise goes in and
comes out in the process's own frame, at t_max.
"""

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray

from scoresens import _checks
from scoresens.flow.solve import (
    Solve,
    Stats,
    integrate,
    over_samples,
    raise_if_failed,
    stats_of,
)
from scoresens.flow.traces import TraceEstimator
from scoresens.laws.measures import Measure
from scoresens.laws.processes import Process, Scalar
from scoresens.laws.scores import Score, as_pytree, canonical_denoiser

BREADTH = 0.25  # c of the yardstick, for data of order 1


class Path(NamedTuple):
    """The far end of M paths."""

    x: Float[Array, "M *shape"]
    log_density: (
        Float[Array, " M"] | None
    )  # nats, of the law at the data end; None if not asked for
    stats: Stats


def sample_ode(
    process: Process,
    score: Score,
    noise: Float[Array, "M *shape"],
    *,
    trace: TraceEstimator | None = None,
    prior: Measure | None = None,
    key: PRNGKeyArray | None = None,
    solve: Solve = Solve(),
) -> Path:
    """Samples at the data end of the probability flow (1.1) from given noise, and their log-density
    (3.1).

    Args:
        process: the forward process.
        score: `score(t, x)` of one sample.
        noise: `[M, *shape]` in the process's frame at t_max (`process.sample_prior`).
        trace: the estimator of tr J_D to follow log rho with; None follows the samples alone.
        prior: the law whose noised log-density starts log rho at t_max; None is the process's
            prior. The data set itself (`Points`) removes the mismatch between the prior and the
            noised data.
        key: for estimators that draw probes; sample i uses `fold_in(key, i)`.
        solve: the numerics.

    Returns:
        Path: `x [M, *shape]` in units of the data, `log_density [M]` in nats.

    Raises:
        ValueError: shapes, dtypes or a score that do not fit, a missing key.
        FloatingPointError: a solve that failed or a result that is not finite (outside `jit`;
            inside it, see `stats`).

    Notes:
        Cost: `2 steps` network evaluations a sample with Heun, each with one Jacobian-vector
        product a probe.

    References:
        Song et al. 2021, arXiv 2011.13456, eq. 13 and 39; Karras et al. 2022, arXiv 2206.00364,
        algorithm 1.
    """
    noise, score = checked_start(process, score, noise)
    if trace is None:
        return finish(solve, *_flow(process, score, noise, solve))
    keys = sample_keys(trace, key, len(noise))
    run = (process, (score,), noise, trace, prior, keys, solve)
    return finish(solve, *_with_density(_density_field, *run))


def encode(
    process: Process,
    score: Score,
    x: Float[Array, "M *shape"],
    *,
    trace: TraceEstimator | None = None,
    prior: Measure | None = None,
    key: PRNGKeyArray | None = None,
    solve: Solve = Solve(),
) -> Path:
    """The noise that the probability flow sends each sample to, and the sample's log-density (3.1).

    Args:
        x: `[M, *shape]` data, taken to be at noise level `solve.tau_min`.
        (the others as in `sample_ode`)

    Returns:
        Path: `x [M, *shape]` noise in the process's frame at t_max; `log_density [M]` of the
            *data*, in nats.

    Notes:
        The inverse of `sample_ode` up to the solver's error. Raises and cost as there.
    """
    x, score = checked_start(process, score, x, name="x")
    tau = jnp.full(len(x), lowest_level(process, solve), x.dtype)
    return finish(solve, *_climb(process, score, x, tau, trace, prior, key, solve))


def log_density_along(
    process: Process,
    score: Score,
    velocity: Score,
    noise: Float[Array, "M *shape"],
    *,
    trace: TraceEstimator,
    prior: Measure | None = None,
    key: PRNGKeyArray | None = None,
    solve: Solve = Solve(),
) -> Path:
    """log rho_t of the score's law along curves that another velocity drives (3.2).

    Args:
        velocity: `velocity(t, x)` of one sample, dx/dt of the curve in the process's own frame and
            time.
        (the others as in `sample_ode`)

    Returns:
        Path: `x [M, *shape]`, where the curves end, in units of the data; `log_density [M]` of the
            score's law there.

    Notes:
        With the score's own velocity this is `sample_ode`. One more evaluation a stage than it: the
        velocity's.
    """
    noise, score = checked_start(process, score, noise)
    velocity = as_pytree(velocity)
    _checks.score_shape(velocity, jnp.asarray(process.t_max, noise.dtype), noise[0], "velocity")
    keys = sample_keys(trace, key, len(noise))
    run = (process, (score, velocity), noise, trace, prior, keys, solve)
    return finish(solve, *_with_density(_foreign_field, *run))


# ------------------------------------------------------------------ what other verbs build on


def checked_start(
    process: Process,
    score: Score,
    x: Float[Array, "M *shape"],
    *,
    name: str = "noise",
    shape: tuple[int, ...] | None = None,
) -> tuple[Float[Array, "M *shape"], Score]:
    """The samples and the score, each refused if it does not fit the other or the process."""
    check_process(process)
    x, score = _checks.samples(name, x, shape), as_pytree(score)
    _checks.score_shape(score, jnp.asarray(process.t_max, x.dtype), x[0])
    return x, score


def check_process(process: Process) -> None:
    """Refuse what is no process."""
    if not isinstance(process, Process):
        raise ValueError(
            "process must be one of VP, SubVP, VE, EDM, OU, Cosine, FlowMatching, "
            f"got {type(process)}"
        )


def noise_end(
    process: Process, noise: Float[Array, "*shape"], prior: Measure | None
) -> tuple[Float[Array, "*shape"], Scalar, Scalar]:
    """One sample's canonical start: (x^, tau_max, log rho^ there), from noise in the process's
    frame."""
    t = jnp.asarray(process.t_max, noise.dtype)
    tau, hat = process.noise_level(t), process.to_canonical(t, noise)
    return hat, tau, prior_log_density_at(process, prior, tau, hat)


def prior_log_density_at(
    process: Process, prior: Measure | None, tau: Scalar, x: Float[Array, "*shape"]
) -> Scalar:
    """log rho^_tau(x) where paths begin: the prior's, noised to tau, or the process's own."""
    if prior is not None:
        return prior.log_density(tau, x)
    t = jnp.asarray(process.t_max, x.dtype)
    return process.prior_log_density(process.alpha(t) * x) + x.size * process.log_alpha(t)


def lowest_level(process: Process, solve: Solve) -> Scalar:
    """Where paths end: `solve.tau_min`, or the noise that the process has at t = 0 if that is
    larger."""
    return jnp.maximum(solve.tau_min, process.noise_level(0.0))


def sample_keys(
    estimator: TraceEstimator,
    key: PRNGKeyArray | Key[Array, " M"] | None,
    count: int,
    *,
    noisy: bool = False,
) -> Array | None:
    """One key a sample, or None for an estimator that draws nothing; refuses one that takes no
    trace, unless the path is noisy."""
    if not (noisy or estimator.takes_trace):
        raise ValueError(
            f"{type(estimator).__name__} follows log-densities along the reverse SDE alone: give a "
            "trace estimator, such as Hutchinson() or Exact(), or the key of a Brownian path"
        )
    if not estimator.needs_key:
        return None
    name = type(estimator).__name__
    _checks.key_given(name, key, "its probes are drawn from it, once a path")
    return fold(cast(Array, key), count)


def yardstick(tau: Scalar, size: int) -> Scalar:
    """d/2 log(tau^2 + c^2): a gain minus its log-density."""
    return 0.5 * size * jnp.log(jnp.square(tau) + BREADTH**2)


def gain_rate(trace: Scalar, tau: Scalar, size: int) -> Scalar:
    """How a gain grows along the flow, (3.1) and the yardstick's own growth."""
    return (trace - size) / tau + size * tau / (jnp.square(tau) + BREADTH**2)


def fold(key: PRNGKeyArray | Key[Array, " M"], count: int, *, first: int = 0) -> Array:
    """One key a sample, by its number, from `first` on; a row of keys, one a sample, is taken as it
    is."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1:
        if len(key) != count:
            raise ValueError(f"{len(key)} keys were given for {count} samples")
        return key
    return _folded(key, first, count)


@functools.partial(jax.jit, static_argnames="count")
def _folded(key, first, count):
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(count))


def finish(solve: Solve, x: Array, log_density: Array | None, stats: Stats) -> Path:
    """The result of a path, or the error that it ended in."""
    raise_if_failed(solve, stats)
    return Path(x, log_density, stats)


# ------------------------------------------------------------------ kernels, compiled once a shape


@functools.partial(jax.jit, static_argnames="solve")
def _flow(process, score, noise, solve):
    def one(noise):
        hat, tau, _ = noise_end(process, noise, None)
        return integrate(
            _flow_field, (process, score), hat, tau, lowest_level(process, solve), solve
        )

    x, steps, solved = over_samples(one, solve, noise)
    return x, None, stats_of(x, steps, solved)


@functools.partial(jax.jit, static_argnames=("field", "solve"))
def _with_density(field, process, network, noise, estimator, prior, keys, solve):
    """(x, log rho) from the noise down by a field whose args are (process, *network, estimator,
    probes)."""

    def one(noise, key):
        hat, tau, start = noise_end(process, noise, prior)
        args, end = (
            (process, *network, estimator, estimator.draw(key, hat)),
            lowest_level(process, solve),
        )
        gain = start + yardstick(tau, hat.size)
        (x, gain), *ran = integrate(field, args, (hat, gain), tau, end, solve)
        return (x, gain - yardstick(end, hat.size)), *ran

    state, steps, solved = over_samples(one, solve, noise, keys)
    return *state, stats_of(state, steps, solved)


def _climb(process, score, x, tau, estimator, prior, key, solve):
    """From level tau (one a sample) up to the noise; the log-density is the lower end's."""
    if estimator is None:
        return _climb_alone(process, score, x, tau, solve)
    keys = sample_keys(estimator, key, len(x))
    return climb_with_density(process, score, x, tau, estimator, prior, keys, solve)


@functools.partial(jax.jit, static_argnames="solve")
def _climb_alone(process, score, x, tau, solve):
    top = process.noise_level(jnp.asarray(process.t_max, x.dtype))

    def one(x, tau):
        return integrate(_flow_field, (process, score), x, tau, top, solve)

    hat, steps, solved = over_samples(one, solve, x, tau)
    noise = process.from_canonical(jnp.asarray(process.t_max, x.dtype), hat)
    return noise, None, stats_of(noise, steps, solved)


@functools.partial(jax.jit, static_argnames="solve")
def climb_with_density(process, score, x, tau, estimator, prior, keys, solve):
    """Canonical states `x [M, *shape]` at levels `tau [M]` up to the noise, with log
    rho^_tau(x)."""

    def one(x, tau, key):
        return climb_one(process, score, x, tau, estimator, prior, key, solve)

    noise, log_density, steps, solved = over_samples(one, solve, x, tau, keys)
    return noise, log_density, stats_of((noise, log_density), steps, solved)


def climb_one(process, score, x, tau, estimator, prior, key, solve):
    """One canonical state up to the noise: (noise, log rho^_tau(x), steps, solved)."""
    top = process.noise_level(jnp.asarray(process.t_max, x.dtype))
    args = (process, score, estimator, estimator.draw(key, x))
    zero = jnp.zeros((), x.dtype)
    (hat, gained), steps, solved = integrate(_density_field, args, (x, zero), tau, top, solve)
    noise = process.from_canonical(jnp.asarray(process.t_max, x.dtype), hat)
    start = noise_end(process, noise, prior)[2] + yardstick(top, x.size) - yardstick(tau, x.size)
    return noise, start - gained, steps, solved


# ------------------------------------------------------------------ fields of one sample


def _flow_field(tau, x, args):
    process, score = args
    return (x - canonical_denoiser(process, score, tau, x)) / tau


def _density_field(tau, state, args):
    x, _ = state
    denoised, trace = _denoise_with_trace(tau, x, args)
    return (x - denoised) / tau, gain_rate(trace, tau, x.size)


def _foreign_field(tau, state, args):
    process, score, velocity, estimator, probes = args
    x, _ = state
    denoised, trace = _denoise_with_trace(tau, x, (process, score, estimator, probes))
    foreign = _canonical_velocity(process, velocity, tau, x)
    across = foreign - (x - denoised) / tau
    along = gain_rate(trace, tau, x.size)
    return foreign, along + jnp.vdot(across, (denoised - x) / jnp.square(tau))


def _denoise_with_trace(tau, x, args):
    process, score, estimator, probes = args
    denoised, push = jax.linearize(functools.partial(canonical_denoiser, process, score, tau), x)
    trace, _ = estimator.apply(jax.vmap(push), probes, jnp.zeros((0, *x.shape), x.dtype))
    return denoised, trace


def _canonical_velocity(process, velocity, tau, x):
    """dx^/dtau of a curve whose dx/dt is given in the process's frame: quotient rule, then the
    change of clock."""
    t = jnp.asarray(process.time(tau), x.dtype)
    alpha, log_alpha_rate = process.alpha(t), jax.grad(process.log_alpha)(t)
    tau_rate = jax.grad(process.noise_level)(t)
    return (velocity(t, alpha * x) / alpha - log_alpha_rate * x) / tau_rate

r"""Samples, the noise they come from, and log-densities along the way.

Results are in units of the data at noise level `tau_min` (0.002 by default, invisible on data of
order 1): `x` is a draw of rho_tau_min, and `log_density` is log rho_tau_min(x). Noise goes in and
comes out in the process's own frame, at t_max. The equations (1.1), (1.2), (3.1) to (3.3) are in
`routes`, `riders` and `diffusion`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key, PRNGKeyArray

from scoresens import _checks
from scoresens.flow.riders import Driver, nats
from scoresens.flow.routes import Cargo, Diffusion, Flow, Route, climb
from scoresens.flow.solve import Solve, Stats, over_samples, raise_if_failed, stats_of
from scoresens.flow.starts import checked_start, lowest_level, sample_keys
from scoresens.flow.traces import TraceEstimator, drawn
from scoresens.laws.measures import Measure
from scoresens.laws.processes import Process
from scoresens.laws.scores import Score, as_pytree


class Path(NamedTuple):
    """The far end of M paths."""

    x: Float[Array, "M *shape"]
    log_density: (
        Float[Array, " M"] | None
    )  # nats, of the law at the data end; None if not asked for
    stats: Stats


def sample(
    process: Process,
    score: Score,
    noise: Float[Array, "M *shape"],
    *,
    route: Route = Flow(),
    trace: TraceEstimator | None = None,
    prior: Measure | None = None,
    key: PRNGKeyArray | Key[Array, " M"] | None = None,
    solve: Solve = Solve(),
) -> Path:
    """Samples at the data end of a route from given noise, and their log-density.

    Args:
        process: the forward process.
        score: `score(t, x)` of one sample.
        noise: `[M, *shape]` in the process's frame at t_max (`process.sample_prior`).
        route: the probability flow (1.1), or `Diffusion(key)`, the reverse SDE (1.2).
        trace: the estimator of tr J_D to follow log rho with, along the flow by (3.1), along the
            SDE by (3.3) (strong order 1 with `Exact`; `Ito()` takes no trace, order 1/2); None
            follows the samples alone.
        prior: the law whose noised log-density starts log rho at t_max; None is the process's
            prior. The data set itself (`Points`) removes the mismatch between the prior and the
            noised data.
        key: for estimators that draw probes; sample i uses `fold_in(key, i)`, or its own of a row
            of keys `[M]`.
        solve: the numerics; along the SDE the grid must be fixed, the solver an explicit
            Runge-Kutta one.

    Returns:
        Path: `x [M, *shape]` in units of the data, `log_density [M]` in nats.

    Raises:
        ValueError: shapes, dtypes or a score that do not fit, a missing key, an adaptive solve
            along the SDE.
        FloatingPointError: a solve that failed or a result that is not finite (outside `jit`;
            inside it, see `stats`).

    Notes:
        Cost: `2 steps` network evaluations a sample with Heun, each with one Jacobian-vector
        product a probe. Along the SDE variances are 7-10 % small on 40 steps: take 160 or more.

    References:
        Song et al. 2021, arXiv 2011.13456, eq. 6, 13 and 39; Karras et al. 2022, arXiv 2206.00364,
        algorithm 1; along the SDE: Anderson 1982; Montanari 2023, arXiv 2305.10690; Skreta et al.
        2024, arXiv 2412.17762.
    """
    noise, score = checked_start(process, score, noise)
    keys = None if trace is None else sample_keys(trace, key, len(noise), noisy=route.noisy)
    driver = Driver(process, score, prior=prior, rides=trace is not None)
    return _finished(solve, *_sample(driver, None, noise, route, trace, keys, solve))


def sample_ode(
    process: Process,
    score: Score,
    noise: Float[Array, "M *shape"],
    *,
    trace: TraceEstimator | None = None,
    prior: Measure | None = None,
    key: PRNGKeyArray | Key[Array, " M"] | None = None,
    solve: Solve = Solve(),
) -> Path:
    """`sample` along the probability flow, `route=Flow()`."""
    return sample(process, score, noise, trace=trace, prior=prior, key=key, solve=solve)


def sample_sde(
    process: Process,
    score: Score,
    noise: Float[Array, "M *shape"],
    *,
    key: PRNGKeyArray | Key[Array, " M"],
    trace: TraceEstimator | None = None,
    prior: Measure | None = None,
    solve: Solve = Solve(),
) -> Path:
    """`sample` along the reverse SDE, `route=Diffusion(key)`, with probes of the same key."""
    _checks.key_given("sample_sde", key, "the Brownian path is drawn from it")
    return sample(
        process, score, noise,
        route=Diffusion(key), trace=trace, prior=prior, key=key, solve=solve,
    )  # fmt: skip


def encode(
    process: Process,
    score: Score,
    x: Float[Array, "M *shape"],
    *,
    trace: TraceEstimator | None = None,
    prior: Measure | None = None,
    key: PRNGKeyArray | Key[Array, " M"] | None = None,
    solve: Solve = Solve(),
) -> Path:
    """The noise that the probability flow sends each sample to, and the sample's log-density (3.1).

    Args:
        x: `[M, *shape]` data, taken to be at noise level `solve.tau_min`.
        (the others as in `sample`)

    Returns:
        Path: `x [M, *shape]` noise in the process's frame at t_max; `log_density [M]` of the
            *data*, in nats.

    Notes:
        The inverse of `sample` along the flow, up to the solver's error. Raises and cost as there.
    """
    x, score = checked_start(process, score, x, name="x")
    keys = None if trace is None else sample_keys(trace, key, len(x))
    tau = jnp.full(len(x), lowest_level(process, solve), x.dtype)
    driver = Driver(process, score, prior=prior, rides=trace is not None)
    noise, gain, stats = climb_all(driver, x, tau, trace, keys, solve)
    return _finished(solve, noise, None if gain is None else nats(gain, tau, x[0].size), stats)


def log_density_along(
    process: Process,
    score: Score,
    velocity: Score,
    noise: Float[Array, "M *shape"],
    *,
    trace: TraceEstimator,
    prior: Measure | None = None,
    key: PRNGKeyArray | Key[Array, " M"] | None = None,
    solve: Solve = Solve(),
) -> Path:
    """log rho_t of the score's law along curves that another velocity drives (3.2).

    Args:
        velocity: `velocity(t, x)` of one sample, dx/dt of the curve in the process's own frame and
            time.
        (the others as in `sample`)

    Returns:
        Path: `x [M, *shape]`, where the curves end, in units of the data; `log_density [M]` of the
            score's law there.

    Notes:
        With the score's own velocity this is `sample`. One more evaluation a stage than it: the
        velocity's.
    """
    noise, score = checked_start(process, score, noise)
    velocity = as_pytree(velocity)
    _checks.score_shape(velocity, jnp.asarray(process.t_max, noise.dtype), noise[0], "velocity")
    keys = sample_keys(trace, key, len(noise))
    driver = Driver(process, score, prior=prior, rides=True)
    changed = Partial(_denoiser_of_velocity, velocity)
    return _finished(solve, *_sample(driver, changed, noise, Flow(), trace, keys, solve))


# ------------------------------------------------------------------ kernels, compiled once a shape


@functools.partial(jax.jit, static_argnames="solve")
def _sample(driver, changed, noise, route, trace, keys, solve):
    def one(noise, key, route):
        cargo = Cargo((driver,), trace, drawn(trace, key, noise), changed=changed)
        end = route.follow(cargo, noise, solve)
        return (end.x, end.nats[0]), end.steps, end.solved, end.errors

    state, *ran = over_samples(one, solve, noise, keys, route.of_samples(len(noise)))
    return *state, stats_of(state, *ran)


@functools.partial(jax.jit, static_argnames="solve")
def climb_all(
    driver: Driver,
    x: Float[Array, "M *shape"],
    tau: Float[Array, " M"],
    trace: TraceEstimator | None,
    keys: Key[Array, " M"] | None,
    solve: Solve,
) -> tuple[Array, Array | None, Stats]:
    """Canonical states `x [M, *shape]` at levels `tau [M]` up the flow to the noise, and the gains
    of log rho^_tau(x) if the driver rides."""

    def one(x, tau, key):
        noise, gain, *ran = climb(Cargo((driver,), trace, drawn(trace, key, x)), x, tau, solve)
        return (noise, gain), *ran

    state, *ran = over_samples(one, solve, x, tau, keys)
    return *state, stats_of(state, *ran)


def _finished(solve, x, log_density, stats):
    """The result of a path, or the error that it ended in."""
    raise_if_failed(solve, stats)
    return Path(x, log_density, stats)


# ------------------------------------------------------------------ fields of one sample


def _denoiser_of_velocity(velocity, drivers, stage):
    """The denoiser whose flow (1.1) is a curve dx/dt = velocity in the process's frame: quotient
    rule, then the change of clock."""
    process, tau, x = drivers[0].process, stage.tau, stage.x
    t = jnp.asarray(process.time(tau), x.dtype)
    alpha, log_alpha_rate = process.alpha(t), jax.grad(process.log_alpha)(t)
    tau_rate = jax.grad(process.noise_level)(t)
    return x - tau * (velocity(t, alpha * x) / alpha - log_alpha_rate * x) / tau_rate

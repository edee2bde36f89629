r"""First-order answers: how scores and samples move when the training data do.

With `rho_eps = rho + eps chi`, chi = sum_j c_j (nu_j - rho), for one sample x in the canonical
frame:

    (2.1)  dD  = sum_j c_j r_j (D_j - D),         r_j = nu_j,tau(x) / rho_tau(x)
    (4.1)  d(dx)/dtau = (dx - J_D dx - dD) / tau,  dx = 0 at the noise

(2.1) needs the density ratio r_j. Against the model's own law (`base=None`, black box) log rho
rides along by (3.1), and D is the network's. Against the data's law (`base=data`, 6.3) both are
closed forms of the data,

    (6.3)  D_new = D + D^'_h - D^_h
           dD    = sum_j c_j r^_j (D^_j - D^_h),   r^_j = nu_j,tau,h / rho^_tau,h

and neither a log-density nor a trace is needed. Every point is a bump of the data's bandwidth h.

Along the reverse SDE with its Brownian path held fixed, in the variables of `sde`,

    (4.2)  d(dz)/dw = J_D dx + dD,  dx = dz / w,  dz = 0 at the noise

A guided score is a weighted sum of two (`drives`), and so are J_D and dD.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray

from scoresens import _checks
from scoresens.flow import ode, riders, sde
from scoresens.flow.riders import Base
from scoresens.flow.routes import Diffusion, Flow, Route
from scoresens.flow.solve import (
    Solve,
    Stats,
    integrate,
    over_samples,
    raise_if_failed,
    stats_of,
    walk,
)
from scoresens.flow.traces import Hutchinson, TraceEstimator
from scoresens.laws.learned import level_of
from scoresens.laws.measures import Measure, check_base
from scoresens.laws.perturbations import Perturbation, check_perturbation
from scoresens.laws.processes import Process, Scalar
from scoresens.laws.scores import Guided, Pair, Score, canonical_denoiser


class ScoreSensitivity(NamedTuple):
    """Derivatives of the score at M places for K directions."""

    tangent: Float[Array, "M K *shape"]  # d score / d mass
    log_density: Float[
        Array, " M"
    ]  # log rho_t(x) of the law divided by, nats, in the process's frame
    stats: Stats


class SampleSensitivity(NamedTuple):
    """M samples and their derivatives for K directions."""

    x: Float[Array, "M *shape"]
    tangent: Float[Array, "M K *shape"]  # d x / d mass, units of the data
    log_density: (
        Float[Array, " M"] | Pair | None
    )  # of the model's law at x, nats; None with base=data; a Pair of a guided score
    stats: Stats


def score_sensitivity(
    process: Process,
    score: Score,
    perturbation: Perturbation,
    t: Scalar,
    x: Float[Array, "M *shape"],
    *,
    base: Measure | None = None,
    log_density: Float[Array, " M"] | None = None,
    trace: TraceEstimator = Hutchinson(1),
    prior: Measure | None = None,
    key: PRNGKeyArray | None = None,
    solve: Solve = Solve(),
) -> ScoreSensitivity:
    """Derivatives of the optimal score at (t, x) with respect to the data's law (2.1).

    Args:
        process: the forward process.
        score: `score(t, x)` of one sample.
        perturbation: K directions.
        t: scalar time in (0, t_max].
        x: `[M, *shape]` noised samples in the process's own frame.
        base: None divides by the model's law; a measure (the data) divides by it instead (6.3).
        log_density: `[M]`, log rho_t(x) of the model where it is known already; None solves (3.1)
            for it.
        trace, prior, key: as `log_density, prior, key` of `ode.sample_ode`, for that solve.
        solve: its numerics.

    Returns:
        ScoreSensitivity: `tangent [M, K, *shape]`, the derivative of the score per unit of mass.

    Raises:
        ValueError: shapes, dtypes, times or a score that do not fit; a missing key.
        FloatingPointError: results that are not finite (outside `jit`).

    Notes:
        Cost: with `base` or a known `log_density` at most one network evaluation a sample; else
        the path from x up to the noise, as `ode.encode`.

    References:
        Scarvelis & Solomon 2025, arXiv 2509.23092.
    """
    check_perturbation(perturbation)
    if isinstance(score, Guided):
        raise ValueError("a guided score is that of no law: ask for each of its two scores apart")
    if base is not None:
        check_base(base)
    x, score = ode.checked_start(process, score, x, name="x", shape=perturbation.shape)
    check_time(process, t)
    t = jnp.asarray(t, x.dtype)
    if base is not None:
        tangent, density = _score_tangent_of_data(process, perturbation, base, t, x, solve)
    elif log_density is not None:
        density = _checks.floating("log_density", log_density)
        if density.shape != (len(x),):
            raise ValueError(f"log_density must have shape ({len(x)},), got {density.shape}")
        tangent = _score_tangent_of_model(process, score, perturbation, t, x, density, solve)
    else:
        keys = ode.sample_keys(trace, key, len(x))
        hat, tau = process.to_canonical(t, x), process.noise_level(t)
        taus = jnp.full(len(x), tau, x.dtype)
        _, density, climb = ode.climb_with_density(
            process, score, hat, taus, trace, prior, keys, solve
        )
        raise_if_failed(solve, climb)
        density = density - x[0].size * process.log_alpha(t)
        tangent = _score_tangent_of_model(process, score, perturbation, t, x, density, solve)
    stats = stats_of((tangent, density), jnp.zeros(len(x), int), jnp.ones(len(x), bool))
    raise_if_failed(solve, stats)
    return ScoreSensitivity(tangent, density, stats)


def sample_sensitivity(
    process: Process,
    score: Score,
    perturbation: Perturbation | Pair,
    noise: Float[Array, "M *shape"],
    *,
    base: Base | Pair = None,
    trace: TraceEstimator = Hutchinson(1),
    prior: Measure | Pair | None = None,
    route: Route = Flow(),
    key: PRNGKeyArray | Key[Array, " M"] | None = None,
    solve: Solve = Solve(),
) -> SampleSensitivity:
    """Samples from given noise, and their derivatives with respect to the data's law (4.1).

    Args:
        process: the forward process.
        score: `score(t, x)` of one sample, or a guided one (`guide`).
        perturbation: K directions (`add`, `remove`, `reweight`, `replace`, `move`); for a guided
            score a `Pair` of them, as are then `base` and `prior`.
        noise: `[M, *shape]` in the process's frame at t_max, held fixed while the data change.
        base: None divides by the model's law (black box: no data needed), `Smoothed(h)` by that
            law smoothed, a better black box; a measure, usually the data as `Points(images,
            bandwidth=default_bandwidth(images))`, divides by it (6.3), needs no trace, and is the
            best predictor where it can be had.
        trace: estimator of tr J_D for the log-density, used with `base=None` alone.
        prior: as in `ode.sample_ode`.
        route: the probability flow, or `Diffusion(key)`, the reverse SDE with its Brownian path
            held fixed while the data change (4.2), where `trace` may be `Ito()`.
        key: for estimators that draw probes; sample i uses `fold_in(key, i)`, or its own of a row
            of keys `[M]`.
        solve: the numerics.

    Returns:
        SampleSensitivity: `x [M, *shape]`, `tangent [M, K, *shape]` per unit of mass, `log_density
            [M]`.

    Raises:
        ValueError: shapes, dtypes or a score that do not fit; a missing key.
        FloatingPointError: a solve that failed or a result that is not finite (outside `jit`).

    Notes:
        Cost at each of the solver's stages (80 by default): one evaluation of the network, one
        linearisation, and one batched linear pass over the K tangents and the probes. Memory:
        (batch, K, d) tangents.

    References:
        Scarvelis & Solomon 2025, arXiv 2509.23092.
    """
    laws = riders.laws_of(process, score, perturbation, base, prior)
    noise, _ = ode.checked_start(process, score, noise, shape=riders.shape_of(laws))
    rides = any(law.rides or law.others for law in laws)
    estimator = trace if rides else None
    noisy = isinstance(route, Diffusion)
    keys = ode.sample_keys(trace, key, len(noise), noisy=noisy) if rides else None
    if isinstance(route, Diffusion):
        walks = ode.fold(route.key, len(noise))
        result = _push_noisy(laws, noise, estimator, keys, walks, solve)
    else:
        result = _push(laws, noise, estimator, keys, solve)
    raise_if_failed(solve, result.stats)
    return result


def check_time(process: Process, t: Scalar) -> None:
    """Refuse a time outside (0, t_max]."""
    if _checks.is_concrete(t) and not bool(jnp.all((t > 0) & (t <= process.t_max * (1 + 1e-6)))):
        raise ValueError(
            f"t must lie in (0, {process.t_max}] for {type(process).__name__} (0 is data, where "
            f"scores of points are singular), got {t}"
        )


# ------------------------------------------------------------------ kernels, compiled once a shape


@functools.partial(jax.jit, static_argnames="solve")
def _push(laws, noise, trace, keys, solve):
    process = laws[0].process
    end = ode.lowest_level(process, solve)

    def one(noise, key):
        hat, tau, _ = ode.noise_end(process, noise, None)
        state = (hat, riders.starts(laws, noise), _no_tangents(laws, hat))
        args = (laws, trace, trace and trace.draw(key, hat))
        (x, gains, tangent), *ran = integrate(_tangent_field, args, state, tau, end, solve)
        own = [gain.own for gain in gains]
        densities = [
            gain if gain is None else riders.nats(gain, level_of(law.blur, end), x)
            for law, gain in zip(laws, own, strict=True)
        ]
        return (x, tangent, densities), *ran

    (x, tangent, densities), *ran = over_samples(one, solve, noise, keys)
    return _sensitivity(x, tangent, densities, ran)


@functools.partial(jax.jit, static_argnames="solve")
def _push_noisy(laws, noise, trace, keys, brownian_keys, solve):
    def one(noise, key, brownian_key):
        run = sde.brownian(laws[0].process, noise, brownian_key, solve)
        probes = trace and trace.draw(key, noise)

        def evaluate(w, state, before, tap):
            (z, tangent), tau = state, w**-0.5
            x = z / w
            looks = [riders.look(law, tau, x, tangent / w, trace, probes) for law in laws]
            denoised = riders.denoised(laws, looks)
            nodes = tuple(
                sde.advance(law, was, seen.seen, denoised, w, z)
                for law, was, seen in zip(laws, before, looks, strict=True)
            )
            here = [sde.known(law, own, w, z) for law, own in zip(laws, nodes, strict=True)]
            return riders.driven(laws, looks, here, tau, x), nodes

        state, nodes = (run.z, _no_tangents(laws, run.z)), sde.begin(laws, noise, run, trace)
        state, nodes, _ = walk(evaluate, state, nodes, run.clock, solve, kicks=run.kicks)
        end = run.clock[-1]
        _, nodes = evaluate(end, state, nodes, None)
        densities = [node.own and node.own.nats for node in nodes]
        return state[0] / end, state[1] / end, densities

    x, tangent, densities = over_samples(one, solve, noise, keys, brownian_keys)
    ran = jnp.full(len(noise), solve.steps), jnp.ones(len(noise), bool)
    return _sensitivity(x, tangent, densities, ran)


def _no_tangents(laws, x):
    return jnp.zeros((riders.directions(laws), *x.shape), x.dtype)


def _sensitivity(x, tangent, densities, ran):
    density = densities[0] if len(densities) == 1 else Pair(*densities)
    return SampleSensitivity(x, tangent, density, stats_of((x, density, tangent), *ran))


@functools.partial(jax.jit, static_argnames="solve")
def _score_tangent_of_data(process, perturbation, base, t, x, solve):
    perturbation = perturbation.with_default_bandwidth(base.bandwidth)
    tau, alpha = process.noise_level(t), process.alpha(t)

    def one(x):
        hat = x / alpha
        density, mean = base.posterior(tau, hat)
        change = perturbation.denoiser_derivative(tau, hat, density, mean)
        return _score_change(alpha, tau, change), density - x.size * jnp.log(alpha)

    return over_samples(one, solve, x)


@functools.partial(jax.jit, static_argnames="solve")
def _score_tangent_of_model(process, score, perturbation, t, x, density, solve):
    tau, alpha = process.noise_level(t), process.alpha(t)

    def one(x, density):
        hat = x / alpha
        denoised = canonical_denoiser(process, score, tau, hat)
        canonical = density + x.size * jnp.log(alpha)
        return _score_change(
            alpha, tau, perturbation.denoiser_derivative(tau, hat, canonical, denoised)
        )

    return over_samples(one, solve, x, density)


def _score_change(alpha, tau, denoiser_change):
    """ds = dD / (alpha tau^2), from the canonical frame back into the process's."""
    return denoiser_change / (alpha * jnp.square(tau))


# ------------------------------------------------------------------ fields of one sample


def _tangent_field(tau, state, args):
    """(x, gains of log rho, K tangents) together: one linearisation a network, one linear pass over
    tangents and probes."""
    x, gains, tangent = state
    laws, trace, probes = args
    looks = [riders.look(law, tau, x, tangent, trace, probes) for law in laws]
    here = [
        riders.known(law, seen.seen, own, tau, x)
        for law, seen, own in zip(laws, looks, gains, strict=True)
    ]
    denoised, moved = riders.driven(laws, looks, here, tau, x)
    grown = tuple(
        riders.rates(law, seen.seen, tau, x, denoised)
        for law, seen in zip(laws, looks, strict=True)
    )
    return (x - denoised) / tau, grown, (tangent - moved) / tau

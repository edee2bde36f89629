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

Along the reverse SDE with its Brownian path held fixed, in the variables of `flow.diffusion`,

    (4.2)  d(dz)/dw = J_D dx + dD,  dx = dz / w,  dz = 0 at the noise

A guided score is a weighted sum of two (`flow.riders`), and so are J_D and dD.
"""

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key, PRNGKeyArray

from scoresens import _checks
from scoresens.flow import riders
from scoresens.flow.riders import Driver
from scoresens.flow.routes import Cargo, Flow, Route, Stage
from scoresens.flow.sampling import climb_all
from scoresens.flow.solve import Solve, Stats, in_batches, raise_if_failed, stats_of
from scoresens.flow.starts import check_process, checked_start, sample_keys
from scoresens.flow.traces import Hutchinson, TraceEstimator, drawn
from scoresens.laws.kernels import yardstick
from scoresens.laws.learned import Base, check_base
from scoresens.laws.measures import Measure
from scoresens.laws.perturbations import Perturbation, check_perturbation
from scoresens.laws.processes import Process, Scalar
from scoresens.laws.scores import Guided, Pair, Score, canonical_denoiser

TANGENTS = 2**27  # numbers of the tangents of one batch: 512 MB in float32


class ScoreSensitivity(NamedTuple):
    """Derivatives of the score at M places for K directions."""

    tangent: Float[Array, "M K *shape"]  # d score / d mass
    log_density: (
        Float[Array, " M"] | None
    )  # log rho_t(x) of the law divided by, nats, in the process's frame; None where it has none
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
        trace, prior, key: as in `encode`, for that solve.
        solve: its numerics.

    Returns:
        ScoreSensitivity: `tangent [M, K, *shape]`, the derivative of the score per unit of mass.

    Raises:
        ValueError: shapes, dtypes, times or a score that do not fit; a missing key.
        FloatingPointError: results that are not finite (outside `jit`).

    Notes:
        Cost: with `base` or a known `log_density` at most one network evaluation a sample; else
        the path from x up to the noise, as `encode`.

    References:
        Scarvelis & Solomon 2025, arXiv 2509.23092.
    """
    check_perturbation(perturbation)
    if isinstance(score, Guided):
        raise ValueError("a guided score is that of no law: ask for each of its two scores apart")
    if perturbation.learned:
        raise ValueError("a Learned law has a log-density along paths alone, not at a place")
    check_base(base, Measure | None)
    check_process(process)
    perturbation, base = perturbation.under(process), base and cast(Measure, base.under(process))
    x, score = checked_start(process, score, x, name="x", shape=perturbation.shape)
    check_time(process, t)
    t = jnp.asarray(t, x.dtype)
    tau, errors = process.noise_level(t), None
    if base is not None:
        tangent, density = _score_tangent_of_data(process, perturbation, base, t, x, solve)
    elif log_density is not None:
        density = _checks.floating("log_density", log_density)
        if density.shape != (len(x),):
            raise ValueError(f"log_density must have shape ({len(x)},), got {density.shape}")
        gain = density + x[0].size * process.log_alpha(t) + yardstick(tau, x[0].size)
        tangent = _score_tangent_of_model(process, score, perturbation, t, x, gain, solve)
    else:
        keys = sample_keys(trace, key, len(x))
        hat = process.to_canonical(t, x)
        taus = jnp.full(len(x), tau, x.dtype)
        driver = Driver(process, score, prior=prior, rides=True)
        _, gain, climb = climb_all(driver, hat, taus, trace, keys, solve)
        raise_if_failed(solve, climb)
        errors = None if climb.grid_error is None else (climb.grid_error, climb.trace_error)
        density = riders.nats(gain, tau, x[0].size) - x[0].size * process.log_alpha(t)
        tangent = _score_tangent_of_model(process, score, perturbation, t, x, gain, solve)
    steps, solved = jnp.zeros(len(x), int), jnp.ones(len(x), bool)
    stats = stats_of((tangent, density), steps, solved, errors)
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
        prior: as in `sample`.
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
        (batch, K, d) tangents, a few times over; batches are of at most `Solve.batch_size` samples,
        and so many that their tangents are 512 MB in float32. Where one sample's are more, its
        directions go in groups, which walk the same path one after another (an adaptive solve is
        then that of each group).

    References:
        Scarvelis & Solomon 2025, arXiv 2509.23092.
    """
    drivers = riders.drivers_of(process, score, perturbation, base, prior)
    noise, _ = checked_start(process, score, noise, shape=riders.shape_of(drivers))
    rides = riders.rides(drivers)
    keys = sample_keys(trace, key, len(noise), noisy=route.noisy) if rides else None
    result = _push(drivers, noise, route, trace if rides else None, keys, solve)
    raise_if_failed(solve, result.stats)
    return result


def check_time(process: Process, t: Scalar) -> None:
    """Refuse a time outside (0, t_max]."""
    if not (_checks.is_concrete(t) and _checks.is_concrete(process.t_max)):
        return
    with jax.ensure_compile_time_eval():
        inside = bool(jnp.all((t > 0) & (t <= process.t_max * (1 + 1e-6))))
    if not inside:
        raise ValueError(
            f"t must lie in (0, {process.t_max}] for {type(process).__name__} (0 is data, where "
            f"scores of points are singular), got {t}"
        )


# ------------------------------------------------------------------ kernels, compiled once a shape


@functools.partial(jax.jit, static_argnames="solve")
def _push(drivers, noise, route, trace, keys, solve):
    count = riders.directions(drivers)
    groups = _groups(count, noise[0].size)

    def one(noise, key, route):
        probes = drawn(trace, key, noise)

        def along(drivers):
            cargo = Cargo(drivers, trace, probes, moved=Partial(moved))
            end = route.follow(cargo, noise, solve, directions=riders.directions(drivers))
            return (end.x, end.tangents, end.nats), end.steps, end.solved, end.errors

        if groups is None:
            return along(drivers)
        parts = jax.lax.map(lambda which: along(riders.some(drivers, which)), groups)
        (x, tangents, nats), steps, solved, errors = parts
        tangents = tangents.reshape(-1, *noise.shape)[:count]
        first, errors = jax.tree.map(lambda leaf: leaf[0], ((x, nats), errors))
        return (first[0], tangents, first[1]), jnp.max(steps), jnp.all(solved), errors

    size = _batch_size(count, noise[0].size, solve)
    found, *ran = in_batches(one, size, noise, keys, route.of_samples(len(noise)))
    x, tangent, nats = found
    density = nats[0] if len(nats) == 1 else Pair(*nats)
    return SampleSensitivity(x, tangent, density, stats_of(found, *ran))


@functools.partial(jax.jit, static_argnames="solve")
def _score_tangent_of_data(process, perturbation, base, t, x, solve):
    perturbation = perturbation.bumped_like(base)
    tau, alpha = process.noise_level(t), process.alpha(t)

    def one(x):
        hat = x / alpha
        gain, mean = base.posterior(tau, hat)
        change = perturbation.denoiser_derivative(tau, hat, gain, mean)
        density = riders.nats(gain, tau, x.size) - x.size * jnp.log(alpha)
        return _score_change(alpha, tau, change), density if base.kernel.is_density else None

    return in_batches(one, _batch_size(len(perturbation), x[0].size, solve), x)


@functools.partial(jax.jit, static_argnames="solve")
def _score_tangent_of_model(process, score, perturbation, t, x, gain, solve):
    tau, alpha = process.noise_level(t), process.alpha(t)

    def one(x, gain):
        hat = x / alpha
        denoised = canonical_denoiser(process, score, tau, hat)
        change = perturbation.denoiser_derivative(tau, hat, gain, denoised)
        return _score_change(alpha, tau, change)

    return in_batches(one, _batch_size(len(perturbation), x[0].size, solve), x, gain)


def _batch_size(count, size, solve):
    """As many samples at a time as their tangents have room for."""
    return max(1, min(solve.batch_size, TANGENTS // (count * size)))


def _groups(count, size):
    """Where the tangents of one sample have no room, groups of directions that have, as few and as
    even as can be, the last filled up with copies."""
    room = max(1, TANGENTS // size)
    if count <= room:
        return None
    parts = -(-count // room)
    most = -(-count // parts)
    return jnp.minimum(jnp.arange(parts * most), count - 1).reshape(parts, most)


def _score_change(alpha, tau, denoiser_change):
    """ds = dD / (alpha tau^2), from the canonical frame back into the process's."""
    return denoiser_change / (alpha * jnp.square(tau))


# ------------------------------------------------------------------ one stage of a path


def moved(drivers: riders.Drivers, stage: Stage) -> Float[Array, "K *shape"]:
    """How much the denoiser of a path moves with its K tangents: J_D dx + dD (4.1)."""
    parts = [cast(Array, view.pushed) for view in stage.views]
    for i, (driver, known) in enumerate(zip(drivers, stage.known, strict=True)):
        if driver.perturbation is not None:
            parts[i] = parts[i] + _derivative(driver, known, stage.tau, stage.x)
    return riders.total(drivers, parts)


def _derivative(driver, known, tau, x):
    """dD of one law at one place: (2.1) against its own law, or (6.3) against its base."""
    law = known.own if driver.measure is None else driver.measure
    perturbation = driver.perturbation.with_known(known.others)
    return perturbation.denoiser_derivative(tau, x, *law.posterior(tau, x))

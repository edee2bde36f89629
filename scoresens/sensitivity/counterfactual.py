r"""Finite answers: samples of the model that was never trained.

When the law rho of the data becomes `rho_eps = (1 - eps) rho + eps nu`, the ideal denoiser becomes

    (6.1)  D_eps = D + w (D_nu - D),   logit w = log eps + log nu_tau - log(1 - eps) - log rho_tau

exactly, for finite eps (`laws.changed` has it for every kind of change). Black box (`base=None`)
rho is the model's law: D is the network's, and log rho rides along the *changed* path by (3.2) or
(3.3). With the data at hand (`base=data`) both laws are closed forms, every point a bump of one
bandwidth h,

    (6.3)  D_new(x, tau) = D(x, tau) + D^'_h(x, tau) - D^_h(x, tau)

a difference of two closed-form denoisers: exact whenever the model's law is the data's law smoothed
by h, without a log-density, a trace, or (for edits of the data) a pole. With `base=Smoothed(h)` the
model's own law blurred by h takes the data's place (6.5, `flow.riders`). Of a guided score both
laws change (6.2), and the sum of their new denoisers drives the path.
"""

import functools
from dataclasses import replace as replace_field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int, Key, PRNGKeyArray

from scoresens.flow import riders
from scoresens.flow.routes import Cargo, Flow, Route
from scoresens.flow.solve import Solve, Stats, in_batches, over_samples, raise_if_failed, stats_of
from scoresens.flow.starts import checked_start, sample_keys
from scoresens.flow.traces import Hutchinson, TraceEstimator, drawn
from scoresens.laws.changed import change
from scoresens.laws.learned import Base
from scoresens.laws.measures import Measure, Posterior
from scoresens.laws.perturbations import Perturbation
from scoresens.laws.processes import Process, Scalar
from scoresens.laws.scores import Pair, Score


class Counterfactual(NamedTuple):
    """Samples after K finite changes of the data: `[M, K, *shape]`, or `[M, E, K, *shape]` for a
    vector of E masses."""

    x: Float[Array, "M ..."]
    bounded: Int[Array, "M ..."]  # [M, K] or [M, E, K]: steps at which a removal's pole was bounded
    stats: Stats


def counterfactual(
    process: Process,
    score: Score,
    perturbation: Perturbation | Pair,
    noise: Float[Array, "M *shape"],
    *,
    mass: Scalar | Float[ArrayLike, " E"],
    base: Base | Pair = None,
    trace: TraceEstimator = Hutchinson(1),
    prior: Measure | Pair | None = None,
    route: Route = Flow(),
    key: PRNGKeyArray | Key[Array, " M"] | None = None,
    solve: Solve = Solve(),
) -> Counterfactual:
    """Samples, from the same noise, of the model as it would be had its data changed by a finite
    mass (6.1, 6.3).

    Args:
        process: the forward process.
        score: `score(t, x)` of one sample, or a guided one (`guide`).
        perturbation: K directions; for a guided score a `Pair` of them, as are then `base` and
            `prior`.
        noise: `[M, *shape]` in the process's frame at t_max, held fixed while the data change.
        mass: eps in [-1, 1], how much of the change: the share of the new data for `add`; 1 is the
            whole of a `remove`, `reweight`, `replace` or `move`. A vector `[E]` asks for several.
        base: the data's law, usually `Points(images, bandwidth=default_bandwidth(images))`, and the
            better predictor; perturbations that edit points need the Points they were made from.
            None is the black box: the model's own law, whose log-density is followed; and
            `Smoothed(h)` the better black box, that law and what is added blurred alike (6.5).
        trace, prior, key: for the black box, as in `sample_sensitivity`.
        route: the probability flow, or `Diffusion(key)`, the reverse SDE with its Brownian path
            held fixed while the data change; log-densities are followed along the changed path.
        solve: the numerics.

    Returns:
        Counterfactual: `x [M, K, *shape]` in units of the data, or `[M, E, K, *shape]`; `bounded`
            counts the steps at which a removal asked for more than there was at the place.

    Raises:
        ValueError: shapes, dtypes or a score that do not fit, a missing key, other data than the
            perturbation was made from, a mass outside [-1, 1], or more taken than there is.
        FloatingPointError: a solve that failed or a result that is not finite (outside `jit`).

    Notes:
        Cost: E K sampling runs; with `base`, at each stage one pass over the data (4 N d operations
        a sample), without, the trace's products. Memory: that of sampling, at most
        `Solve.batch_size` paths side by side, whatever K is; and of edits a few tables `[K, N]`.

    References:
        Skreta et al. 2024, arXiv 2412.17762, for densities along foreign paths.
    """
    drivers = riders.drivers_of(process, score, perturbation, base, prior)
    noise, _ = checked_start(process, score, noise, shape=riders.shape_of(drivers))
    rides, which = riders.rides(drivers), jnp.arange(riders.directions(drivers))
    keys = sample_keys(trace, key, len(noise), noisy=route.noisy) if rides else None
    riding = tuple(map(_riding, drivers))

    def samples(mass):
        laws = [
            None
            if driver.perturbation is None
            else change(driver.measure, driver.perturbation, mass)
            for driver in drivers
        ]
        result = _walk(riding, laws, which, noise, route, trace if rides else None, keys, solve)
        raise_if_failed(solve, result.stats)
        return result

    if np.ndim(mass) == 0:
        return samples(mass)
    return _side_by_side([samples(one) for one in _masses(mass)])


def _riding(driver):
    """The driver with what of its perturbation rides along; the rest is in the laws. A program that
    took the points of a change would be compiled anew for another number of them."""
    if driver.perturbation is None:
        return driver
    parts = tuple(part for part in driver.perturbation.parts if part.rides)
    return replace_field(driver, perturbation=Perturbation(parts))


def _side_by_side(runs):
    """Runs of one mass each as one result, with an axis E after M."""
    x, bounded = (jnp.stack(parts, 1) for parts in zip(*(run[:2] for run in runs), strict=True))
    each = jax.tree.map(lambda *parts: jnp.stack(parts), *(run.stats for run in runs))
    errors = jax.tree.map(lambda part: jnp.max(part, 0), each[3:])
    stats = Stats(jnp.max(each.steps, 0), jnp.all(each.solved, 0), jnp.all(each.finite, 0), *errors)
    return Counterfactual(x, bounded, stats)


def _masses(mass):
    if np.ndim(mass) != 1 or not np.size(mass):
        raise ValueError(f"mass must be a number or a vector [E], got shape {np.shape(mass)}")
    return list(jnp.asarray(mass))


# ------------------------------------------------------------------ kernel, compiled once a shape


@functools.partial(jax.jit, static_argnames="solve")
def _walk(drivers, laws, directions, noise, route, trace, keys, solve):
    def one(noise, key, route):
        probes = drawn(trace, key, noise)

        def toward(which):
            here = [law and law[which] for law in laws]
            flagged = Partial(_bounded, here) if any(law and law.less for law in laws) else None
            cargo = Cargo(drivers, trace, probes, None, Partial(_denoised, here), flagged)
            end = route.follow(cargo, noise, solve)
            flags = jnp.zeros((), int) if end.flags is None else end.flags
            return (end.x, end.nats), flags, end.steps, end.solved, end.errors

        return in_batches(toward, many, directions)

    many = max(1, solve.batch_size // len(noise))  # directions at a time
    found, bounded, steps, solved, errors = over_samples(
        one, solve, noise, keys, route.of_samples(len(noise))
    )
    errors = jax.tree.map(lambda part: jnp.max(part, -1), errors)
    stats = stats_of(found, jnp.max(steps, -1), jnp.all(solved, -1), errors)
    return Counterfactual(found[0], bounded, stats)


# ------------------------------------------------------------------ one stage of a path


def _denoised(laws, drivers, stage):
    """The denoiser of the changed score."""
    parts = []
    for driver, law, view, known in zip(drivers, laws, stage.views, stage.known, strict=True):
        part = view.denoised
        if law is not None:
            part = part + _shift(driver, law, known, stage)[0]
        parts.append(part)
    return riders.total(drivers, parts)


def _bounded(laws, drivers, stage):
    """Where a pole is bounded."""
    each = zip(drivers, laws, stage.known, strict=True)
    flags = [
        _shift(driver, law, known, stage)[1] for driver, law, known in each if law and law.less
    ]
    return jnp.any(jnp.stack(flags))


def _shift(driver, law, known, stage):
    """What the change does to the denoiser, and whether a pole was bounded."""
    if driver.measure is None:
        own = Posterior(known.own.gain, known.own.mean)
    else:
        own = driver.measure.posterior(stage.tau, stage.x)
    return law.with_known(known.others).shift(stage.tau, stage.x, own)

r"""Finite answers: samples of the model that was never trained.

When the data's law rho^ becomes rho^' the ideal score changes by `grad log(rho^'_t / rho^_t)`.
Added to the network's own, with every point a bump of the same bandwidth h:

    (6.3)  D_new(x, tau) = D(x, tau) + D^'_h(x, tau) - D^_h(x, tau)

a difference of two closed-form denoisers: exact whenever the model's law is the data's law smoothed
by h, for changes of any size, and without a log-density or a trace.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoresens import paths
from scoresens.measures import Measure, check_base
from scoresens.perturbations import Perturbation, change, check_perturbation
from scoresens.processes import Process, Scalar
from scoresens.scores import Score, canonical_denoiser
from scoresens.solve import Solve, Stats, integrate, over_samples, raise_if_failed, stats_of


class Counterfactual(NamedTuple):
    """Samples after K finite changes of the data."""

    x: Float[Array, "M K *shape"]
    stats: Stats


def counterfactual(
    process: Process,
    score: Score,
    perturbation: Perturbation,
    noise: Float[Array, "M *shape"],
    *,
    mass: Scalar,
    base: Measure,
    solve: Solve = Solve(),
) -> Counterfactual:
    """Samples, from the same noise, of the model as it would be had its data changed by a finite
    mass (6.3).

    Args:
        process: the forward process.
        score: `score(t, x)` of one sample.
        perturbation: K directions.
        noise: `[M, *shape]` in the process's frame at t_max, held fixed while the data change.
        mass: eps > 0, how much of the change: the share of the new data for `add`; 1 is the whole
            of a `remove`, `reweight` or `replace`.
        base: the data's law, usually `Points(images, bandwidth=default_bandwidth(images))`;
            perturbations that edit points need the Points they were made from.
        solve: the numerics.

    Returns:
        Counterfactual: `x [M, K, *shape]` in units of the data.

    Raises:
        ValueError: shapes, dtypes or a score that do not fit, other data than the perturbation was
            made from, or a mass that makes a weight of the changed data negative.
        FloatingPointError: a solve that failed or a result that is not finite (outside `jit`).

    Notes:
        Cost: K sampling runs, and at each stage one pass over the data (4 N d operations a sample).
    """
    check_perturbation(perturbation)
    check_base(base)
    noise, score = paths.checked_start(process, score, noise, shape=perturbation.shape)
    law = change(base, perturbation.with_default_bandwidth(base.bandwidth), mass)
    result = _walk(process, score, law, base, noise, solve)
    raise_if_failed(solve, result.stats)
    return result


@functools.partial(jax.jit, static_argnames="solve")
def _walk(process, score, law, base, noise, solve):
    def one(noise):
        hat, tau, _ = paths.noise_end(process, noise, None)
        state = jnp.broadcast_to(hat, (len(law), *hat.shape))
        end = paths.lowest_level(process, solve)
        return integrate(_changed_field, (process, score, law, base), state, tau, end, solve)

    x, *ran = over_samples(one, solve, noise)
    return Counterfactual(x, stats_of(x, *ran))


def _changed_field(tau, x, args):
    """K changed flows of one sample, x [K, *shape]."""
    process, score, law, base = args
    denoise = functools.partial(canonical_denoiser, process, score, tau)
    change = law.denoise(tau, x) - jax.vmap(functools.partial(base.denoise, tau))(x)
    return (x - jax.vmap(denoise)(x) - change) / tau

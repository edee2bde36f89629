r"""Finite answers: samples of the model that was never trained.

When the law rho of the data becomes `rho_eps = (1 - eps) rho + eps nu`, the ideal denoiser becomes

    (6.1)  D_eps = D + w (D_nu - D),   logit w = log eps + log nu_tau - log(1 - eps) - log rho_tau

exactly, for finite eps (`finite` has it for every kind of change). Black box (`base=None`) rho is
the model's law: D is the network's, and log rho rides along the *changed* path by (3.2). With the
data at hand (`base=data`) both laws are closed forms, every point a bump of one bandwidth h,

    (6.3)  D_new(x, tau) = D(x, tau) + D^'_h(x, tau) - D^_h(x, tau)

a difference of two closed-form denoisers: exact whenever the model's law is the data's law smoothed
by h, without a log-density, a trace, or (for edits of the data) a pole. With `base=Smoothed(h)` the
model's own law blurred by h takes the data's place (6.5, `drives`). Of a guided score both laws
change (6.2), and the sum of their new denoisers drives the path.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from scoresens.flow import ode, riders
from scoresens.flow.riders import Base, Seen
from scoresens.flow.solve import Solve, Stats, integrate, over_samples, raise_if_failed, stats_of
from scoresens.flow.traces import Hutchinson, TraceEstimator
from scoresens.laws.changed import change
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
    key: PRNGKeyArray | None = None,
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
        a sample), without, the trace's products.

    References:
        Skreta et al. 2024, arXiv 2412.17762, for densities along foreign paths.
    """
    laws = riders.laws_of(process, score, perturbation, base, prior)
    noise, _ = ode.checked_start(process, score, noise, shape=riders.shape_of(laws))
    rides = any(law.rides or law.others for law in laws)
    keys = ode.sample_keys(trace, key, len(noise)) if rides else None

    def samples(mass):
        changed = [
            None if law.perturbation is None else change(law.measure, law.perturbation, mass)
            for law in laws
        ]
        result = _walk(laws, changed, noise, trace if rides else None, keys, solve)
        raise_if_failed(solve, result.stats)
        return result

    if np.ndim(mass) == 0:
        return samples(mass)
    return _side_by_side([samples(one) for one in _masses(mass)])


def _side_by_side(runs):
    """Runs of one mass each as one result, with an axis E after M."""
    x, bounded = (jnp.stack(parts, 1) for parts in zip(*(run[:2] for run in runs), strict=True))
    steps, solved, finite = map(jnp.stack, zip(*(run.stats for run in runs), strict=True))
    stats = Stats(jnp.max(steps, 0), jnp.all(solved, 0), jnp.all(finite, 0))
    return Counterfactual(x, bounded, stats)


def _masses(mass):
    if np.ndim(mass) != 1 or not np.size(mass):
        raise ValueError(f"mass must be a number or a vector [E], got shape {np.shape(mass)}")
    return list(jnp.asarray(mass))


@functools.partial(jax.jit, static_argnames="solve")
def _walk(laws, changed, noise, trace, keys, solve):
    count = riders.directions(laws)

    def one(noise, key):
        hat, tau, _ = ode.noise_end(laws[0].process, noise, None)
        start = (hat, riders.starts(laws, noise))
        state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), start)
        args = (laws, changed, trace, trace and trace.draw(key, hat))
        end = ode.lowest_level(laws[0].process, solve)
        return integrate(_changed_field, args, state, tau, end, solve, count=_bounded)

    (x, gains), *ran, bounded = over_samples(one, solve, noise, keys)
    return Counterfactual(x, bounded, stats_of((x, gains), *ran))


def _changed_field(tau, state, args):
    """K changed flows of one sample, x [K, *shape], and the gains of log rho along each."""
    x, gains = state
    laws, changed, trace, probes = args
    nothing = jnp.zeros((0, *x.shape[1:]), x.dtype)

    def look(law):
        return jax.vmap(lambda x: riders.look(law, tau, x, nothing, trace, probes))(x)

    looks = [look(law) for law in laws]
    denoised = jnp.zeros_like(x)
    for law, new, seen, own in zip(laws, changed, looks, gains, strict=True):
        denoised += law.weight * _denoised(law, new, seen, own, tau, x)
    grow = jax.vmap(riders.rates, in_axes=(None, 0, None, 0, 0))
    grown = (grow(law, seen.seen, tau, x, denoised) for law, seen in zip(laws, looks, strict=True))
    return (x - denoised) / tau, tuple(grown)


def _denoised(law, changed, seen, gains, tau, x):
    """The new denoiser of one law at its K places."""
    if changed is None:
        return seen.denoised
    new, own, _ = _new_law(law, changed, seen.seen, gains, tau, x)
    if law.base is None:
        return new
    before = jax.vmap(functools.partial(law.base.denoise, tau))(x) if own is None else own.mean
    return seen.denoised + new - before


def _bounded(tau, state, args):
    """Where a pole is bounded, [K]: the log-densities tell, whatever the networks say."""
    x, gains = state
    laws, changed, _, _ = args
    flags = jnp.zeros(len(x), bool)
    for law, new, own in zip(laws, changed, gains, strict=True):
        if new is not None and new.less:
            anything = jax.tree.map(lambda gain: Seen(x, None), own)
            flags |= _new_law(law, new, anything, own, tau, x)[-1]
    return flags


def _new_law(law, changed, seen, gains, tau, x):
    """The changed law's denoiser, what is known of the unchanged one where it rides, and where a
    pole was bounded."""
    here = jax.vmap(riders.known, in_axes=(None, 0, 0, None, 0))(law, seen, gains, tau, x)
    own = here.own and Posterior(here.own.nats, here.own.mean)
    denoised, bounded = changed.with_known(here.others).denoise(tau, x, own)
    return denoised, own, bounded

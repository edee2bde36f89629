r"""Attribution: what each of N data points does to a functional of a sample, by one adjoint pass.

For functionals phi(x_0) the adjoint `lambda = d phi / d x` goes back up the path, from data to
noise, and reads off all data points at once:

    (5.1)  d lambda/dtau = -(I - J_D^T) lambda / tau,     lambda = grad phi at the data end
           d phi / d eps_k = int r_k lambda.(D_k - D) / tau dtau

The path is a composition of Runge-Kutta steps, and what is computed is the derivative of that
composition, stage by stage: a **tap** is added to the denoiser at every stage, and
`omega_r = d phi / d tap_r` is its reverse-mode gradient. So the scores are those of
`sample_sensitivity` with one direction a data point, to rounding, on any grid:

    d phi / d eps_k = sum_r r_k(x_r) omega_r.(D_k(x_r) - D_r)

over the stages r, tables of matrix products (`tables`). Against the model's law (`base=None`) r_k
divides by the log-density that rides along, and D_r is the network's; against the data's
(`base="data"`, 6.3) both are the data's own.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from scoresens import _checks
from scoresens.flow.routes import Cargo, Flow, Route
from scoresens.flow.solve import Solve, Stats, over_samples, raise_if_failed, stats_of, tableau
from scoresens.flow.starts import check_process, checked_start, sample_keys
from scoresens.flow.traces import Hutchinson, TraceEstimator, drawn
from scoresens.laws.learned import Base
from scoresens.laws.measures import Measure, Points, Posterior
from scoresens.laws.processes import Process
from scoresens.laws.scores import Score, as_pytree
from scoresens.laws.shards import all_rows, own_rows
from scoresens.sensitivity._trails import (
    Trail,
    batches,
    check_points,
    check_top,
    driver_of,
    flat,
    influences_along,
    joined,
    states_first,
    without_p,
)
from scoresens.sensitivity.tables import States, is_on_host

KEPT = 2**28  # numbers of kept states, of the samples of one batch: 1 GB in float32


class Attribution(NamedTuple):
    """What N data points do to functionals of M samples, per unit of mass moved to each point."""

    scores: Float[Array, "M ..."] | None  # [M, N] or [M, P, N]; None where top was asked for
    top_values: Float[Array, "M ..."] | None  # [M, k] or [M, P, k], largest first
    top_indices: Int[Array, "M ..."] | None
    bottom_values: Float[Array, "M ..."] | None  # smallest first
    bottom_indices: Int[Array, "M ..."] | None
    x: Float[Array, "M *shape"]  # the samples
    value: Float[Array, "M ..."]  # the functional there, [M] or [M, P]
    levels: Float[Array, " steps"]  # noise level where each step of the path begins
    profile: Float[Array, "M ..."] | None  # [M, steps] or [M, P, steps]: mean |influence| by step
    stats: Stats


def attribute(
    process: Process,
    score: Score,
    data: Points,
    functional: Callable[[Float[Array, "*shape"]], Float[Array, "*P"]],
    noise: Float[Array, "M *shape"],
    *,
    base: Base | Literal["data"] = "data",
    trace: TraceEstimator = Hutchinson(1),
    prior: Measure | None = None,
    route: Route = Flow(),
    key: PRNGKeyArray | Key[Array, " M"] | None = None,
    top: int | None = None,
    profile: bool = False,
    solve: Solve = Solve(),
) -> Attribution:
    """The sensitivity of functionals of each sample to the weight of every data point (5.1).

    Args:
        process: the forward process.
        score: `score(t, x)` of one sample.
        data: the N points; `Points.on_host` keeps them on the host or in a file.
        functional: any JAX function of one sample, to a scalar or to a vector `[P]`
            (`functionals` has ready ones).
        noise: `[M, *shape]` in the process's frame at t_max.
        base: whose law density ratios are taken against: the data's (the default), another
            measure's, or the model's own (black box), as it is (None) or `Smoothed(h)`.
        trace, prior, key: for `base=None`, as in `sample_sensitivity`.
        route: the probability flow, or `Diffusion(key)`, the reverse SDE.
        top: None returns all scores; k the k largest and the k smallest of each functional, so
            that nothing of size N is kept.
        profile: whether to return which noise levels the influence comes from.
        solve: the numerics; the grid must be fixed, the solver an explicit Runge-Kutta one.

    Returns:
        Attribution: `scores [M, N]`, or `[M, P, N]` for a vector functional, in units of the
            functional per unit of mass: `chi_k = delta_k - rho`, so that a set's attribution, or
            that of any change of the weights, is the sum over its points.

    Raises:
        ValueError: shapes, dtypes or a score that do not fit, a functional of more than one axis,
            a missing key, an adaptive solve, a guided score, or a `top` above N.
        FloatingPointError: results that are not finite, or a functional whose value or gradient is
            not (outside `jit`).

    Notes:
        Network: one path down (`2 steps` evaluations a sample with Heun, and the trace's products
        for `base=None`) and one adjoint up (as many evaluations, and P vector-Jacobian products at
        each), whatever N is. Tables: with S = `2 steps` stages, `2 M S N d (1 + P)` operations;
        `3 + P` against the data where the points are on the host, divided over devices, or more
        than 262,144, on an accelerator 2,097,152. Memory: `M S (P + 2) d` numbers for a batch of
        samples, at most `Solve.batch_size` and so many that this is 1 GB in float32, and a few
        tables of 64 MB, on an accelerator 512, beside the result. On a CPU the adjoint of JAX's own
        convolutions is slow inside a loop (XLA): `models.convolution` has others.

    References:
        Scarvelis & Solomon 2025, arXiv 2509.23092, for the derivative; the adjoint is ours.
    """
    check_process(process)
    check_points(data)
    base = "data" if base is data else base
    data = data.under(process)
    base, driver = driver_of(process, score, data, base, prior)
    noise, _ = checked_start(process, score, noise, shape=data.shape)
    functional = as_pytree(functional)
    shape = _functional_shape(functional, noise[0])
    check_top(top, data)
    keys = sample_keys(trace, key, len(noise), noisy=route.noisy) if driver.rides else None
    rule = trace if driver.rides else None
    run = _attribute_batch if is_on_host(data) else _attribute_on_device
    size = _batch_size(solve, noise[0].size, math.prod(shape))
    levels, parts = zip(
        *(
            run(driver, data, base, functional, batch, rule, Wanted(top, profile), solve)
            for batch in batches((noise, keys, route.of_samples(len(noise))), size)
        ),
        strict=True,
    )
    x, value, found, stats = joined(parts)
    _raise_if_functional_failed(solve, functional, x, stats)
    raise_if_failed(solve, stats)
    if shape == ():
        value, found = without_p(value), found._replace(profile=without_p(found.profile))
    return Attribution(*flat(found, shape == ()), x, value, levels[0], found.profile, stats)


# ------------------------------------------------------------------ one batch


class Wanted(NamedTuple):
    """What of the scores is wanted; static."""

    top: int | None
    profile: bool


def _attribute_batch(driver, data, base, functional, batch, trace, wanted, solve):
    rows = own_rows(batch, data)
    trail = _down_and_up(driver, functional, *rows, trace, solve)
    trail = trail if rows is batch else _of_all_devices(trail, data.axis)
    stages = len(tableau(solve).b)
    group = stages if wanted.profile else None
    found = influences_along(trail, data, base, top=wanted.top, group=group)
    if found.profile is not None:
        found = found._replace(profile=jnp.moveaxis(found.profile, 0, -1))
    steps, solved = jnp.full(len(trail.x), solve.steps), jnp.ones(len(trail.x), bool)
    stats = stats_of((trail.x, trail.value, found), steps, solved, trail.errors)
    return trail.states.tau[::stages], (trail.x, trail.value, found, stats)


def _of_all_devices(trail, axis):
    """The trails of all the devices that divide the data among them."""
    x, value, errors = all_rows((trail.x, trail.value, trail.errors), axis, 0)
    places, omega, known = all_rows((trail.states.x, trail.omega, trail.known), axis, 1)
    return Trail(x, value, trail.states._replace(x=places), omega, known, errors)


# One kernel; points on the host come block by block instead, between compiled pieces.
_attribute_on_device = jax.jit(_attribute_batch, static_argnames=("wanted", "solve"))


@functools.partial(jax.jit, static_argnames="solve")
def _down_and_up(driver, functional, noise, keys, route, trace, solve):
    def one(noise, key, route):
        cargo = Cargo((driver,), trace, drawn(trace, key, noise))

        def run(taps):
            end = route.follow(cargo, noise, solve, taps=taps)
            return jnp.atleast_1d(functional(end.x)), (end.x, end.passed, end.errors)

        taps = jnp.zeros((solve.steps, len(tableau(solve).b), *noise.shape), noise.dtype)
        value, pull, (x, passed, errors) = jax.vjp(run, taps, has_aux=True)
        pulled = jax.vmap(pull)(jnp.eye(len(value), dtype=value.dtype))[0]
        return x, value, pulled, passed, errors

    x, value, omega, passed, errors = over_samples(one, solve, noise, keys, route)
    size, known = noise[0].size, passed.known
    omega = jnp.moveaxis(omega.reshape(*value.shape, -1, size), 2, 0)
    states = States(passed.tau[0].reshape(-1), states_first(passed.x, size))
    if known is None:
        return Trail(x, value, states, omega, None)
    gain = known.gain.reshape(len(noise), -1).T
    known = Posterior(gain, states_first(known.mean, size))
    return Trail(x, value, states, omega, known, errors)


def _batch_size(solve, size, functionals):
    """As many samples as their kept states have room for."""
    kept = solve.steps * len(tableau(solve).b) * (functionals + 2) * size
    return max(1, min(solve.batch_size, KEPT // kept))


def _functional_shape(functional, x):
    """`()` or `(P,)`; refuses what is neither scalar nor a vector."""
    out = jax.eval_shape(functional, x)
    if not hasattr(out, "shape") or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"a functional must return one floating-point array, got {out}")
    if len(out.shape) > 1 or 0 in out.shape:
        raise ValueError(
            f"a functional must return a scalar or a vector [P] for one sample, got shape "
            f"{out.shape}; flatten it"
        )
    return out.shape


def _raise_if_functional_failed(solve, functional, x, stats):
    """Say that a functional is not finite at a sample that is; silent inside `jit`."""
    if not solve.throw or not _checks.is_concrete(stats.finite):
        return
    whole = jnp.isfinite(x).reshape(len(x), -1).all(1)
    for i in map(int, jnp.flatnonzero(whole & ~stats.finite)[:1]):
        for what, function in (("value", functional), ("gradient", jax.jacrev(functional))):
            if not jnp.isfinite(function(x[i])).all():
                raise FloatingPointError(
                    f"the functional's {what} holds NaN or infinity at sample {i}, which is finite "
                    "itself: mend the functional there (a square root has no gradient at 0, a "
                    "logarithm no value) (Solve(throw=False) returns what there is, with .stats)"
                )

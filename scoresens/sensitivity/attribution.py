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
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from scoresens.flow import ode, riders, sde
from scoresens.flow.riders import Law, Riders, Seen, Smoothed, check_law, starts
from scoresens.flow.routes import Diffusion, Flow, Route
from scoresens.flow.solve import (
    Solve,
    Stats,
    grid,
    over_samples,
    raise_if_failed,
    stats_of,
    tableau,
    walk,
)
from scoresens.flow.traces import Hutchinson, TraceEstimator
from scoresens.laws.learned import Known
from scoresens.laws.measures import Measure, Points
from scoresens.laws.processes import Process
from scoresens.laws.scores import Guided, Score, as_pytree, canonical_denoiser
from scoresens.laws.shards import Shard, all_rows, own_rows
from scoresens.sensitivity.tables import (
    Influences,
    Levers,
    States,
    influences,
    is_on_host,
    posteriors,
)

Base = Measure | Smoothed | Literal["data"] | None


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
    base: Base = "data",
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
        FloatingPointError: results that are not finite (outside `jit`).

    Notes:
        Network: one path down (`2 steps` evaluations a sample with Heun, and the trace's products
        for `base=None`) and one adjoint up (as many evaluations, and P vector-Jacobian products at
        each), whatever N is. Tables: with S = `2 steps` stages, `2 M S N d (3 + P)` operations,
        `2 M S N d (1 + P)` for `base=None`. Memory: `M S (P + 2) d` numbers for a batch of samples
        (`Solve.batch_size`), beside the result. On a CPU the adjoint of a convolutional network is
        slow inside a loop (XLA).

    References:
        Scarvelis & Solomon 2025, arXiv 2509.23092, for the derivative; the adjoint is ours.
    """
    check_points(data)
    base, law = law_of(process, score, data, base, prior)
    noise, _ = ode.checked_start(process, score, noise, shape=data.shape)
    functional = as_pytree(functional)
    scalar = _check_functional(functional, noise[0])
    check_top(top, data)
    noisy = isinstance(route, Diffusion)
    keys = ode.sample_keys(trace, key, len(noise), noisy=noisy) if law.rides else None
    walks = ode.fold(route.key, len(noise)) if isinstance(route, Diffusion) else None
    rule = trace if law.rides else None
    run = _attribute_batch if is_on_host(data) else _attribute_on_device
    levels, parts = zip(
        *(
            run(law, data, base, functional, batch, rule, top, profile, solve)
            for batch in batches((noise, keys, walks), solve.batch_size)
        ),
        strict=True,
    )
    x, value, found, stats = joined(parts)
    raise_if_failed(solve, stats)
    if scalar:
        value, found = without_p(value), found._replace(profile=without_p(found.profile))
    return Attribution(*flat(found, scalar), x, value, levels[0], found.profile, stats)


# ------------------------------------------------------------------ attribution of one batch


class Trail(NamedTuple):
    """Where a batch's paths have been, and what a change of the denoiser there does."""

    x: Float[Array, "M *shape"]
    value: Float[Array, "M P"]
    states: States
    omega: Float[Array, "S M P d"]
    nats: Float[Array, "S M"] | None  # the model's log-density, of the black box,
    denoised: Float[Array, "S M d"] | None  # and its denoiser


class _View(NamedTuple):
    """What one stage of a path saw."""

    tau: Array
    x: Array
    known: Known | None  # of the model's law, of the black box
    riders: Riders | None = None  # along the SDE, where its log-density is followed from


def _attribute_batch(law, data, base, functional, batch, trace, top, profile, solve):
    rows = own_rows(batch, data)
    trail = _down_and_up(law, functional, *rows, trace, solve)
    trail = trail if rows is batch else _of_all_devices(trail, data.axis)
    group = len(tableau(solve).b) if profile else None
    found = influences(data, trail.states, levers(base, trail), top=top, group=group)
    if found.profile is not None:
        found = found._replace(profile=jnp.moveaxis(found.profile, 0, -1))
    steps, solved = jnp.full(len(trail.x), solve.steps), jnp.ones(len(trail.x), bool)
    stats = stats_of((trail.x, trail.value, found), steps, solved)
    return trail.states.tau[:: len(tableau(solve).b)], (trail.x, trail.value, found, stats)


def _of_all_devices(trail, axis):
    """The trails of all the devices that divide the data among them."""
    x, value = all_rows((trail.x, trail.value), axis, 0)
    places, *along = all_rows((trail.states.x, *trail[3:]), axis, 1)
    return Trail(x, value, trail.states._replace(x=places), *along)


# One kernel; points on the host come block by block instead, between compiled pieces.
_attribute_on_device = jax.jit(_attribute_batch, static_argnames=("top", "profile", "solve"))


@functools.partial(jax.jit, static_argnames="solve")
def _down_and_up(law, functional, noise, keys, walks, trace, solve):
    stages = len(tableau(solve).b)
    walked = _flow if walks is None else _diffusion

    def one(noise, key, walk_key):
        probes = trace and trace.draw(key, noise)

        def run(taps):
            x, views = walked(law, noise, walk_key, trace, probes, taps, solve)
            return jnp.atleast_1d(functional(x)), (x, views._replace(riders=None))

        taps = jnp.zeros((solve.steps, stages, *noise.shape), noise.dtype)
        value, pull, (x, views) = jax.vjp(run, taps, has_aux=True)
        return x, value, jax.vmap(pull)(jnp.eye(len(value), dtype=value.dtype))[0], views

    x, value, omega, views = over_samples(one, solve, noise, keys, walks)
    omega = jnp.moveaxis(omega.reshape(*value.shape, solve.steps * stages, -1), 2, 0)
    states = States(views.tau[0].reshape(-1), states_first(views.x, noise[0].size))
    if views.known is None:
        return Trail(x, value, states, omega, None, None)
    density = views.known.nats.reshape(len(noise), -1).T
    return Trail(x, value, states, omega, density, states_first(views.known.mean, noise[0].size))


def _flow(law, noise, _, trace, probes, taps, solve):
    """The end of the probability flow, and what its stages saw."""
    hat, tau, _ = ode.noise_end(law.process, noise, None)
    gain = starts((law,), noise)[0].own

    def evaluate(tau, state, before, tap):
        x, gain = state
        denoised, seen = _see(law, tau, x, trace, probes)
        rates = riders.rates(law, seen, tau, *jax.lax.stop_gradient((x, denoised)))
        return ((x - denoised - tap) / tau, rates.own), view(tau, x, seen, gain)

    def view(tau, x, seen, gain):
        return _View(tau, x, riders.known(law, seen, Riders(gain, ()), tau, x).own)

    nodes = grid(tau, ode.lowest_level(law.process, solve), solve)
    before = view(nodes[0], hat, _unseen(law, hat), gain)
    (x, _), _, views = walk(evaluate, (hat, gain), before, nodes, solve, taps=taps)
    return x, views


def _diffusion(law, noise, walk_key, trace, probes, taps, solve):
    """The end of the reverse SDE along one Brownian path, and what its stages saw."""
    run = sde.brownian(law.process, noise, walk_key, solve)

    def evaluate(w, state, before, tap):
        z, tau = state[0], w**-0.5
        denoised, seen = _see(law, tau, z / w, trace, probes)
        riders = sde.advance(law, before.riders, seen, *_fixed((denoised, w, z)))
        return (denoised + tap,), view(w, z, riders)

    def view(w, z, riders):
        return _View(w**-0.5, z / w, sde.known(law, riders, w, _fixed(z)).own, riders)

    before = view(run.clock[0], run.z, sde.begin((law,), noise, run, trace)[0])
    (z,), _, views = walk(evaluate, (run.z,), before, run.clock, solve, kicks=run.kicks, taps=taps)
    return z / run.clock[-1], views


def _see(law, tau, x, trace, probes):
    """The denoiser, to be differentiated, and for the black box what is followed, which is not:
    the weights of a direction are held where the path is."""
    denoised = canonical_denoiser(law.process, law.score, tau, x)
    if not law.rides:
        return denoised, Riders(None, ())
    nothing = jnp.zeros((0, *x.shape), x.dtype)
    return denoised, riders.look(law, tau, _fixed(x), nothing, trace, probes).seen


def _unseen(law, x):
    return Riders(Seen(jnp.zeros_like(x), None) if law.rides else None, ())


def _fixed(x):
    return jax.lax.stop_gradient(x)


def levers(base, trail):
    """The trail's levers, with the law that kernels are divided by: a measure, or the model's."""
    if not isinstance(base, Measure):
        return Levers(trail.omega, trail.nats, trail.denoised)
    return Levers(trail.omega, *posteriors(base, trail.states))


def states_first(leaf, size):
    """[M, steps, stages, *shape] as [S, M, d]."""
    return jnp.swapaxes(leaf.reshape(len(leaf), -1, size), 0, 1)


def flat(found: Influences, scalar: bool) -> tuple[Any, Any, Any, Any, Any]:
    """Scores and ranks in the order of the results, without the axis P of a scalar functional."""
    (first, where), (last, place) = (ranked or (None, None) for ranked in (found.top, found.bottom))
    scores = found.scores
    if scalar:
        scores, first, where, last, place = map(without_p, (scores, first, where, last, place))
    return scores, first, where, last, place


def without_p(part: Any) -> Any:
    """`[M, 1, ...]` as `[M, ...]`; what is not there stays so."""
    return None if part is None else part[:, 0]


# ------------------------------------------------------------------ what `losses` shares


def law_of(process, score, data, base, prior):
    """The base as a measure or the model's law, and the law that drives a path; refuses what is
    neither."""
    if isinstance(score, Guided):
        raise ValueError("a guided score is made of two laws; attribute takes a score of one")
    if isinstance(base, str):
        if base != "data":
            raise ValueError(f"base must be 'data', a measure, or None, got {base!r}")
        base = data
    if base is not None:
        check_law(base)
    rides = not isinstance(base, Measure)  # else the path knows nothing of it
    own = base if rides else None
    return base, Law(process, as_pytree(score), 1.0, None, own, prior, rides)


def check_points(data):
    """Refuses data that are no `Points`."""
    if not isinstance(data, Points):
        raise ValueError(f"data must be Points(images), got {type(data)}")


def _check_functional(functional, x):
    """Whether the functional is scalar; refuses what is neither scalar nor a vector."""
    out = jax.eval_shape(functional, x)
    if not hasattr(out, "shape") or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"a functional must return one floating-point array, got {out}")
    if len(out.shape) > 1 or 0 in out.shape:
        raise ValueError(
            f"a functional must return a scalar or a vector [P] for one sample, got shape "
            f"{out.shape}; flatten it"
        )
    return out.shape == ()


def check_top(top, data):
    """Refuses a `top` that is not between 1 and N."""
    count = data.count if isinstance(data, Shard) else len(data)
    if top is not None and not (isinstance(top, int) and 1 <= top <= count):
        raise ValueError(f"top must be a whole number from 1 to {count}, got {top!r}")


def batches(arrays, size):
    """The arrays `size` rows at a time."""
    count = len(arrays[0])
    if count <= size:
        yield arrays
        return
    for start in range(0, count, size):
        yield jax.tree.map(lambda leaf, start=start: leaf[start : start + size], arrays)


def joined(parts):
    """Results of several batches as one."""
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

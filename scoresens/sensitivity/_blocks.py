r"""Tables of states against data points (`tables`), walked in blocks of points.

The posterior of the whole set at each state comes first, `p = softmax(log K + log w)` and `p Y`,
and then `sum_r exp(log K_rk - log rho_r) (a_r.y_k + b_r)`, summed over states. Points are read in
blocks, from the device or from the host (an array or a memory map, `Points.on_host`), and states in
chunks: the working memory is a few tables of one chunk by one block, whatever N is.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from scoresens._products import contracted, product
from scoresens.datasets.streams import Stream
from scoresens.laws.bumps import (
    BLOCK,
    Origin,
    Places,
    Softmax,
    block_of,
    bumps_of,
    over_blocks,
    room,
)
from scoresens.laws.kernels import Kernel, shares, smoothed_mean
from scoresens.laws.measures import Points, Posterior
from scoresens.laws.shards import combined, ranked, summed

ROWS = 512  # rows of a CPU's table, states x samples x functionals, at a time (see `bumps.BLOCK`)


class States(NamedTuple):
    """Where M samples have been, S states each at the same noise levels."""

    tau: Float[Array, " S"]
    x: Float[Array, "S M d"]


class Influences(NamedTuple):
    """What N points do to P functionals of M samples."""

    scores: Float[Array, "M P N"] | None
    top: tuple[Array, Array] | None  # values and indices [M, P, k], largest first
    bottom: tuple[Array, Array] | None  # smallest first
    profile: Float[Array, "G M P"] | None  # sum_k w_k |contribution| of each group of states


class Plan(NamedTuple):
    """How the table is walked; static."""

    top: int | None
    group: int | None  # states whose contributions are one entry of the profile
    chunk: int  # states at a time
    block: int | None  # points at a time; None: the table is of all
    few: int | None = None  # samples at a time, of a table of all points


def is_on_host(points: Points) -> bool:
    """Whether the points stay on the host, and are read from there block by block."""
    return isinstance(points.points, np.ndarray | Stream)


def posteriors(base: Points, states: States) -> Posterior:
    """Gain `[S, M]` and posterior mean `[S, M, d]` of the points at each state."""
    plan, origin = _plan(base, states.x.shape[:2], 1), base.origin(states.x.dtype)
    bumps = base.bandwidth, base.kernel
    given, start = _posterior_begun(plan, bumps, origin, states)
    found = _fold(_add_posterior, plan, base, origin, given, start)
    return combined(_posterior_done(bumps, origin, states, found), base)


def influences(
    points: Points,
    states: States,
    omega: Float[Array, "S M P d"],
    known: Posterior,
    *,
    top: int | None = None,
    group: int | None = None,
) -> Influences:
    """See `tables.influences`."""
    plan = _plan(points, omega.shape[:2], omega.shape[2], top, group)
    origin = points.origin(states.x.dtype)
    bumps = points.bandwidth, points.kernel
    given = _influences_begun(plan, bumps, origin, states, omega, known)
    start = _no_influences(plan, len(points), omega)
    found = _fold(_add_influences, plan, points, origin, given, start)
    found = found._replace(profile=summed(found.profile, points))
    if top is None:
        return found
    largest, (least, where) = ranked(found.top, points), ranked(found.bottom, points)
    return found._replace(top=largest, bottom=(-least, where))


def total(table: Array) -> Array:
    """The sum over the leading axis, as a product: a reduction over any axis but the last is far
    slower on a CPU (XLA)."""
    return contracted("s,s...->...", jnp.ones(len(table), table.dtype), table)


def added(
    plan: Plan, found: Array, each: Float[Array, "c m P B"], weights: Float[Array, " B"]
) -> tuple[Array, Array | None]:
    """The scores `[m, P, B]` with a chunk's contributions, and its part of the profile."""
    if plan.group is None:
        return found + total(each), None
    steps = jax.vmap(total)(each.reshape(-1, plan.group, *each.shape[1:]))
    return found + total(steps), product(jnp.abs(steps), weights)


def against(
    kernel: Kernel,
    origin: Origin,
    places: Places,
    of_x: Array,
    omega: Float[Array, "S M P d"],
    known: Posterior,
) -> tuple[Array, Array]:
    """What log-kernels are measured from, `[S, M]`, and b_r `[S, M, P]`, where the law that they
    are divided by is known at the states; `of_x` is `shares`'."""
    apart = of_x * places.offset - (known.mean - origin.centre)
    return known.gain - places.gain(kernel), contracted("smpd,smd->smp", omega, apart)


def chunked(plan: Plan, given: Any) -> Any:
    """The states, the leading axis, in chunks."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, plan.chunk, *leaf.shape[1:]), given)


# ------------------------------------------------------------------ before and after the blocks


@functools.partial(jax.jit, static_argnames="plan")
def _posterior_begun(plan, bumps, origin, states):
    places = origin.places(*bumps, states.tau[:, None], states.x)
    return chunked(plan, (places, Softmax.empty(states.x)))


@jax.jit
def _posterior_done(bumps, origin, states, found):
    bandwidth, kernel = bumps
    found = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
    gain = found.log_mass + origin.places(*bumps, states.tau[:, None], states.x).gain(kernel)
    mean = smoothed_mean(bandwidth, states.tau[:, None, None], states.x, found.mean(origin))
    return Posterior(gain, mean)


@functools.partial(jax.jit, static_argnames="plan")
def _influences_begun(plan, bumps, origin, states, omega, known):
    bandwidth, kernel = bumps
    of_x, of_y = shares(bandwidth, states.tau[:, None, None])
    places = origin.places(*bumps, states.tau[:, None], states.x)
    reference, offset = against(kernel, origin, places, of_x, omega, known)
    return chunked(plan, (places, reference, of_y[..., None] * omega, offset))


@functools.partial(jax.jit, static_argnames=("plan", "count"))
def _no_influences(plan, count, omega):
    states, *shape, _ = omega.shape
    scores, ranked, profile = None, None, None
    if plan.top is None:
        scores = jnp.zeros((*shape, count), omega.dtype)
    else:
        values = jnp.full((*shape, plan.top), -jnp.inf, omega.dtype)
        ranked = values, jnp.full(values.shape, -1)
    if plan.group is not None:
        profile = jnp.zeros((states // plan.group, *shape), omega.dtype)
    return Influences(scores, ranked, ranked, profile)


# ------------------------------------------------------------------ one block


class _Block(NamedTuple):
    """B consecutive points."""

    bumps: Any  # see `bumps_of`
    weights: Float[Array, " B"]
    start: Int[Array, ""] | int
    fresh: Bool[Array, " B"]  # neither seen before nor copies (`Shard`)


def _add_posterior(plan, given, carry, block):
    weights = jnp.where(block.fresh, block.weights, 0)

    def add(given):
        places, softmax = given
        return softmax.add(block.bumps.log_kernels(places), weights, block.bumps, places)

    return jax.lax.map(add, (given, carry))


def _add_influences(plan, given, carry, block):
    weights = jnp.where(block.fresh, block.weights, 0)

    def add(found, given):
        places, reference, omega, offset = given
        kernels = jnp.exp(block.bumps.log_kernels(places) - reference[..., None])
        each = kernels[:, :, None] * (block.bumps.along(omega, places) + offset[..., None])
        return added(plan, found, each, weights)

    samples, functionals = given[-1].shape[-2:]
    zeros = jnp.zeros((samples, functionals, len(block.fresh)), given[-1].dtype)
    found, profile = jax.lax.scan(add, zeros, given)
    if profile is not None:
        profile = profile.reshape(-1, samples, functionals)
        carry = carry._replace(profile=carry.profile + profile)
    if plan.top is None:
        place = (0, 0, block.start)
        return carry._replace(scores=jax.lax.dynamic_update_slice(carry.scores, found, place))
    return carry._replace(
        top=_ranked(plan.top, carry.top, found, block),
        bottom=_ranked(plan.top, carry.bottom, -found, block),
    )


def _ranked(count, best, found, block):
    """The `count` largest of those so far and this block's."""
    found = jnp.where(block.fresh, found, -jnp.inf)
    index = jnp.broadcast_to(block.start + jnp.arange(len(block.fresh)), found.shape)
    values = jnp.concatenate([best[0], found], -1)
    values, place = jax.lax.top_k(values, count)
    return values, jnp.take_along_axis(jnp.concatenate([best[1], index], -1), place, -1)


# ------------------------------------------------------------------ blocks and chunks


def _fold(add, plan, points, origin, given, carry):
    """`carry = add(plan, given, carry, block)` over all blocks, from the host or on the device."""
    if not is_on_host(points):
        return _fold_on_device(add, plan, points, origin, given, carry)
    size, weights, dtype = plan.block, points.normalized_weights, origin.centre.dtype
    for first in range(0, len(points), size):
        start = min(first, len(points) - size)
        rows = np.asarray(points.points[start : start + size], dtype).reshape(size, -1)
        part = jnp.asarray(weights[start : start + size], dtype)
        jax.block_until_ready(carry)  # read while the last block is added, never further ahead
        seen, place = (rows, origin, points.kernel), (start, first)
        carry = _add_one(add, plan, points.precision, given, carry, seen, part, place)
    return carry


@functools.partial(jax.jit, static_argnames=("add", "plan", "precision"), donate_argnames="carry")
def _add_one(add, plan, precision, given, carry, seen, weights, place):
    (start, first), bumps = place, bumps_of(*seen, precision=precision)
    fresh = start + jnp.arange(len(weights)) >= first
    return add(plan, given, carry, _Block(bumps, weights, start, fresh))


@functools.partial(jax.jit, static_argnames=("add", "plan"))
def _fold_on_device(add, plan, points, origin, given, carry):
    weights = points.normalized_weights

    def step(carry, block):
        fresh = block.fresh & (block.start + jnp.arange(len(block.fresh)) < points.originals)
        bumps = points.block(block, origin)
        return add(plan, given, carry, _Block(bumps, block.rows(weights), block.start, fresh))

    return over_blocks(step, carry, len(points), plan.block)


def _plan(points, counts, functionals, top=None, group=None):
    """As many states at a time as there is room for, a multiple of the group that divides their
    number; fewer points at a time where one state alone has more rows."""
    states, rows = counts[0], counts[1] * functionals
    points_at_once, rows_at_once = BLOCK * room(), ROWS * room()
    least = group or 1
    limit = max(least, rows_at_once // rows)
    chunk = max(c for c in range(least, limit + 1, least) if states % c == 0)
    fewer = points_at_once * rows_at_once // max(rows_at_once, chunk * rows)
    block = max(points_at_once // 8, fewer)
    block = min(block, block_of(math.prod(points.shape)), len(points))
    return Plan(top, group, chunk, block)

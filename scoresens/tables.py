r"""Tables of states against data points, as matrix products in blocks.

A data set enters a path's derivative through the noised kernels of its points at the R states
(x_r, tau_r) that the path has been at:

    log K_rk = log N(x_r; y_k, (tau_r^2 + h^2) I)              one product  x Y^T
    posterior of the whole set at each state                   one more     p Y
    sum_r exp(log K_rk - ref_r) omega_r.(D_k - D_r)            and one      omega Y^T

with D_k = (h^2 x + tau^2 y_k) / (h^2 + tau^2). No network is evaluated here. Points are read in
blocks, from the device or from the host (an array or a memory map, `Points.on_host`), and states in
chunks: the working memory is one (CHUNK, BLOCK) table whatever N is.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scoresens.measures import LOG_2PI, NEAREST, Measure, Points, Posterior
from scoresens.processes import Scalar

BLOCK = 2048  # points at a time
ROWS = 512  # states (times functionals) at a time


class States(NamedTuple):
    """Where M samples have been, S states each at the same noise levels."""

    tau: Float[Array, " S"]
    x: Float[Array, "S M d"]


class Levers(NamedTuple):
    """What a change of the denoiser at each state does to P functionals, and what each change is
    measured against."""

    omega: Float[Array, "S M P d"]  # d functional / d D
    nats: Float[Array, "S M"]  # log-density that the kernels are divided by
    denoised: Float[Array, "S M d"]  # D_r


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


def posteriors(base: Measure, states: States) -> Posterior:
    """Log-density `[S, M]` and posterior mean `[S, M, d]` of a law at each state."""
    if not isinstance(base, Points):
        return _posteriors_of(base, states)
    counts = states.x.shape[:2]
    start = (
        jnp.full(counts, jnp.finfo(states.x.dtype).min, states.x.dtype),
        jnp.zeros(counts, states.x.dtype),
        jnp.zeros_like(states.x),
    )
    plan = Plan(None, None, _chunk(counts, 1))
    top, mass, mean = _fold(_add_posterior, plan, base, states, start)
    mean = mean / mass[..., None]
    own, noise = _shares(base.bandwidth, states.tau)
    mean = own[:, None, None] * states.x + noise[:, None, None] * mean
    return Posterior(top + jnp.log(mass), mean)


def influences(
    points: Points,
    states: States,
    levers: Levers,
    *,
    top: int | None = None,
    group: int | None = None,
) -> Influences:
    """What weight on each data point does to each functional: the sum over states, dense or the
    `top` largest and smallest; with `group`, a profile over groups of that many states."""
    count, samples, functionals, _ = levers.omega.shape
    chunk = _chunk((count, samples), functionals, group or 1)
    own, noise = _shares(points.bandwidth, states.tau)
    x_part = own[:, None, None] * jnp.einsum("smpd,smd->smp", levers.omega, states.x)
    offset = x_part - jnp.einsum("smpd,smd->smp", levers.omega, levers.denoised)
    levers = (noise[:, None, None, None] * levers.omega, offset, levers.nats)
    shape, dtype = (samples, functionals), states.x.dtype
    start = Influences(
        jnp.zeros((*shape, len(points)), dtype) if top is None else None,
        top and _nothing_ranked(shape, top, dtype),
        top and _nothing_ranked(shape, top, dtype),
        group and jnp.zeros((count // group, *shape), dtype),
    )
    plan = Plan(top, group, chunk)
    found = _fold(_add_influences, plan, points, (states, levers), start)
    if top is None:
        return found
    return found._replace(bottom=(-found.bottom[0], found.bottom[1]))


# ------------------------------------------------------------------ one block


class _Block(NamedTuple):
    """B consecutive points. The last block begins early, over points that were seen before."""

    flat: Float[Array, "B d"]
    weights: Float[Array, " B"]
    start: Int[Array, ""]
    first: Int[Array, ""]  # the first new point
    centre: Float[Array, " d"]
    bandwidth: Scalar

    @property
    def fresh(self):
        return self.start + jnp.arange(len(self.flat)) >= self.first


def _add_posterior(plan, states, carry, block):
    fresh = block.fresh & (block.weights > 0)
    log_weights = jnp.where(fresh, jnp.log(jnp.where(fresh, block.weights, 1)), -jnp.inf)

    def add(given):
        states, (top, mass, mean) = given
        logits = _log_kernels(block, states) + log_weights
        new_top = jnp.maximum(top, jnp.max(logits, -1))
        kept, terms = jnp.exp(top - new_top), jnp.exp(logits - new_top[..., None])
        gained = jnp.einsum("smb,bd->smd", terms, block.flat)
        return new_top, kept * mass + jnp.sum(terms, -1), kept[..., None] * mean + gained

    return _over_chunks(add, plan, (states, carry))


def _add_influences(plan, given, carry, block):
    def add(found, given):
        states, (omega, offset, nats) = given
        ratio = jnp.exp(_log_kernels(block, states) - nats[..., None])
        along = jnp.einsum("smpd,bd->smpb", omega, block.flat) + offset[..., None]
        each = ratio[:, :, None] * along
        if plan.group is None:
            return found + jnp.sum(each, 0), None
        steps = jnp.sum(each.reshape(-1, plan.group, *each.shape[1:]), 1)
        return found + jnp.sum(steps, 0), jnp.abs(steps) @ jnp.where(block.fresh, block.weights, 0)

    samples, functionals = given[1][1].shape[1:]
    zeros = jnp.zeros((samples, functionals, len(block.flat)), block.flat.dtype)
    found, profile = jax.lax.scan(add, zeros, _chunked(plan, given))
    if plan.group is not None:
        carry = carry._replace(profile=carry.profile + profile.reshape(carry.profile.shape))
    if plan.top is None:
        place = (0, 0, block.start)
        return carry._replace(scores=jax.lax.dynamic_update_slice(carry.scores, found, place))
    return carry._replace(
        top=_ranked(plan.top, carry.top, found, block),
        bottom=_ranked(plan.top, carry.bottom, -found, block),
    )


def _log_kernels(block, states):
    """log N(x; y, (tau^2 + h^2) I), [S, M, B]. By the expansion of the square, about a centre;
    where its rounding would show, the nearest distances are taken exactly (see `measures`)."""
    flat, x = block.flat - block.centre, states.x - block.centre
    spread = (jnp.square(states.tau) + jnp.square(block.bandwidth))[:, None, None]
    norms = jnp.sum(jnp.square(flat), -1)
    inner = jnp.einsum("smd,bd->smb", x, flat, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(jnp.square(x), -1, keepdims=True) + norms - 2 * inner

    def exact_where_near(squares):
        nearest = jax.lax.top_k(-squares, min(NEAREST, len(flat)))[1]
        exact = jnp.sum(jnp.square(flat[nearest] - x[:, :, None]), -1)
        return jnp.put_along_axis(squares, nearest, exact, -1, inplace=False)

    harmless = jnp.min(spread) > jnp.max(norms) / 100
    squares = jax.lax.cond(harmless, lambda squares: squares, exact_where_near, squares)
    return -0.5 * squares / spread - 0.5 * x.shape[-1] * (jnp.log(spread) + LOG_2PI)


def _ranked(count, best, found, block):
    """The `count` largest of those so far and this block's."""
    found = jnp.where(block.fresh, found, -jnp.inf)
    index = jnp.broadcast_to(block.start + jnp.arange(len(block.flat)), found.shape)
    values = jnp.concatenate([best[0], found], -1)
    values, place = jax.lax.top_k(values, count)
    return values, jnp.take_along_axis(jnp.concatenate([best[1], index], -1), place, -1)


def _nothing_ranked(shape, count, dtype):
    return jnp.full((*shape, count), -jnp.inf, dtype), jnp.full((*shape, count), -1)


# ------------------------------------------------------------------ blocks and chunks


def _fold(add, plan, points, given, carry):
    """`carry = add(plan, given, carry, block)` over all blocks, from the host or on the device."""
    size = min(BLOCK, len(points))
    firsts = np.arange(0, len(points), size)
    starts = np.minimum(firsts, len(points) - size)
    dtype = jax.tree.leaves(given)[0].dtype
    centre = jnp.asarray(points.points[:size], dtype).reshape(size, -1).mean(0)
    if not isinstance(points.points, np.ndarray):
        return _fold_on_device(add, plan, points, given, carry, centre)
    for start, first in zip(starts, firsts, strict=True):
        rows = slice(start, start + size)
        flat = jnp.asarray(points.points[rows], dtype).reshape(size, -1)
        own = jnp.asarray(points.normalized_weights[rows], dtype)
        block = _Block(flat, own, start, first, centre, points.bandwidth)
        carry = _add_one(add, plan, given, carry, block)
    return carry


@functools.partial(jax.jit, static_argnames=("add", "plan"), donate_argnames="carry")
def _add_one(add, plan, given, carry, block):
    return add(plan, given, carry, block)


@functools.partial(jax.jit, static_argnames=("add", "plan"))
def _fold_on_device(add, plan, points, given, carry, centre):
    size = min(BLOCK, len(points))
    flat, weights = points.points.reshape(len(points), -1), points.normalized_weights

    def step(carry, first):
        start = jnp.minimum(first, len(points) - size)
        rows = jax.lax.dynamic_slice_in_dim(flat, start, size)
        own = jax.lax.dynamic_slice_in_dim(weights, start, size)
        block = _Block(rows, own, start, first, centre, points.bandwidth)
        return add(plan, given, carry, block), None

    return jax.lax.scan(step, carry, jnp.arange(0, len(points), size))[0]


def _over_chunks(function, plan, given):
    """`function` mapped over chunks of the states, the leading axis."""
    found = jax.lax.map(function, _chunked(plan, given))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)


def _chunked(plan, given):
    return jax.tree.map(lambda leaf: leaf.reshape(-1, plan.chunk, *leaf.shape[1:]), given)


def _chunk(counts, functionals, group=1):
    """How many states to take at a time: a multiple of the group that divides their number."""
    states, samples = counts
    limit = max(group, ROWS // (samples * functionals))
    fits = [c for c in range(group, limit + 1, group) if states % c == 0]
    return max(fits)


def _shares(bandwidth, tau):
    """h^2 / (h^2 + tau^2) and tau^2 / (h^2 + tau^2)."""
    own, noise = jnp.square(bandwidth), jnp.square(tau)
    return own / (own + noise), noise / (own + noise)


@jax.jit
def _posteriors_of(base, states):
    """Of any law, a state at a time."""

    def one(given):
        tau, x = given
        shaped = x.reshape(len(x), *base.shape)
        found = jax.vmap(functools.partial(base.posterior, tau))(shaped)
        return Posterior(found.log_density, found.mean.reshape(x.shape))

    return jax.lax.map(one, (states.tau, states.x))

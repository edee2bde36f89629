r"""Tables of states against data points, as matrix products in blocks.

A data set enters a path's derivative through the noised kernels of its points at the states
(x_r, tau_r) that the path has been at. With v = tau^2 + h^2 the logarithm of a kernel is linear in
the **features** f_k = (y_k, |y_k|^2, 1) of a point, and so is what a lever does along D_k:

    log K_rk - ref_r      = a_r.f_k     a = (x / v, -1 / 2v, -|x|^2 / 2v - d/2 log 2 pi v - ref)
    omega_r.(D_k - D_r)   = b_r.f_k     b = (tau^2 / v omega, 0, omega.(h^2 / v x - D_r))

so that all there is to compute is products of matrices, R states by N points:

    posterior of the whole set at each state     p = softmax(a F^T + log w),  p Y
    sum_r exp(log K_rk - ref_r) omega_r.(D_k - D_r)     exp(a F^T) * (b F^T), summed over states

No network is evaluated here. Points are read in blocks, from the device or from the host (an array
or a memory map, `Points.on_host`), and states in chunks: the working memory is a few tables of one
chunk by one block, whatever N is. Everything is measured from the mean of the first points, where
`|x - y|^2` by its expansion loses least; at small noise it is taken exactly for the nearest.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scoresens._products import contracted, product
from scoresens.datasets.streams import Stream
from scoresens.laws.measures import LOG_2PI, NEAREST, Measure, Points, Posterior
from scoresens.laws.processes import Scalar
from scoresens.laws.shards import Shard, combined, ranked

BLOCK = 2048  # points at a time
ROWS = 512  # rows of a table, states x samples x functionals, at a time


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
    block: int  # points at a time


def is_on_host(points: Points) -> bool:
    """Whether the points stay on the host, and are read from there block by block."""
    return isinstance(points.points, np.ndarray | Stream)


def posteriors(base: Measure, states: States) -> Posterior:
    """Log-density `[S, M]` and posterior mean `[S, M, d]` of a law at each state."""
    if not isinstance(base, Points):
        return _posteriors_of(base, states)
    plan, centre = _plan(base, states.x.shape[:2], 1), _centre(base, states.x.dtype)
    given, start = _posterior_begun(plan, centre, states)
    found = _fold(_add_posterior, plan, base, centre, given, start)
    found = _posterior_done(base.bandwidth, centre, states, found)
    return combined(found, base.axis) if isinstance(base, Shard) else found


def influences(
    points: Points,
    states: States,
    levers: Levers,
    *,
    top: int | None = None,
    group: int | None = None,
) -> Influences:
    """What weight on each data point does to each functional: the sum over states, dense or the
    `top` largest and smallest; with `group`, a profile over groups of that many states. Of a
    `Shard`, dense scores are of the device's own points, all else is of all."""
    plan = _plan(points, levers.nats.shape, levers.omega.shape[2], top, group)
    centre = _centre(points, states.x.dtype)
    given = _influences_begun(plan, points.bandwidth, centre, states, levers)
    start = _no_influences(plan, len(points), levers.omega)
    found = _fold(_add_influences, plan, points, centre, given, start)
    if found.profile is not None and isinstance(points, Shard):
        found = found._replace(profile=jax.lax.psum(found.profile, points.axis))
    if top is None:
        return found
    largest, (least, where) = ranked(found.top, points), ranked(found.bottom, points)
    return found._replace(top=largest, bottom=(-least, where))


# ------------------------------------------------------------------ before and after the blocks


@functools.partial(jax.jit, static_argnames="plan")
def _posterior_begun(plan, centre, states):
    counts, dtype = states.x.shape[:2], states.x.dtype
    top = jnp.full(counts, jnp.finfo(dtype).min, dtype)
    start = (top, jnp.zeros_like(top), jnp.zeros_like(states.x))
    return _chunked(plan, (states._replace(x=states.x - centre), start))


@jax.jit
def _posterior_done(bandwidth, centre, states, found):
    top, mass, mean = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
    own, noise = _shares(bandwidth, states.tau)
    mean = own * states.x + noise * (centre + mean / mass[..., None])
    return Posterior(top + jnp.log(mass), mean)


@functools.partial(jax.jit, static_argnames="plan")
def _influences_begun(plan, bandwidth, centre, states, levers):
    x, denoised = states.x - centre, levers.denoised - centre
    own, noise = _shares(bandwidth, states.tau)
    offset = contracted("smpd,smd->smp", levers.omega, own * x - denoised)
    omega = noise[..., None] * levers.omega
    return _chunked(plan, (states._replace(x=x), levers.nats, omega, offset))


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
    """B consecutive points. The last block begins early, over points that were seen before; the
    last points may be copies (`Shard`)."""

    points: Float[Array, "B d"]  # from the centre
    weights: Float[Array, " B"]
    start: Int[Array, ""] | int
    first: Int[Array, ""] | int  # the first new point
    end: Int[Array, ""] | int  # the first copy
    bandwidth: Scalar

    @property
    def fresh(self):
        places = self.start + jnp.arange(len(self.points))
        return (places >= self.first) & (places < self.end)

    @property
    def features(self):
        squares = jnp.sum(jnp.square(self.points), -1, keepdims=True)
        return jnp.concatenate([self.points, squares, jnp.ones_like(squares)], -1)


def _add_posterior(plan, given, carry, block):
    fresh, features = block.fresh & (block.weights > 0), block.features
    log_weights = jnp.where(fresh, jnp.log(jnp.where(fresh, block.weights, 1)), -jnp.inf)

    def add(given):
        states, (top, mass, mean) = given
        logits = _log_kernels(block, features, states, 0.0) + log_weights
        new_top = jnp.maximum(top, jnp.max(logits, -1))
        kept, terms = jnp.exp(top - new_top), jnp.exp(logits - new_top[..., None])
        gained = contracted("smb,bd->smd", terms, block.points)
        return new_top, kept * mass + jnp.sum(terms, -1), kept[..., None] * mean + gained

    return jax.lax.map(add, (given, carry))


def _add_influences(plan, given, carry, block):
    features = block.features

    def add(found, given):
        states, nats, omega, offset = given
        rows = jnp.stack([jnp.zeros_like(offset), offset], -1)
        along = contracted("smpf,bf->smpb", jnp.concatenate([omega, rows], -1), features)
        each = jnp.exp(_log_kernels(block, features, states, nats))[:, :, None] * along
        if plan.group is None:
            return found + _total(each), None
        steps = jax.vmap(_total)(each.reshape(-1, plan.group, *each.shape[1:]))
        seen = product(jnp.abs(steps), jnp.where(block.fresh, block.weights, 0))
        return found + _total(steps), seen

    samples, functionals = given[-1].shape[-2:]
    zeros = jnp.zeros((samples, functionals, len(features)), features.dtype)
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


def _log_kernels(block, features, states, reference):
    """log N(x; y, (tau^2 + h^2) I) - reference, [S, M, B]. Where the rounding of |x - y|^2 by its
    expansion would show, it is taken exactly for the nearest (see `measures`)."""
    x, spread = states.x, jnp.square(states.tau) + jnp.square(block.bandwidth)
    constant = -0.5 * x.shape[-1] * (jnp.log(spread) + LOG_2PI)[:, None] - reference
    weight = jnp.broadcast_to(0.5 / spread[:, None], x.shape[:2])
    rows = jnp.stack([-weight, constant - weight * jnp.sum(jnp.square(x), -1)], -1)
    rows = jnp.concatenate([x / spread[:, None, None], rows], -1)
    table = contracted("smf,bf->smb", rows, features)

    def exact_where_near(table):
        nearest = jax.lax.top_k(table, min(NEAREST, len(features)))[1]
        squares = jnp.sum(jnp.square(block.points[nearest] - x[:, :, None]), -1)
        exact = constant[..., None] - weight[..., None] * squares
        return jnp.put_along_axis(table, nearest, exact, -1, inplace=False)

    harmless = jnp.min(spread) > jnp.max(features[:, -2]) / 100
    return jax.lax.cond(harmless, lambda table: table, exact_where_near, table)


def _total(table):
    """The sum over the leading axis, as a product: a reduction over any axis but the last is far
    slower on a CPU (XLA)."""
    return contracted("s,s...->...", jnp.ones(len(table), table.dtype), table)


def _ranked(count, best, found, block):
    """The `count` largest of those so far and this block's."""
    found = jnp.where(block.fresh, found, -jnp.inf)
    index = jnp.broadcast_to(block.start + jnp.arange(len(block.points)), found.shape)
    values = jnp.concatenate([best[0], found], -1)
    values, place = jax.lax.top_k(values, count)
    return values, jnp.take_along_axis(jnp.concatenate([best[1], index], -1), place, -1)


# ------------------------------------------------------------------ blocks and chunks


def _fold(add, plan, points, centre, given, carry):
    """`carry = add(plan, given, carry, block)` over all blocks, from the host or on the device."""
    if not is_on_host(points):
        return _fold_on_device(add, plan, points, centre, given, carry)
    size, weights = plan.block, points.normalized_weights
    for first in range(0, len(points), size):
        start = min(first, len(points) - size)
        rows = np.asarray(points.points[start : start + size], centre.dtype).reshape(size, -1)
        own = jnp.asarray(weights[start : start + size], centre.dtype)
        block = _Block(rows - centre, own, start, first, len(points), points.bandwidth)
        jax.block_until_ready(carry)  # read while the last block is added, never further ahead
        carry = _add_one(add, plan, given, carry, block)
    return carry


@functools.partial(jax.jit, static_argnames=("add", "plan"), donate_argnames="carry")
def _add_one(add, plan, given, carry, block):
    return add(plan, given, carry, block)


@functools.partial(jax.jit, static_argnames=("add", "plan"))
def _fold_on_device(add, plan, points, centre, given, carry):
    size = plan.block
    flat, weights = points.points.reshape(len(points), -1), points.normalized_weights
    end = points.own if isinstance(points, Shard) else len(points)

    def step(carry, first):
        start = jnp.minimum(first, len(points) - size)
        rows = jax.lax.dynamic_slice_in_dim(flat, start, size) - centre
        own = jax.lax.dynamic_slice_in_dim(weights, start, size)
        return add(plan, given, carry, _Block(rows, own, start, first, end, points.bandwidth)), None

    return jax.lax.scan(step, carry, jnp.arange(0, len(points), size))[0]


def _centre(points, dtype):
    """The mean of the first points."""
    return _mean(points.points[:BLOCK], dtype)


@functools.partial(jax.jit, static_argnames="dtype")
def _mean(points, dtype):
    return points.reshape(len(points), -1).astype(dtype).mean(0)


def _chunked(plan, given):
    """The states, the leading axis, in chunks."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, plan.chunk, *leaf.shape[1:]), given)


def _plan(points, counts, functionals, top=None, group=None):
    """As many states at a time as ROWS allows, a multiple of the group that divides their number;
    fewer points at a time where one state alone has more rows."""
    states, rows = counts[0], counts[1] * functionals
    least = group or 1
    limit = max(least, ROWS // rows)
    chunk = max(c for c in range(least, limit + 1, least) if states % c == 0)
    block = max(BLOCK // 8, BLOCK * ROWS // max(ROWS, chunk * rows))
    return Plan(top, group, chunk, min(block, len(points)))


def _shares(bandwidth, tau):
    """h^2 / (h^2 + tau^2) and tau^2 / (h^2 + tau^2), `[S, 1, 1]`."""
    own, noise = jnp.square(bandwidth), jnp.square(tau)[:, None, None]
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

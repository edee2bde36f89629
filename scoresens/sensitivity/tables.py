r"""Tables of states against data points, as matrix products.

A data set enters a path's derivative through the noised kernels of its points (`laws.bumps`) at the
states (x_r, tau_r) that the path has been at, and D_k is linear in the point y_k. Measured from the
points' centre,

    omega_r.(D_k - D_r) = a_r.y_k + b_r,    a = tau^2 omega / v,  b = omega.(h^2 x / v - D_r),
                                            v = tau^2 + h^2

so that all there is to compute for a functional is two products of matrices, R states by N points:
`x Y^T`, of which the kernels are made, and `a Y^T`. Where D_r is the points' own posterior mean, it
is met as b_r = -sum_k p_rk a_r.y_k alone, with p the softmax of kernels that are there already:

    sum_r K_rk / rho_r (a_r.y_k - sum_l p_rl a_r.y_l),      p_rl = w_l K_rl / rho_r

No network is evaluated here. The table of a few states by all points is kept for as long as it
takes to sum it up; where N is so large that this would not be few bytes, where the points stay on
the host or are divided over devices, the points' own posterior is taken first, and then both are
walked in blocks of points (`_blocks`).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scoresens._products import product
from scoresens.laws.bumps import block_of, finite_exp, most_of, over_blocks, room
from scoresens.laws.kernels import shares
from scoresens.laws.measures import Measure, Points, Posterior
from scoresens.laws.shards import Shard
from scoresens.sensitivity import _blocks
from scoresens.sensitivity._blocks import ROWS, Influences, Plan, States, is_on_host

KEPT = 2**24  # entries of a CPU's table of all points: 64 MB in float32
FEW = 64  # rows of a product below which reading the points takes longer than multiplying them


def influences(
    points: Points,
    states: States,
    omega: Float[Array, "S M P d"],
    known: Measure | Posterior | None = None,
    *,
    top: int | None = None,
    group: int | None = None,
) -> Influences:
    """What weight on each data point does to each functional, summed over states.

    Args:
        points: the N points. Of a `Shard`, dense scores are of the device's own, all else of all.
        states: where the samples have been.
        omega: d functional / d D at each state.
        known: the law that kernels are divided by, or its gain `[S, M]` and denoiser
            `[S, M, d]`; None: the points' own. All are taken in the precision of omega.
        top: None returns all scores; else the `top` largest and smallest.
        group: also a profile, over groups of that many states.
    """
    points, states, known = _in_precision(omega.dtype, (points, states, known))
    if isinstance(known, Measure):
        known = posteriors(known, states)
    plan = _whole_plan(points, omega.shape[:3], top, group)
    if plan is not None:
        return _whole(plan, points, states, omega, known)
    known = posteriors(points, states) if known is None else known
    return _blocks.influences(points, states, omega, known, top=top, group=group)


def _in_precision(dtype, tree):
    """The numbers of a pytree in this precision; points on the host are read in it later."""

    def one(leaf):
        here = isinstance(leaf, jax.Array | np.generic)
        return leaf.astype(dtype) if here and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)


@jax.jit
def _posteriors_of(base, states):
    """Of any law, a state at a time."""

    def one(given):
        tau, x = given
        shaped = x.reshape(len(x), *base.shape)
        found = jax.vmap(functools.partial(base.posterior, tau))(shaped)
        return Posterior(found.gain, found.mean.reshape(x.shape))

    return jax.lax.map(one, (states.tau, states.x))


def posteriors(base: Measure, states: States) -> Posterior:
    """Gain `[S, M]` and posterior mean `[S, M, d]` of a law at each state."""
    if isinstance(base, Points):
        return _blocks.posteriors(base, states)
    return _posteriors_of(base, states)


# ------------------------------------------------------------------ tables of all points


def _whole_plan(points, counts, top, group):
    """As many samples at a time, and then states, as the table has room for; None where it has not
    even for a few."""
    states, samples, functionals = counts
    least, rows = group or 1, min(ROWS * room(), KEPT * room() // len(points))
    if is_on_host(points) or isinstance(points, Shard) or rows < max(FEW, functionals * least):
        return None
    few = max(
        m for m in range(1, samples + 1) if samples % m == 0 and m * functionals * least <= rows
    )
    most = rows // (few * functionals)
    chunk = max(c for c in range(least, most + 1, least) if states % c == 0)
    return Plan(top, group, chunk, None, few)


@functools.partial(jax.jit, static_argnames="plan")
def _whole(plan, points, states, omega, known):
    origin, weights = points.origin(states.x.dtype), points.normalized_weights
    contributions = functools.partial(_contributions, points, origin, weights)

    def add(found, given):
        return _blocks.added(plan, found, contributions(*given), weights)

    def of_samples(given):
        zeros = jnp.zeros((*given[1].shape[1:-1], len(points)), omega.dtype)
        chunks = _blocks.chunked(plan, (states.tau, *given))
        found, profile = jax.lax.scan(add, zeros, chunks)
        profile = None if profile is None else profile.reshape(-1, *zeros.shape[:-1])
        if plan.top is None:
            return Influences(found, None, None, profile)
        least, where = jax.lax.top_k(-found, plan.top)
        return Influences(None, jax.lax.top_k(found, plan.top), (-least, where), profile)

    def split(leaf):  # [S, M, ...] as [M / few, S, few, ...]
        return jnp.moveaxis(leaf.reshape(len(leaf), -1, plan.few, *leaf.shape[2:]), 1, 0)

    found = jax.lax.map(of_samples, jax.tree.map(split, (states.x, omega, known)))
    profile = found.profile
    rows = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found._replace(profile=None)
    )
    if profile is None:
        return rows
    return rows._replace(
        profile=jnp.moveaxis(profile, 0, 1).reshape(len(profile[0]), *omega.shape[1:3])
    )


def _contributions(points, origin, weights, tau, x, omega, known):
    """`K / rho omega.(D_k - D)` of each state, sample, functional and point."""
    places = origin.places(points.bandwidth, points.kernel, tau[:, None], x)
    of_x, of_y = shares(points.bandwidth, tau[:, None, None])
    logs, along = _products(points, origin, places, of_y[..., None] * omega)
    if known is None:
        logs = logs - jnp.max(jnp.where(weights > 0, logs, -jnp.inf), -1, keepdims=True)
        kernels = finite_exp(logs)  # of points of weight 0 alone may be beyond
        mass = product(kernels, weights)[..., None]
        offset = -product(kernels[:, :, None] * along, weights) / mass
        kernels = jnp.where(logs > most_of(logs), jnp.inf, kernels) / mass
    else:
        reference, offset = _blocks.against(points.kernel, origin, places, of_x, omega, known)
        kernels = jnp.exp(logs - reference[..., None])
    return kernels[:, :, None] * (along + offset[..., None])


def _products(points, origin, places, levers):
    """Log-kernels of all points, and the levers along them."""

    def add(tables, block):
        bumps = points.block(block, origin)
        parts = bumps.log_kernels(places), bumps.along(levers, places)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(table, part, block.start, -1)
            for table, part in zip(tables, parts, strict=True)
        )

    tables = (jnp.zeros((*of.shape[:-1], len(points)), of.dtype) for of in (places.x, levers))
    return over_blocks(add, tuple(tables), len(points), block_of(math.prod(points.shape)))

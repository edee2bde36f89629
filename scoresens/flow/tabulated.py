r"""Millions of samples in the plane: Euler's rule with the score looked up.

On a grid of times that all samples share, a step needs the score at one time alone. In two
dimensions it is cheaper to evaluate it once on a grid of points than at every sample, and to
interpolate: Catmull and Rom's cubic, whose error falls as the cube of the spacing,

    s(x) = sum_{p,q = -1..2} c_p(u) c_q(v) s_{i+p, j+q},    x = grid_ij + spacing (u, v).

The few samples beyond the table have their scores evaluated.

References: Catmull and Rom 1974; Keys 1981, IEEE Trans. ASSP 29.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scoresens import _checks
from scoresens.flow.euler import euler_step, falling, unit_noise
from scoresens.flow.solve import in_batches
from scoresens.flow.starts import checked_start, fold
from scoresens.laws.processes import Process
from scoresens.laws.scores import Score

ROWS = 4096  # entries of a table evaluated side by side
STRAYS = 64  # samples beyond the table that are evaluated side by side


@dataclass(frozen=True)
class Table:
    """Where the score is tabulated: `bins` by `bins` points of the square |x|, |y| <= half_width.

    Args:
        half_width: of the square, in the process's frame.
        bins: points along a side, 4 or more.
        block: samples moved side by side.
    """

    half_width: float = 4.25
    bins: int = 320
    block: int = 16384

    def __post_init__(self):
        _checks.positive("Table.half_width", self.half_width)
        for name, least in (("bins", 4), ("block", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"Table.{name} must be at least {least}, got {self}")

    @property
    def spacing(self) -> float:
        """Between neighbouring points."""
        return 2 * self.half_width / (self.bins - 1)


class BothLaws(NamedTuple):
    """Samples of the two induced laws, from the same noise."""

    ode: Float[Array, "M 2"]
    sde: Float[Array, "M 2"]


def sample_both(
    process: Process,
    score: Score,
    noise: Float[Array, "M 2"],
    times: Float[Array, " nodes"],
    *,
    key: PRNGKeyArray,
    table: Table = Table(),
) -> BothLaws:
    """Samples of the flow's law and of the reverse SDE's by Euler's rule on a grid of process
    times, as `sample_euler` gives them, with the score looked up.

    Args:
        process: the forward process.
        score: `score(t, x)` of one sample `[2]`.
        noise: `[M, 2]` in the process's frame at times[0].
        times: falling, within [0, t_max].
        key: of the Brownian paths; sample i uses `fold_in(key, i)`.
        table: where the score is tabulated.

    Returns:
        BothLaws: `ode [M, 2]` and `sde [M, 2]` at times[-1], in the process's frame. Samples that
            the score drives to infinity are not finite.

    Raises:
        ValueError: shapes, dtypes or times that do not fit.

    Notes:
        `S bins^2` network evaluations in all, whatever M is, and 32 numbers read a sample and
        step. Samples beyond the table are evaluated, 64 of a block side by side.
    """
    noise, score = checked_start(process, score, noise, shape=(2,))
    times = falling(process, times).astype(noise.dtype)
    return _sample_both(process, score, noise, times, fold(key, len(noise)), table)


def sample_flow(
    process: Process,
    score: Score,
    noise: Float[Array, "M 2"],
    times: Float[Array, " nodes"],
    *,
    table: Table = Table(),
) -> Float[Array, "M 2"]:
    """Samples of the flow's law by the classical Runge-Kutta rule on a grid of process times, with
    the score looked up.

    Args, Raises: as `sample_both`.

    Returns:
        `[M, 2]` at times[-1], in the process's frame.

    Notes:
        `2 S bins^2` network evaluations in all, order 4 where the score is smooth.
    """
    noise, score = checked_start(process, score, noise, shape=(2,))
    times = falling(process, times).astype(noise.dtype)
    return _sample_flow(process, score, noise, times, table)


def look_up(
    values: Float[Array, "G G 2"], table: Table, x: Float[Array, "B 2"]
) -> Float[Array, "B 2"]:
    """The field whose values on the table's points (first index x) are given, at points within the
    table by a spacing."""
    place = (x + table.half_width) / table.spacing
    corner = jnp.clip(jnp.floor(place).astype(jnp.int32), 1, table.bins - 3)
    across, along = (_catmull_rom(part) for part in (place - corner).T)
    i, j = corner.T
    found = jnp.zeros_like(x)
    for p in range(4):
        for q in range(4):
            found += (across[p] * along[q])[:, None] * values[i + p - 1, j + q - 1]
    return found


def _catmull_rom(u):
    """Weights of the values at -1, 0, 1, 2 for the point u of [0, 1]."""
    return (
        ((1 - 0.5 * u) * u - 0.5) * u,
        (1.5 * u - 2.5) * u * u + 1,
        ((2 - 1.5 * u) * u + 0.5) * u,
        (0.5 * u - 0.5) * u * u,
    )


# ------------------------------------------------------------------ kernels


@functools.partial(jax.jit, static_argnames="table")
def _sample_both(process, score, noise, times, keys, table):
    last = len(times) - 2

    def step(both, node):
        i, t, size = node
        field = _field(score, t, _tabulate(score, table, t, noise.dtype), table)
        advance = functools.partial(euler_step, process, t, size)

        def move(rows):
            ode, sde, keys = rows
            kick = jax.vmap(lambda key, x: unit_noise(key, i, last, x))(keys, sde)
            return advance(ode, field(ode), None), advance(sde, field(sde), kick)

        return jax.lax.map(move, (*both, in_keys)), None

    start, in_keys = _blocks(noise, table), _blocks(keys, table)
    nodes = (jnp.arange(last + 1), times[:-1], -jnp.diff(times))
    both, _ = jax.lax.scan(step, (start, start), nodes)
    return BothLaws(*(_joined(x, noise) for x in both))


@functools.partial(jax.jit, static_argnames="table")
def _sample_flow(process, score, noise, times, table):
    def rate(t, values, x):
        pull = _field(score, t, values, table)(x)
        return 0.5 * jnp.square(process.diffusion(t)) * pull - process.drift(t, x)

    def step(carry, node):
        x, here = carry
        t, after = node
        middle, size = 0.5 * (t + after), t - after
        between, there = (_tabulate(score, table, s, noise.dtype) for s in (middle, after))

        def move(x):
            a = rate(t, here, x)
            b = rate(middle, between, x + 0.5 * size * a)
            c = rate(middle, between, x + 0.5 * size * b)
            d = rate(after, there, x + size * c)
            return x + size / 6 * (a + 2 * b + 2 * c + d)

        return (jax.lax.map(move, x), there), None

    start = _blocks(noise, table), _tabulate(score, table, times[0], noise.dtype)
    (x, _), _ = jax.lax.scan(step, start, (times[:-1], times[1:]))
    return _joined(x, noise)


def _tabulate(score, table, t, dtype):
    """The score at time t on the table's points `[G, G, 2]`."""
    axis = jnp.linspace(-table.half_width, table.half_width, table.bins, dtype=dtype)
    points = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1)
    values = in_batches(functools.partial(score, t), ROWS, points.reshape(-1, 2))
    return values.reshape(points.shape)


def _field(score, t, values, table):
    """The score at time t of a block of samples `[B, 2]`."""
    evaluate = jax.vmap(functools.partial(score, t))
    reach = table.half_width - table.spacing

    def field(x):
        # a sample that is not finite has no score, and needs none
        beyond = jnp.any(jnp.abs(x) >= reach, -1) & jnp.all(jnp.isfinite(x), -1)
        strays = jnp.nonzero(beyond, size=len(x), fill_value=len(x))[0]

        def some(carry):
            done, found = carry
            rows = jax.lax.dynamic_slice_in_dim(strays, done, min(STRAYS, len(x)))
            return done + STRAYS, found.at[rows].set(evaluate(x[rows]), mode="drop")

        carry = jnp.zeros((), strays.dtype), look_up(values, table, x)
        return jax.lax.while_loop(lambda carry: carry[0] < jnp.sum(beyond), some, carry)[1]

    return field


def _blocks(rows, table):
    """Rows in blocks `[blocks, block, ...]`, the last one filled up with the first rows."""
    block = min(table.block, len(rows))
    fill = -len(rows) % block
    return jnp.concatenate([rows, rows[:fill]]).reshape(-1, block, *rows.shape[1:])


def _joined(x, like):
    return x.reshape(-1, 2)[: len(like)]

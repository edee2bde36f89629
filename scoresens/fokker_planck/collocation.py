"""Where a residual is looked at: over a box, along the forward process, along the reverse one.

Each returns times and points, for the residuals of `fokker_planck` and, squared, for
`estimates.mean`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scoresens import _checks
from scoresens.flow.solve import Solve
from scoresens.fokker_planck.induced import RISE, reverse_paths
from scoresens.laws.processes import Process, Scalar
from scoresens.laws.scores import Score


class Collocation(NamedTuple):
    """M times and points, in the process's own frame."""

    t: Float[Array, " M"]
    x: Float[Array, "M *shape"]


def in_box(
    count: int, size: int, *, half_width: Scalar, times: tuple[Scalar, Scalar], key: PRNGKeyArray
) -> Collocation:
    """Uniform draws of the box [-half_width, half_width]^size and of the times between two.

    Args:
        count: how many.
        size: the dimension d of x.
        half_width: of the box, in the process's frame, > 0.
        times: the earliest and the latest time.
        key: of the draws.

    Returns:
        Collocation: `t [count]`, `x [count, size]`.
    """
    _checks.positive("half_width", half_width)
    early, late = times
    of_time, of_place = jax.random.split(key)
    t = jax.random.uniform(of_time, (count,), minval=early, maxval=late)
    x = jax.random.uniform(of_place, (count, size), minval=-half_width, maxval=half_width)
    return Collocation(t, x)


def along_forward(
    process: Process, t: Float[Array, " M"], x: Float[Array, "M *shape"], *, key: PRNGKeyArray
) -> Collocation:
    """Data `x [M, *shape]` noised to times `t [M]`: draws of the law that the forward process
    carries them to; sample i uses a stream of `fold_in(key, i)`."""
    x = _checks.samples("x", x)
    t = _checks.times("t", t, len(x), process.t_max).astype(x.dtype)

    def one(i, t, x):
        return process.noised(t, x, key=jax.random.fold_in(jax.random.fold_in(key, i), RISE))

    return Collocation(t, jax.vmap(one)(jnp.arange(len(x)), t, x))


def along_reverse(
    process: Process,
    score: Score,
    noise: Float[Array, "M *shape"],
    *,
    key: PRNGKeyArray,
    solve: Solve = Solve(steps=100),
) -> Collocation:
    """Samples of the law that the reverse SDE induces, at every node of its grid: S + 1 for each of
    M noises, earliest times first. Arguments as in `reverse_paths`."""
    paths = reverse_paths(process, score, noise, key=key, solve=solve)
    t = jnp.repeat(paths.times, len(noise))
    return Collocation(t, paths.x.reshape(-1, *noise.shape[1:]))

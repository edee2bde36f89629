r"""Where paths have been, and what a change of the denoiser there does: what attribution and the
sensitivity of losses share.

A functional's derivative with respect to the weight of point k is a sum over the states r that its
samples have been at (5.1), (5.2):

    sum_r r_k(x_r) omega_r.(D_k(x_r) - D_r),    omega_r = d functional / d D at r

and the sum is one of matrix products (`tables`).
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoresens.flow.riders import Driver
from scoresens.laws.kernels import check_comparable
from scoresens.laws.learned import Base, check_base
from scoresens.laws.measures import Measure, Points, Posterior
from scoresens.laws.processes import Process
from scoresens.laws.scores import Guided, Score, as_pytree
from scoresens.laws.shards import Shard
from scoresens.sensitivity.tables import Influences, States, influences


class Trail(NamedTuple):
    """Where a batch's samples have been, and what a change of the denoiser there does."""

    x: Float[Array, "M *shape"]
    value: Float[Array, "M P"]
    states: States
    omega: Float[Array, "S M P d"]
    known: Posterior | None  # the model's gain [S, M] and denoiser [S, M, d]: the black box's
    errors: tuple[Array, Array] | None = None  # of the gains, [M]; see `Stats`


def influences_along(
    trail: Trail,
    data: Points,
    base: Measure | None,
    *,
    top: int | None = None,
    group: int | None = None,
) -> Influences:
    """What weight on each data point does to each functional, its kernels divided by a measure, by
    the model's law that the path knows, or else by the data's own."""
    known = trail.known if base is None else base
    omega = data.kernel.learnt(trail.omega)
    return influences(data, trail.states, omega, known, top=top, group=group)


def states_first(leaf: Array, size: int) -> Float[Array, "S M d"]:
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


def batches(arrays: tuple, size: int) -> Iterator[tuple]:
    """The arrays `size` rows at a time."""
    count = len(arrays[0])
    if count <= size:
        yield arrays
        return
    for start in range(0, count, size):
        yield jax.tree.map(lambda leaf, start=start: leaf[start : start + size], arrays)


def joined(parts: Any) -> Any:
    """Results of several batches as one."""
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


# ------------------------------------------------------------------ checks


def driver_of(
    process: Process,
    score: Score,
    data: Points,
    base: Base | Literal["data"],
    prior: Measure | None,
) -> tuple[Measure | None, Driver]:
    """The base, None where it is the data or the path knows it, and the law that drives the path;
    the data are those of the process's noise already;
    refuses what is neither a measure nor the model's law."""
    if isinstance(score, Guided):
        raise ValueError("a guided score is made of two laws; attribute takes a score of one")
    if isinstance(base, str):
        if base != "data":
            raise ValueError(f"base must be 'data', a measure, or None, got {base!r}")
        base = data
    check_base(base)
    if isinstance(base, Measure) and base is not data:
        base = cast(Measure, base.under(process))
    rides = not isinstance(base, Measure)  # else the path knows nothing of it
    check_comparable(data.kernel, *([] if rides else [base.kernel]))
    own = base if rides else None
    driver = Driver(process, as_pytree(score), base=own, prior=prior, rides=rides)
    return None if rides or base is data else base, driver


def check_points(data: Any) -> None:
    """Refuses data that are no `Points`."""
    if not isinstance(data, Points):
        raise ValueError(f"data must be Points(images), got {type(data)}")


def check_top(top: int | None, data: Points) -> None:
    """Refuses a `top` that is not between 1 and N."""
    count = data.count if isinstance(data, Shard) else len(data)
    if top is not None and not (isinstance(top, int) and 1 <= top <= count):
        raise ValueError(f"top must be a whole number from 1 to {count}, got {top!r}")

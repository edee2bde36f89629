r"""Functionals of a sample, ready to be attributed.

Any JAX function of one sample `x_0 [*shape]` to a scalar or to a vector `[P]` is a functional.
Those here are `jax.tree_util.Partial`s, which cross `jit` as arguments and trace once. Of your own,
`Partial(function, *arrays)` over a function of a module's top level does; a lambda written anew in
each call is traced and compiled in each.
"""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from scoresens import _checks
from scoresens.flow.riders import Driver, nats
from scoresens.flow.routes import Cargo, climb
from scoresens.flow.solve import Solve
from scoresens.flow.starts import lowest_level
from scoresens.flow.traces import Exact, TraceEstimator
from scoresens.laws.measures import Measure
from scoresens.laws.processes import Process
from scoresens.laws.scores import Score, as_pytree, canonical_denoiser

Functional = Callable[[Float[Array, "*shape"]], Float[Array, "*P"]]


def inner_product(direction: Float[ArrayLike, "*shape"]) -> Functional:
    """`<direction, x_0>`, a scalar."""
    return Partial(_inner_product, _checks.floating("direction", direction))


def components(
    basis: Float[ArrayLike, "P *shape"], mean: Float[ArrayLike, "*shape"] | float = 0.0
) -> Functional:
    """`<basis_p, x_0 - mean>`, a vector `[P]`: principal components, or any other directions."""
    return Partial(_components, _checks.samples("basis", basis), jnp.asarray(mean))


def pixel(*index: int) -> Functional:
    """One entry of the sample, `x_0[index]`, a scalar: `pixel(3, 4, 0)`; NaN where there is none,
    which `attribute` refuses."""
    if not index or not all(isinstance(i, int) for i in index):
        raise ValueError(f"pixel takes the whole numbers of one entry, got {index}")
    return Partial(_pixel, tuple(map(jnp.asarray, index)))


def pixels(shape: tuple[int, ...]) -> Functional:
    """All entries of a sample of this shape, a vector `[d]`."""
    return Partial(_pixels, jnp.zeros(shape))


def squared_distance(target: Float[ArrayLike, "*shape"]) -> Functional:
    """`|x_0 - target|^2`, a scalar; what lowers it pulls the sample toward the target."""
    return Partial(_squared_distance, _checks.floating("target", target))


def logit(classifier: Callable, label: int) -> Functional:
    """`classifier(x_0)[label]`, a scalar, of a function from one sample to a vector of logits; NaN
    for a label that it has not, which `attribute` refuses."""
    return Partial(_logit, as_pytree(classifier), jnp.asarray(label))


def log_density(
    process: Process,
    score: Score,
    *,
    trace: TraceEstimator = Exact(),
    prior: Measure | None = None,
    solve: Solve = Solve(),
) -> Functional:
    """The model's log-density at the sample, at the noise level where paths end, in nats.

    Its gradient is the score there, and the law is held as it is: what is attributed is how likely
    the unchanged model finds the changed sample.

    Args:
        process, score: the model.
        trace: of the value's solve (3.1); it must draw nothing.
        prior, solve: as in `encode`.

    Notes:
        The value costs a path up to the noise with its trace; the gradient one evaluation.
    """
    if trace.needs_key:
        raise ValueError(
            f"log_density is a function of the sample alone, and {type(trace).__name__} draws "
            "probes: use Exact()"
        )
    return Partial(_log_density, process, as_pytree(score), trace, prior, solve)


def _inner_product(direction, x):
    return jnp.vdot(direction, x)


def _components(basis, mean, x):
    return jnp.tensordot(basis, x - mean, x.ndim)


def _pixel(index, x):
    return jnp.asarray(x).at[index].get(mode="fill", fill_value=jnp.nan)


def _pixels(zeros, x):
    return (x + zeros).reshape(-1)


def _squared_distance(target, x):
    return jnp.sum(jnp.square(x - target))


def _logit(classifier, label, x):
    return jnp.asarray(classifier(x)).at[label].get(mode="fill", fill_value=jnp.nan)


def _log_density(process, score, trace, prior, solve, x):
    tau = jnp.asarray(lowest_level(process, solve), x.dtype)
    here = jax.lax.stop_gradient(x)
    cargo = Cargo((Driver(process, score, prior=prior, rides=True),), trace)
    value = nats(cast(Array, climb(cargo, here, tau, solve)[1]), tau, here.size)
    slope = (canonical_denoiser(process, score, tau, here) - here) / jnp.square(tau)
    value, slope = jax.lax.stop_gradient((value, slope))
    return value + jnp.vdot(slope, x - here)  # the score is its gradient: nothing is differentiated

r"""Where paths begin and end: checks, keys, and the log-density at the noise.

All paths run in the canonical frame (1.3), where the state is in units of the data and the clock is
the noise level tau, down from `tau_max = noise_level(t_max)` to `tau_min`. What is integrated of a
log-density is its **gain** (`laws.bumps`), the log-density measured against a broad Gaussian's: the
fall by `d log tau` at high noise is taken exactly, and the solver follows the data's own structure
alone.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from scoresens import _checks
from scoresens.flow.solve import Solve
from scoresens.flow.traces import TraceEstimator
from scoresens.laws.kernels import BREADTH, check_comparable, yardstick
from scoresens.laws.measures import Measure
from scoresens.laws.processes import Process, Scalar, by_name
from scoresens.laws.scores import Score, as_pytree

KICKS = 0x6B69636B  # the stream of a key that Brownian increments are drawn from


def checked_start(
    process: Process,
    score: Score,
    x: Float[Array, "M *shape"],
    *,
    name: str = "noise",
    shape: tuple[int, ...] | None = None,
) -> tuple[Float[Array, "M *shape"], Score]:
    """The samples and the score, each refused if it does not fit the other or the process."""
    check_process(process)
    x, score = _checks.samples(name, x, shape), as_pytree(score)
    _checks.score_shape(score, jnp.asarray(process.t_max, x.dtype), x[0])
    return x, score


def check_process(process: Process) -> None:
    """Refuse what is no process."""
    if not isinstance(process, Process):
        known = ", ".join(by_name())
        raise ValueError(f"process must be one of {known}, got {type(process)}")


def sample_keys(
    estimator: TraceEstimator,
    key: PRNGKeyArray | Key[Array, " M"] | None,
    count: int,
    *,
    noisy: bool = False,
) -> Array | None:
    """One key a sample, or None for an estimator that draws nothing; refuses one that takes no
    trace, unless the path is noisy."""
    if not (noisy or estimator.takes_trace):
        raise ValueError(
            f"{type(estimator).__name__} follows log-densities along the reverse SDE alone: give a "
            "trace estimator, such as Hutchinson() or Exact(), or route=Diffusion(key)"
        )
    if not estimator.needs_key:
        return None
    name = type(estimator).__name__
    _checks.key_given(name, key, "its probes are drawn from it, once a path")
    return fold(cast(Array, key), count)


def fold(key: PRNGKeyArray | Key[Array, " M"], count: int, *, first: int = 0) -> Array:
    """One key a sample, by its number, from `first` on; a row of keys, one a sample, is taken as it
    is."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1:
        if len(key) != count:
            raise ValueError(f"{len(key)} keys were given for {count} samples")
        return key
    return _folded(key, first, count)


@functools.partial(jax.jit, static_argnames="count")
def _folded(key, first, count):
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(count))


def kick_key(key: PRNGKeyArray, i: Int[Array, ""] | int) -> PRNGKeyArray:
    """The key of increment i of one sample's Brownian path: a stream of the sample's key that
    nothing else is drawn from."""
    return jax.random.fold_in(jax.random.fold_in(key, KICKS), i)


def noise_end(
    process: Process, noise: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Scalar]:
    """One sample's canonical start, x^ and tau_max, from noise in the process's frame."""
    t = jnp.asarray(process.t_max, noise.dtype)
    return process.to_canonical(t, noise), process.noise_level(t)


def lowest_level(process: Process, solve: Solve) -> Scalar:
    """Where paths end: `solve.tau_min`, or the noise that the process has at t = 0 if that is
    larger."""
    return jnp.maximum(solve.tau_min, process.noise_level(0.0))


def prior_gain(
    process: Process, prior: Measure | None, tau: Scalar, x: Float[Array, "*shape"]
) -> Scalar:
    """log rho^_tau(x) where paths begin, as a gain: the prior's, noised to tau, or the process's
    own."""
    if prior is not None:
        check_comparable(prior.kernel)
        return cast(Measure, prior.under(process)).posterior(tau, x).gain
    t = jnp.asarray(process.t_max, x.dtype)
    density = process.prior_log_density(process.alpha(t) * x) + x.size * process.log_alpha(t)
    return density + yardstick(tau, x.size)


def gain_rate(trace: Scalar, tau: Scalar, size: int) -> Scalar:
    """How a gain grows along the law's own flow, (3.1) and the yardstick's own growth."""
    return (trace - size) / tau + size * tau / (jnp.square(tau) + BREADTH**2)

r"""Euler's explicit rule on process times, as the literature's own samplers have it.

From one prior at t_max, with times that the caller names and both samplers on the same ones:

    (1.1)   x' = x + size (g^2/2 s - f)                                   probability flow
    (1.2)   x' = x + size (g^2 s - f) + sqrt(size g^2) n                  reverse SDE
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from scoresens import _checks
from scoresens.flow.routes import Diffusion, Flow, Route
from scoresens.flow.sampling import Path
from scoresens.flow.solve import Solve, in_batches, raise_if_failed, stats_of
from scoresens.flow.starts import checked_start, fold, kick_key
from scoresens.laws.processes import Process, check_gaussian
from scoresens.laws.scores import Score

BATCH = 4096  # samples that Euler's rule moves side by side


def sample_euler(
    process: Process,
    score: Score,
    noise: Float[Array, "M *shape"],
    times: Float[Array, " nodes"],
    *,
    route: Route = Flow(),
    solve: Solve = Solve(batch_size=BATCH),
) -> Path:
    """Samples of either induced law by Euler's explicit rule on a grid of process times.

    Args:
        process: the forward process.
        score: `score(t, x)` of one sample.
        noise: `[M, *shape]` in the process's frame at times[0].
        times: falling, within [0, t_max]. Each step takes the score at its beginning.
        route: the probability flow (1.1), or `Diffusion(key)`, the reverse SDE (1.2), its last step
            without noise as is the custom.
        solve: its `batch_size` and `throw`; the grid is that of `times`.

    Returns:
        Path: `x [M, *shape]` in the process's frame at times[-1]; no log-density.

    Raises:
        ValueError: shapes, dtypes or times that do not fit.
        FloatingPointError: a sample that is not finite.

    Notes:
        S network evaluations a sample. Of weak order 1: the literature's rule, to compare with
        published samples; `sample_ode` and `sample_sde` are far closer to the laws themselves for
        as many evaluations.

    References:
        Deveney et al. 2023, arXiv 2311.15996, section 5.
    """
    noise, score = checked_start(process, score, noise)
    times = falling(process, times).astype(noise.dtype)
    if route.noisy:
        check_gaussian(process, "the reverse SDE")
    if not isinstance(route, Flow | Diffusion):
        raise ValueError(
            f"sample_euler takes route=Flow() or Diffusion(key), got "
            f"{type(route).__name__}: sample replays kicks"
        )
    keys = fold(route.key, len(noise)) if isinstance(route, Diffusion) else None
    x = _euler(process, score, noise, times, keys, solve.batch_size)
    steps = jnp.full(len(x), len(times) - 1)
    path = Path(x, None, stats_of(x, steps, jnp.ones(len(x), bool)))
    raise_if_failed(solve, path.stats)
    return path


def falling(process: Process, times: Float[Array, " nodes"]) -> Float[Array, " nodes"]:
    """A grid of process times, refused if it does not fall within [0, t_max]."""
    times = _checks.floating("times", times)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times must be a list of two times or more, got shape {times.shape}")
    if _checks.is_concrete(times) and _checks.is_concrete(process.t_max):
        known = np.asarray(times)
        inside = np.all(np.diff(known) < 0) and known[-1] >= 0
        if not inside or known[0] > float(process.t_max) * (1 + 1e-6):
            raise ValueError(
                f"times must fall from at most t_max = {process.t_max} to 0 or more, got "
                f"{known[0]} to {known[-1]}"
            )
    return times


@functools.partial(jax.jit, static_argnames="batch_size")
def _euler(process, score, noise, times, keys, batch_size):
    last = len(times) - 2

    def one(x, key):
        def step(x, node):
            i, t, size = node
            kick = None if key is None else unit_noise(key, i, last, x)
            return euler_step(process, t, size, x, score(t, x), kick), None

        nodes = (jnp.arange(last + 1), times[:-1], -jnp.diff(times))
        return jax.lax.scan(step, x, nodes)[0]

    return in_batches(one, batch_size, noise, keys)


def euler_step(
    process: Process, t: Array, size: Array, x: Array, score: Array, kick: Array | None
) -> Array:
    """x one step of Euler's rule further down; `kick` is the step's unit noise, None on the
    flow."""
    g2 = jnp.square(process.diffusion(t))
    if kick is None:
        return x + size * (0.5 * g2 * score - process.drift(t, x))
    return x + size * (g2 * score - process.drift(t, x)) + jnp.sqrt(size * g2) * kick


def unit_noise(key: PRNGKeyArray, i: Array, last: int | Array, x: Array) -> Array:
    """The unit noise of step i; none at the last."""
    draw = jax.random.normal(kick_key(key, i), x.shape, x.dtype)
    return jnp.where(i < last, draw, 0)

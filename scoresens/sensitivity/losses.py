r"""How the loss of denoising changes with the weight of each data point.

At a point z, with noise levels tau and weights w, the loss depends on the denoiser at noised copies
of z alone, so that its derivative takes the tables of `attribution` and no path:

    L = E w(tau) |D(z_tau, tau) - z|^2,      z_tau = z + tau n
    (5.2)  dL / d eps_k = E 2 w(tau) r_k (D - z).(D_k - D)      at z_tau
"""

import functools
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from scoresens import _checks
from scoresens.flow.riders import Driver, Evaluation, known_of
from scoresens.flow.routes import Cargo, climb
from scoresens.flow.solve import Solve, Stats, over_samples, raise_if_failed, stats_of
from scoresens.flow.starts import check_process, checked_start, fold, sample_keys
from scoresens.flow.traces import Hutchinson, TraceEstimator, drawn
from scoresens.laws.kernels import level_of
from scoresens.laws.learned import Base
from scoresens.laws.measures import Measure, Points, Posterior
from scoresens.laws.processes import Process
from scoresens.laws.scores import Score, canonical_denoiser
from scoresens.sensitivity._trails import (
    Trail,
    batches,
    check_points,
    check_top,
    driver_of,
    flat,
    influences_along,
    joined,
    states_first,
)
from scoresens.sensitivity.tables import States, is_on_host


class LossSensitivity(NamedTuple):
    """What N data points do to the denoising loss at M points, per unit of mass."""

    scores: Float[Array, "M N"] | None
    top_values: Float[Array, "M k"] | None
    top_indices: Int[Array, "M k"] | None
    bottom_values: Float[Array, "M k"] | None
    bottom_indices: Int[Array, "M k"] | None
    loss: Float[Array, " M"]
    stats: Stats


def loss_sensitivity(
    process: Process,
    score: Score,
    data: Points,
    x: Float[Array, "M *shape"],
    *,
    levels: Float[ArrayLike, " Q"],
    key: PRNGKeyArray,
    weights: Float[ArrayLike, " Q"] | None = None,
    draws: int = 1,
    base: Base | Literal["data"] = "data",
    trace: TraceEstimator = Hutchinson(1),
    prior: Measure | None = None,
    top: int | None = None,
    solve: Solve = Solve(),
) -> LossSensitivity:
    """The sensitivity of the denoising loss at given points to the weight of every data point
    (5.2).

    The loss at z is the mean over Q noise levels and `draws` draws of noise at each of
    `w(tau) |D(z + tau n, tau) - z|^2`.

    Args:
        process, score, data: as in `attribute`.
        x: `[M, *shape]`, the points z, in units of the data.
        levels: `[Q]`, noise levels tau > 0 (noise-to-signal ratios).
        key: of the noise; point i uses `fold_in(key, i)`.
        weights: `[Q]`, w(tau) of each level; None weighs them equally.
        draws: of noise at each level.
        base, trace, prior: as in `attribute`; `base=None` solves (3.1) up from each noised point.
        top: as in `attribute`.
        solve: the numerics of that solve, and the number of points taken at a time.

    Returns:
        LossSensitivity: `scores [M, N]`, the derivative of the loss per unit of mass; negative
            where more of a point would lower the loss. `loss [M]`.

    Raises:
        ValueError: as `attribute`; levels that are not positive, weights that do not fit.
        FloatingPointError: results that are not finite (outside `jit`).

    Notes:
        One network evaluation a noised point (a path up to the noise with its trace for
        `base=None`), and the tables of `attribute`.

    References:
        Scarvelis & Solomon 2025, arXiv 2509.23092, section on losses.
    """
    check_process(process)
    check_points(data)
    base = "data" if base is data else base
    data = data.under(process)
    base, driver = driver_of(process, score, data, base, prior)
    x, _ = checked_start(process, score, x, name="x", shape=data.shape)
    copies = _copies(levels, weights, draws)
    check_top(top, data)
    _checks.key_given("loss_sensitivity", key, "the noise of the loss is drawn from it")
    if driver.rides:
        sample_keys(trace, key, len(x))  # refuses what takes no trace
    rule = trace if driver.rides else None
    run = _loss_batch if is_on_host(data) else _loss_on_device
    loss, found, stats = joined(
        [
            run(driver, data, base, batch, copies, rule, top, solve)
            for batch in batches((x, fold(key, len(x))), solve.batch_size)
        ]
    )
    raise_if_failed(solve, stats)
    return LossSensitivity(*flat(found, True), loss[:, 0], stats)


def _loss_batch(driver, data, base, batch, copies, trace, top, solve):
    trail = _noised(driver, *batch, *copies, trace, solve)
    found = influences_along(trail, data, base, top=top)
    steps, solved = jnp.zeros(len(trail.x), int), jnp.ones(len(trail.x), bool)
    return trail.value, found, stats_of((trail.value, found), steps, solved)


_loss_on_device = jax.jit(_loss_batch, static_argnames=("top", "solve"))


@functools.partial(jax.jit, static_argnames="solve")
def _noised(driver, x, keys, levels, weights, trace, solve):
    """Noised copies of each point, and what their denoiser does to the loss. `levels` and
    `weights` are `[S]`, one a copy."""

    def one(x, key):
        def copy(i, tau, weight):
            own = jax.random.fold_in(key, i)
            place = x + tau * driver.process.noise.draw(own, x.shape, x.dtype)
            denoised = canonical_denoiser(driver.process, driver.score, tau, place)
            error = denoised - x
            known = _known_at(driver, tau, place, trace, own, solve) if driver.rides else None
            return place, 2 * weight * error, weight * jnp.sum(error**2), known

        return jax.lax.map(lambda row: copy(*row), (jnp.arange(len(levels)), levels, weights))

    places, omega, loss, known = over_samples(one, solve, x, keys)
    states = States(levels, states_first(places, x[0].size))
    omega = states_first(omega, x[0].size)[:, :, None]
    loss = jnp.sum(loss, 1, keepdims=True)
    if known is None:
        return Trail(x, loss, states, omega, None)
    mean = states_first(known.mean, x[0].size)
    return Trail(x, loss, states, omega, Posterior(known.gain.T, mean))


def _known_at(driver, tau, x, trace, key, solve):
    """What the model knows of its own law at one place, by the path up to the noise (3.1)."""
    level = level_of(driver.blur, tau)
    probes = drawn(trace, key if trace.needs_key else None, x)
    own = Driver(driver.process, driver.score, prior=driver.prior, rides=True)
    gain = cast(Array, climb(Cargo((own,), trace, probes), x, level, solve)[1])
    denoised = canonical_denoiser(driver.process, driver.score, level, x)
    return known_of(Evaluation(denoised, None), gain, driver.blur, tau, x)


def _copies(levels, weights, draws):
    """The noise level and the weight of each noised copy of a point, `[S]`."""
    levels = _checks.floating("levels", levels)
    if levels.ndim != 1 or not levels.size:
        raise ValueError(f"levels must be a vector [Q] of noise levels, got shape {levels.shape}")
    _checks.positive("levels", levels)
    if not (isinstance(draws, int) and draws >= 1):
        raise ValueError(f"draws must be a whole number >= 1, got {draws!r}")
    weights = jnp.ones_like(levels) if weights is None else _checks.floating("weights", weights)
    _checks.weights("weights", weights, levels.shape)
    return jnp.repeat(levels, draws), jnp.repeat(weights, draws) / (levels.size * draws)

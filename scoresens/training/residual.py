r"""Training by score matching, with the Fokker-Planck residual as a penalty.

    (7.6)   L = L_DSM + w_R L_R
            L_DSM = E_{t ~ p} lambda(t) |s(t, x_t) + n / sigma|^2,    x_t = alpha x_0 + sigma n
            L_R   = E_{t, x} R(t, x)^2,    t uniform, x uniform in a box, or a forward sample

R is the residual of a potential's equation (7.1) and s its gradient; or, for a score network, R is
the vector residual of the score's own equation (7.1s). lambda is 1 or sigma^2, and the times are
`p = t_max Beta(1, 2)` above `t_min`.

Near t = 0 the target n / sigma is without bound, and so is the variance of its square. The times of
L_DSM are therefore drawn in proportion to `q = p lambda / sigma^2 / c`, and

    L_DSM = c E_{t ~ q} |sigma s + n|^2,    c = int p lambda / sigma^2 dt

is the same loss with draws of equal weight, all of the size of d (Song et al. 2021, arXiv
2101.09258). Draws come in pairs with opposite noise, whose largest errors cancel in the
gradient, and times are stratified: one in each of as many equal shares of q. R is largest near
t = 0, so half of the times of L_R are drawn evenly in log t, and weighted so that its law stays
uniform.

The residual holds second derivatives, and its square is ill-conditioned in the parameters: Adam
stalls on it, and SOAP does not.

Whatever is random at a step comes from `fold_in(key, step)`.

References: Deveney et al. 2023, arXiv 2311.15996 (R^2 in a box, plain squared error);
Lai et al. 2023, arXiv 2210.04296 (the score's form);
Wang et al. 2025, arXiv 2502.00604 (SOAP for residuals of differential equations).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scoresens import _checks
from scoresens.flow.traces import Hutchinson
from scoresens.fokker_planck.residuals import potential_residual_at, score_residual_at
from scoresens.laws.processes import Process
from scoresens.laws.scores import Potential, Score, as_pytree, from_potential
from scoresens.training.loop import looped
from scoresens.training.soap import soap

Draw = Callable[[PRNGKeyArray, int], Float[Array, "count *shape"]]
Network = Potential | Score  # whose leaves are its parameters

WARMUP = 0.02  # share of the steps over which the learning rate rises
KNOTS = 4096  # of the table of times
REMEDY = """lower the learning rate or the residual's weight, and look for values in the data that \
are not finite"""


@dataclass(frozen=True)
class RegularizedSettings:
    """How to train with the residual as a penalty.

    Args:
        steps: optimiser steps.
        batch_size: noised samples a step, an even number.
        learning_rate: SOAP's at its peak, after a warm-up over 2 % of the steps; it then falls to 0
            along a cosine.
        residual_weight: w_R; at 0 the residual is not looked at.
        collocation: points a step at which the residual is taken.
        where: `"box"`: x uniform in `[-half_width, half_width]^d`; `"forward"`: x a sample of
            the forward process.
        half_width: of the box, in the process's own frame.
        t_min: the least time, of both losses.
        weighting: of the squared error of the score: `"score"` 1, as the reference;
            `"noise"` sigma^2, which is the squared error of the noise.

    Raises:
        ValueError: if a number is out of range, or a name unknown.
    """

    steps: int = 10_000
    batch_size: int = 512
    learning_rate: float = 3e-3
    residual_weight: float = 1.0
    collocation: int = 512
    where: Literal["box", "forward"] = "box"
    half_width: float = 3.5
    t_min: float = 1e-5
    weighting: Literal["score", "noise"] = "score"

    def __post_init__(self):
        for name in ("steps", "batch_size", "learning_rate", "collocation", "half_width", "t_min"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.batch_size % 2:
            raise ValueError(f"batch_size must be even, got {self.batch_size}: draws come in pairs")
        if not 0 <= self.residual_weight < float("inf"):
            raise ValueError(f"residual_weight must be 0 or greater, got {self.residual_weight}")
        for name, known in (("where", ("box", "forward")), ("weighting", ("score", "noise"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}"
                )


class Clock(NamedTuple):
    """The law q of the times, as a table, and the weight of a draw; see `clock`."""

    log_times: Float[Array, "K"]
    cumulative: Float[Array, "K"]
    weight: Float[Array, ""]  # c


class RegularizedState(NamedTuple):
    """What one step hands to the next."""

    model: Any
    opt_state: optax.OptState
    step: Int[Array, ""]


class RegularizedResult(NamedTuple):
    """A trained network, and both parts of its loss over each 50 steps."""

    model: Any
    losses: Float[np.ndarray, "intervals"]  # L_DSM
    residuals: Float[np.ndarray, "intervals"] | None  # L_R, before its weight; None for weight 0


def train_regularized(
    model: Network,
    process: Process,
    data: Draw | Float[Array | np.ndarray, "N *shape"],
    *,
    key: PRNGKeyArray,
    settings: RegularizedSettings,
    progress: bool = True,
) -> RegularizedResult:
    """A potential or a score network trained on data, with the residual as a penalty (7.6).

    Args:
        model: where to start, such as a `PotentialMLP` or a `ScoreMLP`: a callable pytree whose
            leaves are its parameters. If `model(t, x)` is a number it is a potential, if it is an
            array like x a score. It is left as it is.
        process: the forward process.
        data: points `[N, *shape]`, drawn with replacement; or a function `(key, count)` to
            draws `[count, *shape]`, such as `planar.sampler`'s.
        key: random key; every draw of step k comes from `fold_in(key, k)`.
        settings: how to train.
        progress: whether to show a progress bar.

    Returns:
        The model after the last step, and both losses.

    Raises:
        ValueError: if the model is neither a potential nor a score of samples of this shape, the
            points are not finite, lie outside of the box, or t_min is not within the process.
        FloatingPointError: if the loss stops being finite.

    Notes:
        A noised sample costs one evaluation of the score and its reverse pass; a point of
        collocation 2 to 3 times that for a potential, in two dimensions, and d products of the
        Jacobian in general.
    """
    draw = _check_data(data, settings)
    _check_model(model, draw, settings)
    times = clock(process, settings.t_min, settings.weighting)
    state, parts = looped(
        lambda state: regularized_step(state, process, draw, times, key, settings),
        _start(model, settings), settings.steps, remedy=REMEDY, progress=progress,
    )  # fmt: skip
    residuals = parts[:, 1] if settings.residual_weight > 0 else None
    return RegularizedResult(state.model, parts[:, 0], residuals)


def denoising_errors(
    process: Process,
    model: Potential | Score,
    x0: Float[Array, "B *shape"],
    t: Float[Array, "B"],
    noise: Float[Array, "B *shape"],
) -> Float[Array, "B"]:
    """`|sigma s(t, x_t) + n|^2` at noised samples `x_t = alpha x_0 + sigma n`.

    Its mean is least for the score of the noised law, where it is `d - sigma^2 E|s|^2`.

    Args:
        process: the forward process.
        model: a potential or a score.
        x0: clean samples `[B, *shape]`.
        t: times `[B]`, where sigma is positive.
        noise: standard normal, `[B, *shape]`.

    References:
        Vincent 2011, A connection between score matching and denoising autoencoders.
    """
    score = from_potential(model) if _is_potential(model, t[0], x0[0]) else model

    def one(x0, t, noise):
        sigma = process.sigma(t)
        error = sigma * score(t, process.alpha(t) * x0 + sigma * noise) + noise
        return jnp.sum(jnp.square(error))

    return jax.vmap(one)(x0, t, noise)


def squared_residuals(
    process: Process, model: Potential | Score, t: Float[Array, "B"], x: Float[Array, "B *shape"]
) -> Float[Array, "B"]:
    """`R(t, x)^2` of a potential (7.1), `|R(t, x)|^2` of a score (7.1s).

    Args:
        process: the forward process.
        model: a potential or a score.
        t: times `[B]`.
        x: points `[B, *shape]`, in the process's own frame.
    """
    residual = potential_residual_at if _is_potential(model, t[0], x[0]) else score_residual_at
    trace, probes = Hutchinson(x[0].size), _basis(x[0])

    def one(t, x):
        return jnp.sum(jnp.square(residual(process, model, trace, probes, t, x)))

    return jax.vmap(one)(t, x)


def clock(process: Process, t_min: float, weighting: Literal["score", "noise"]) -> Clock:
    """The law of the times that a batch is drawn from: `q` in proportion to
    `p lambda / sigma^2`, with `p = Beta(1, 2)` on `[t_min, t_max]`.

    Args:
        process: the forward process.
        t_min: the least time, below t_max.
        weighting: lambda, 1 for `"score"` and sigma^2 for `"noise"`.

    Returns:
        A table of q's cumulative at 4,096 times, even in log t, and `c = int p lambda / sigma^2`
        by the trapezoidal rule, whose error is of the order 1e-5 of it.

    Raises:
        ValueError: if t_min is not positive and below the process's t_max.
    """
    t_max = float(process.t_max)
    if not 0 < t_min < t_max:
        raise ValueError(f"t_min must be above 0 and below t_max {t_max:g}, got {t_min}")
    log_times = np.linspace(np.log(t_min), np.log(t_max), KNOTS)
    t = np.exp(log_times)
    density = 2 * np.maximum(t_max - t, 0) / (t_max - t_min) ** 2
    if weighting == "score":
        density = density / np.asarray(jax.vmap(process.variance)(jnp.asarray(t)), np.float64)
    share = density * t  # a unit of log t
    area = np.diff(log_times) * (share[1:] + share[:-1]) / 2
    cumulative = np.concatenate([[0.0], np.cumsum(area)])
    whole = cumulative[-1]
    return Clock(*map(jnp.asarray, (log_times, cumulative / whole, whole)))


@functools.partial(jax.jit, static_argnames="settings", donate_argnames="state")
def regularized_step(
    state: RegularizedState,
    process: Process,
    draw: Draw,
    times: Clock,
    key: PRNGKeyArray,
    settings: RegularizedSettings,
) -> tuple[RegularizedState, Float[Array, "2"]]:
    """The state after one step, and the batch's L_DSM and L_R. The state given is used
    up."""
    key = jax.random.fold_in(key, state.step)
    found = jax.value_and_grad(_loss, has_aux=True)
    (_, parts), gradient = found(state.model, process, draw, times, key, settings)
    updates, opt_state = _optimiser(settings).update(gradient, state.opt_state)
    model = jax.tree.map(jnp.add, state.model, updates)
    return RegularizedState(model, opt_state, state.step + 1), parts


def _loss(model, process, draw, times, key, settings):
    """L, and its two parts."""
    for_batch, for_points = jax.random.split(key)
    x0, t, noise = _batch(draw, times, for_batch, settings)
    matching = times.weight.astype(x0.dtype) * jnp.mean(
        denoising_errors(process, model, x0, t, noise)
    )
    if not settings.residual_weight:
        return matching, jnp.stack([matching, jnp.zeros_like(matching)])
    t, x, weight = _collocation(process, x0, for_points, settings)
    residual = jnp.mean(weight * squared_residuals(process, model, t, x))
    return matching + settings.residual_weight * residual, jnp.stack([matching, residual])


def _batch(draw, times, key, settings):
    """A batch's clean samples, times and noise: pairs of opposite noise, B/2 apart."""
    of_data, of_time, of_noise = jax.random.split(key, 3)
    half = settings.batch_size // 2
    x0 = draw(of_data, half)
    share = _stratified(of_time, half)
    t = jnp.exp(jnp.interp(share, times.cumulative, times.log_times)).astype(x0.dtype)
    noise = jax.random.normal(of_noise, x0.shape, x0.dtype)
    return jnp.concatenate([x0, x0]), jnp.concatenate([t, t]), jnp.concatenate([noise, -noise])


def _collocation(process, x0, key, settings):
    """The times and points of the residual, and the weight of each."""
    of_time, of_place, of_data = jax.random.split(key, 3)
    count, width = settings.collocation, settings.half_width
    t, weight = _mixed_times(_stratified(of_time, count), settings.t_min, process.t_max)
    t, weight = t.astype(x0.dtype), weight.astype(x0.dtype)
    shape = (count, *x0.shape[1:])
    if settings.where == "box":
        return t, jax.random.uniform(of_place, shape, x0.dtype, -width, width), weight
    x0 = x0[jax.random.randint(of_data, (count,), 0, len(x0))]
    keys = jax.random.split(of_place, count)
    return t, jax.vmap(lambda key, t, x: process.noised(t, x, key=key))(keys, t, x0), weight


def _mixed_times(share, t_min, t_max):
    """Times of which every other is uniform, the rest uniform in log t, and the uniform law's
    density over that of the mixture."""
    span, octaves = t_max - t_min, jnp.log(t_max / t_min)
    even = jnp.arange(len(share)) % 2 == 0
    t = jnp.where(even, t_min + share * span, t_min * jnp.exp(share * octaves))
    return t, 2 / (1 + span / (t * octaves))


def _stratified(key, count):
    """Numbers uniform in [0, 1), one in each of `count` equal parts."""
    return (jnp.arange(count) + jax.random.uniform(key, (count,))) / count


def _from_points(points, key, count):
    return points[jax.random.randint(key, (count,), 0, len(points))]


def _basis(x):
    """Probes with which Hutchinson's estimator is the trace itself: the d unit vectors, times
    sqrt(d). The loop of `Exact` would cost a training step three times as much."""
    return x.size**0.5 * jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)


def _is_potential(model, t, x):
    return jax.eval_shape(model, t, x).shape == ()


def _start(model, settings):
    ours = jax.tree.map(jnp.copy, model)  # each step uses up the state it is given
    return RegularizedState(ours, _optimiser(settings).init(ours), jnp.zeros((), jnp.int32))


def _optimiser(settings: RegularizedSettings) -> optax.GradientTransformation:
    peak, steps = settings.learning_rate, settings.steps
    rate: Any = optax.warmup_cosine_decay_schedule(0.0, peak, int(WARMUP * steps), steps)
    return soap(rate)


def _check_data(data: Any, settings: RegularizedSettings) -> Draw:
    """The data as a function (key, count), known to lie within the box if they are points."""
    if callable(data):
        return as_pytree(data)
    points = _checks.samples("data", data)
    reach = float(jnp.max(jnp.abs(points)))
    if settings.residual_weight and settings.where == "box" and reach > settings.half_width:
        raise ValueError(
            f"half_width must be at least the largest coordinate of the data, {reach:.4g}, got "
            f"{settings.half_width}: widen the box, so that the residual is small where samples go"
        )
    return Partial(_from_points, points)


def _check_model(model: Any, draw: Draw, settings: RegularizedSettings) -> None:
    drawn = jax.eval_shape(lambda key: draw(key, settings.batch_size // 2), jax.random.key(0))
    if drawn.ndim < 2 or len(drawn) != settings.batch_size // 2:
        raise ValueError(f"data(key, count) must return draws [count, *shape], got {drawn.shape}")
    t, x = (jax.ShapeDtypeStruct(shape, drawn.dtype) for shape in ((), drawn.shape[1:]))
    if not _is_potential(model, t, x):
        _checks.score_shape(model, t, x, "model")

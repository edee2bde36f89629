"""Training by denoising, with draws that two trainings share.

The loss of a denoiser D (canonical frame, `s = sigma_data`):

    L = E_{x0 ~ w, tau, n} lambda(tau) |D(x0 + tau n, tau) - x0|^2 / d
    lambda(tau) = (tau^2 + s^2) / (tau s)^2,    log tau ~ N(p_mean, p_std^2)

with n of the model's own noise, for Student-t that of PFGM++ and t-EDM.

The network that is kept averages the parameters over the steps: `ema <- ema + (1 - b)(p - ema)`,
`b = 2^(-1/h)`, with a half-life h that grows with the steps taken, up to `ema_halflife`.

Whatever is random at a step comes from `fold_in(key, step)`. Two trainings with one key share
noise levels and noise, and, when one draws its data with weights w and the other with w', as many
images as any two such draws can: draw i ~ w; keep it with probability `min(1, w'_i / w_i)`;
otherwise draw again from `(w' - w)_+`. The result is distributed as w', and differs from i with
probability `|w' - w|_1 / 2`, the least possible (a maximal coupling). So what separates the two
networks is the change of the data, not the luck of the draw.

References: Karras et al. 2022, arXiv 2206.00364, Table 1 and Appendix F.2; Xu et al. 2023, arXiv
2302.04265; Lindvall 1992, Lectures
on the Coupling Method, section I.5.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from scoresens.datasets.images import Dataset
from scoresens.laws.noises import Gaussian, Noise
from scoresens.laws.processes import Scalar
from scoresens.models import Denoiser, ModelSettings, build, save
from scoresens.training.loop import looped

Arrays = Array | np.ndarray

EMA_RAMP = 0.05  # the half-life is at most this share of the steps taken
REMEDY = """lower the learning rate, lengthen the warm-up, and look for values in the images that \
are not finite"""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Args:
        steps: optimiser steps.
        batch_size: images a step.
        learning_rate: Adam's, after the warm-up.
        warmup: steps over which the learning rate rises linearly from 0.
        decay: whether the learning rate then falls to 0 along a cosine; otherwise it stays.
        ema_halflife: steps after which an average forgets half of what it held.
        p_mean: mean of log tau.
        p_std: standard deviation of log tau.

    Raises:
        ValueError: if a number is out of range.
    """

    steps: int = 12_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup: int = 500
    decay: bool = True
    ema_halflife: float = 500.0
    p_mean: float = -0.2
    p_std: float = 1.2

    def __post_init__(self):
        for name in ("steps", "batch_size", "learning_rate", "ema_halflife", "p_std"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"warmup must be from 0 to below steps, got {self.warmup} of {self.steps}"
            )


class Coupling(NamedTuple):
    """Two ways to draw from N images, tied together; see `couple`."""

    base: Float[Array, "N"]  # cumulative w
    keep: Float[Array, "N"]  # min(1, w' / w)
    rest: Float[Array, "N"]  # cumulative (w' - w)_+


class TrainState(NamedTuple):
    """What one step hands to the next."""

    model: nnx.Module
    ema: nnx.Module
    opt_state: optax.OptState
    step: Int[Array, ""]


class Batch(NamedTuple):
    """What is drawn for one step."""

    drawn: Int[Array, "B"]  # numbers of its images
    tau: Float[Array, "B"]
    noise: Float[Array, "B *shape"]


class TrainResult(NamedTuple):
    """A trained model: the averaged network, the loss over each 50 steps, and the averaged network
    as it was after the steps asked for."""

    model: Denoiser
    losses: Float[np.ndarray, "intervals"]
    earlier: dict[int, Denoiser]


def train(
    model: Denoiser,
    images: Float[Arrays, "N *shape"],
    *,
    key: jax.Array,
    settings: TrainSettings,
    weights: Float[Arrays, "N"] | None = None,
    base_weights: Float[Arrays, "N"] | None = None,
    keep: Sequence[int] = (),
    progress: bool = True,
) -> TrainResult:
    """A denoiser trained on weighted images, from the model given.

    To fine-tune, start from a trained model. To see what a change of the weights does, train twice
    with one key, one start and one `base_weights`: once with `weights`, once without.

    Args:
        model: where to start; it is left as it is.
        images: `[N, *shape]`.
        key: random key; every draw of step k comes from `fold_in(key, k)`.
        settings: how to train.
        weights: `[N]`, how often each image is drawn, in proportion; zero leaves it out. By
            default, `base_weights`.
        base_weights: `[N]`, the weights of the training to share draws with; by default equal.
        keep: numbers of steps after which to keep the averaged model.
        progress: whether to show a progress bar.

    Returns:
        The averaged model, the mean loss over each 50 steps, and the models kept.

    Raises:
        ValueError: if images have not the model's shape, or weights are negative or all zero.
        FloatingPointError: if the loss stops being finite.

    Notes:
        One forward and one backward evaluation of the network a batch. One compiled step is called
        again and again: a compiled loop is slower for convolutions on CPU.
    """
    images = _check_images(model, images)
    draws = couple(len(images), weights, base_weights)
    earlier = {}

    def after(step, state):
        if step in keep:
            earlier[step] = jax.tree.map(jnp.copy, state.ema)  # the next step uses up the state

    state, losses = looped(
        lambda state: train_step(state, images, draws, key, settings),
        begun(model, settings), settings.steps, remedy=REMEDY, progress=progress, after=after,
    )  # fmt: skip
    return TrainResult(state.ema, losses, earlier)


def train_to_file(
    path: str | Path,
    data: Dataset,
    model: ModelSettings,
    settings: TrainSettings,
    *,
    seed: int,
    progress: bool = True,
) -> TrainResult:
    """A new denoiser trained on a data set, having saved it to a file.

    The file's metadata are the data's name, count, classes and columns, the settings, the seed, the
    seconds taken and the last losses.

    Args:
        path: the checkpoint to write, see `scoresens.models.load`.
        data: the images; `sigma_data` is the standard deviation of their entries.
        model: the network's architecture.
        settings: how to train.
        seed: of the initial parameters and the draws.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if the network cannot take these images.
        FloatingPointError: if the loss stops being finite.
    """
    start, draws = jax.random.split(jax.random.key(seed))
    began = time.monotonic()
    fresh = build(model, data.images.shape[1:], float(data.images.std()), key=start)
    result = train(fresh, data.images, key=draws, settings=settings, progress=progress)
    metadata = {
        "data": data.name,
        "count": len(data.images),
        "class_names": data.class_names,
        **({"form": data.form._asdict()} if data.form.columns else {}),
        "train": asdict(settings),
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "loss": round(float(result.losses[-20:].mean()), 5),
    }
    save(path, result.model, metadata)
    return result


def denoising_loss(
    model: Denoiser,
    x0: Float[Array, "B *shape"],
    tau: Float[Array, "B"],
    noise: Float[Array, "B *shape"],
) -> Float[Array, ""]:
    """The weighted denoising loss of a batch, the mean over samples and entries of

        (tau^2 + s^2) / (tau s)^2 (D(x0 + tau n, tau) - x0)^2,    s = sigma_data.

    An untrained model has expected loss 1 on data of mean square s^2.

    Args:
        model: a denoiser with its `sigma_data`.
        x0: clean samples `[B, *shape]`.
        tau: noise levels `[B]`, positive.
        noise: draws of the model's noise, `[B, *shape]`.

    References:
        Karras et al. 2022, arXiv 2206.00364, equation 8 and Table 1.
    """
    levels = tau.reshape(-1, *[1] * (x0.ndim - 1))
    denoised = jax.vmap(model)(tau, x0 + levels * noise)
    return jnp.mean(loss_weight(levels, model.sigma_data) * (denoised - x0) ** 2)


def loss_weight(tau: Float[Arrays, "*shape"], sigma_data: Scalar) -> Float[Arrays, "*shape"]:
    """lambda(tau), the weight of a squared error in the denoising loss."""
    return (tau**2 + sigma_data**2) / (tau * sigma_data) ** 2


def couple(
    count: int,
    weights: Float[Arrays, "N"] | None = None,
    base_weights: Float[Arrays, "N"] | None = None,
) -> Coupling:
    """The maximal coupling of draws by `base_weights` and draws by `weights`.

    Args:
        count: the number N of images.
        weights: `[N]`, w' up to a factor; by default `base_weights`.
        base_weights: `[N]`, w up to a factor; by default equal.

    Raises:
        ValueError: if weights are of another length, negative, not finite, or all zero.
    """
    base = _normalised("base_weights", np.ones(count) if base_weights is None else base_weights)
    new = base if weights is None else _normalised("weights", weights)
    for name, given in (("base_weights", base), ("weights", new)):
        if given.shape != (count,):
            raise ValueError(f"expected {name} of shape ({count},), got {given.shape}")
    keep = np.minimum(1, np.divide(new, base, out=np.ones(count), where=base > 0))
    rest = np.maximum(new - base, 0)
    return Coupling(*map(jnp.asarray, (_cumulative(base), keep, _cumulative(rest))))


def draw(coupling: Coupling, count: int, *, key: jax.Array) -> Int[Array, "B"]:
    """`count` indices distributed as w', sharing with any other coupling of the same w
    and key as many as can be.

    Args:
        coupling: from `couple`.
        count: how many.
        key: random key.
    """
    first, stay, second = jax.random.uniform(key, (3, count), coupling.base.dtype)
    index = jnp.searchsorted(coupling.base, first, side="right")
    other = jnp.searchsorted(coupling.rest, second, side="right")
    return jnp.where(stay < coupling.keep[index], index, other)


def learning_rates(settings: TrainSettings) -> optax.Schedule:
    """Adam's learning rate, as a function of the number of steps taken."""
    peak, warmup = settings.learning_rate, settings.warmup
    if settings.decay:
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, settings.steps)
    if warmup:
        return optax.linear_schedule(0.0, peak, warmup)
    return optax.constant_schedule(peak)


@functools.partial(jax.jit, static_argnames="settings", donate_argnames="state")
def train_step(
    state: TrainState,
    images: Float[Array, "N *shape"],
    draws: Coupling,
    key: jax.Array,
    settings: TrainSettings,
) -> tuple[TrainState, Float[Array, ""]]:
    """The state after one step, and the batch's loss. The state given is used up."""
    own = jax.random.fold_in(key, state.step)
    drawn, tau, noise = draw_batch(images, draws, own, settings, cast(Denoiser, state.model).noise)
    loss, gradient = jax.value_and_grad(denoising_loss)(state.model, images[drawn], tau, noise)
    return advanced(state, gradient, settings), loss


def begun(model: nnx.Module, settings: TrainSettings) -> TrainState:
    """The state before the first step, of arrays of its own."""
    ours = jax.tree.map(jnp.copy, model)  # each step uses up the state it is given
    ema = jax.tree.map(jnp.copy, model)
    return TrainState(ours, ema, _optimiser(settings).init(ours), jnp.zeros((), jnp.int32))


def draw_batch(
    images: Float[Array, "N *shape"],
    draws: Coupling,
    key: jax.Array,
    settings: TrainSettings,
    noise: Noise = Gaussian(),
) -> Batch:
    """The batch of a step, whose key is `fold_in(key, step)`."""
    keys = jax.random.split(key, 3)
    drawn = draw(draws, settings.batch_size, key=keys[0])
    normal = jax.random.normal(keys[1], (settings.batch_size,), images.dtype)
    shape = (settings.batch_size, *images.shape[1:])
    tau = jnp.exp(settings.p_mean + settings.p_std * normal)
    return Batch(drawn, tau, _noise(noise, keys[2], shape, images.dtype))


def _noise(
    noise: Noise, key: jax.Array, shape: tuple[int, ...], dtype: np.dtype
) -> Float[Array, "B *shape"]:
    """A draw for each image; of Gaussian noise one for the batch."""
    if noise.is_gaussian:
        return noise.draw(key, shape, dtype)
    keys = jax.random.split(key, shape[0])
    return jax.vmap(lambda key: noise.draw(key, shape[1:], dtype))(keys)


def advanced(state: TrainState, gradient: optax.Updates, settings: TrainSettings) -> TrainState:
    """The state after the optimiser's step along a gradient of the loss."""
    updates, opt_state = _optimiser(settings).update(gradient, state.opt_state)
    model = jax.tree.map(jnp.add, state.model, updates)
    step = state.step + 1
    ema = jax.tree.map(functools.partial(_toward, _pull(step, settings)), state.ema, model)
    return TrainState(model, ema, opt_state, step)


def _pull(step: Int[Array, ""], settings: TrainSettings) -> Float[Array, ""]:
    """The share 1 - b of the newest parameters in the average."""
    return 1 - 2 ** (-1 / jnp.minimum(settings.ema_halflife, EMA_RAMP * step))


def _toward(share: Float[Array, ""], old: Array, new: Array) -> Array:
    return old + share.astype(new.dtype) * (new - old)


def _optimiser(settings: TrainSettings) -> optax.GradientTransformation:
    return optax.adam(learning_rates(settings))


def _normalised(name: str, given: Float[Arrays, "N"]) -> np.ndarray:
    weights = np.asarray(given, np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(f"{name} must be finite, not negative, and not all zero")
    return weights / weights.sum()


def _cumulative(weights: np.ndarray) -> np.ndarray:
    """Cumulative weights that end at exactly 1, or are 0 throughout."""
    sums = np.cumsum(weights)
    return sums / sums[-1] if sums[-1] > 0 else sums


def _check_images(model: Denoiser, images: Float[Arrays, "N *shape"]) -> Array:
    shape = model.network.shape
    if images.shape[1:] != shape or not len(images):
        expected = ", ".join(map(str, ("N", *shape)))
        raise ValueError(f"expected images of shape [{expected}], got {images.shape}")
    return jnp.asarray(images)

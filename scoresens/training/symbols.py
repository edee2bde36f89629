"""Training of denoisers of symbols, with draws that two trainings share.

The loss is the cross-entropy of the clean symbols, at times stratified over a batch:

    L = E_{y ~ w, t, x ~ k_t(.|y)}  -1/d sum_i log p(y_i | x, t)

Draws, averages and steps are those of `denoising`: whatever is random at a step comes from
`fold_in(key, step)`, and two trainings with one key and weights w and w' share as many sequences as
they can, and their noise.

References: Austin et al. 2021 (D3PM), arXiv 2107.03006, equation 5; Sahoo et al. 2024 (MDLM),
arXiv 2406.07524.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from scoresens.discrete import Denoiser, Process, from_denoiser
from scoresens.training.denoising import (
    Coupling,
    TrainSettings,
    TrainState,
    advanced,
    begun,
    couple,
    draw,
)
from scoresens.training.loop import looped

REMEDY = "lower the learning rate, or lengthen the warm-up"


def train_symbols(
    network: nnx.Module,
    process: Process,
    sequences: Int[Array | np.ndarray, "N d"],
    *,
    key: jax.Array,
    settings: TrainSettings,
    weights: Float[Array | np.ndarray, " N"] | None = None,
    base_weights: Float[Array | np.ndarray, " N"] | None = None,
    progress: bool = True,
) -> tuple[nnx.Module, np.ndarray]:
    """A network of symbols trained on weighted sequences, from the network given.

    Args:
        network: `network(t, x) -> logits [d, A]`, such as `models.SymbolMLP`; it is left as it is.
        process: the noise.
        sequences: `[N, d]`, the data.
        key: every draw of step k comes from `fold_in(key, k)`.
        settings: how to train; the laws of noise levels are not read.
        weights: `[N]`, how often each sequence is drawn, in proportion; by default `base_weights`.
        base_weights: `[N]`, the weights of the training to share draws with; by default equal.
        progress: whether to show a progress bar.

    Returns:
        The averaged network, and the mean loss over each 50 steps, nats a symbol.

    Raises:
        ValueError: sequences that are none, or weights that are negative or all zero.
        FloatingPointError: if the loss stops being finite.
    """
    data = process.checked("sequences", sequences)
    draws = couple(len(data), weights, base_weights)
    state, losses = looped(
        lambda state: _step(state, process, data, draws, key, settings),
        begun(network, settings), settings.steps, remedy=REMEDY, progress=progress,
    )  # fmt: skip
    return state.ema, losses


def cross_entropy(
    denoiser: Denoiser,
    clean: Int[Array, "B d"],
    t: Float[Array, " B"],
    x: Int[Array, "B d"],
) -> Float[Array, ""]:
    """The mean of `-log p(y_i | x, t)` over a batch of noised sequences and their positions."""
    log_p = jax.vmap(denoiser)(t, x)
    return -jnp.mean(jnp.take_along_axis(log_p, clean[..., None], -1))


@functools.partial(jax.jit, static_argnames="settings", donate_argnames="state")
def _step(
    state: TrainState,
    process: Process,
    data: Int[Array, "N d"],
    draws: Coupling,
    key: jax.Array,
    settings: TrainSettings,
) -> tuple[TrainState, Float[Array, ""]]:
    """The state after one step, and the batch's loss. The state given is used up."""
    count = settings.batch_size
    drawn, times, noise = jax.random.split(jax.random.fold_in(key, state.step), 3)
    clean = data[draw(draws, count, key=drawn)]
    t = process.t_max * (jnp.arange(count) + jax.random.uniform(times, (count,))) / count
    x = jax.vmap(lambda t, x, key: process.noised(t, x, key=key))(
        t, clean, jax.random.split(noise, count)
    )

    def loss(network):
        return cross_entropy(from_denoiser(process, network), clean, t, x)

    value, gradient = jax.value_and_grad(loss)(state.model)
    return advanced(state, gradient, settings), value

r"""What training from scratch on other weights of the data does: many models, asked the same.

A trial is a seed and the weights of the N images. Trials of one seed share the initial parameters,
the noise and noise levels of every step, and as many of the images drawn as their weights allow
(`training.couple`), so that what separates two of them is their data.

Every model is asked the same `Questions`: its samples from fixed noise, by Heun's rule, and its
denoising loss at fixed images, levels tau_j and noise n_ij,

    L_i = mean over j of lambda(tau_j) |D(x_i + tau_j n_ij, tau_j) - x_i|^2 / d

with the weight lambda of training. Its `Answers` land on disk as soon as they are there, a file a
trial. A run that was stopped goes on where it was, and several processes may share a folder: each
takes what is left in an order of its own.
"""

import functools
import os
import random
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from scipy.special import ndtri

from scoresens._files import replacing
from scoresens.flow import sample_ode
from scoresens.flow.solve import Solve
from scoresens.laws.processes import EDM
from scoresens.laws.scores import from_denoiser
from scoresens.models import Denoiser, ModelSettings, build
from scoresens.training.denoising import TrainSettings, denoising_loss, train

PROCESS = EDM()


class Questions(NamedTuple):
    """What every model is asked."""

    noise: Float[Array, "M *shape"]  # to sample from, at tau = 80
    images: Float[Array, "Q *shape"]  # where to take the denoising loss (there may be none),
    levels: Float[Array, " L"]  # at these noise levels,
    key: PRNGKeyArray  # with noise ij from fold_in(fold_in(key, i), j), as `loss_sensitivity`


class Answers(NamedTuple):
    """What one model says."""

    samples: Float[Array | np.ndarray, "M *shape"]
    losses: Float[Array | np.ndarray, " Q"]


class Trial(NamedTuple):
    """A model to train: the seed of its parameters and draws, and how often to draw each image."""

    seed: int
    weights: Float[np.ndarray, " L"] | None = None  # None: those of base_weights
    images: Float[np.ndarray, "L *shape"] | None = None  # None: those of the study
    base_weights: Float[np.ndarray, " L"] | None = None  # of the trial to share draws with; equal


def training_levels(settings: TrainSettings, count: int) -> Float[np.ndarray, " L"]:
    """The middles of `count` equally likely shares of the noise levels that training draws."""
    return np.exp(settings.p_mean + settings.p_std * ndtri((np.arange(count) + 0.5) / count))


@functools.partial(jax.jit, static_argnames="solve")
def ask(model: Denoiser, questions: Questions, solve: Solve = Solve()) -> Answers:
    """The samples and the losses of a model.

    Notes:
        2 `solve.steps` evaluations of the network a sample, and L an image.
    """
    samples = sample_ode(PROCESS, from_denoiser(PROCESS, model), questions.noise, solve=solve).x

    def loss(row):
        i, x = row
        copies = jnp.broadcast_to(x, (len(questions.levels), *x.shape))
        return denoising_loss(model, copies, questions.levels, loss_noise(questions, i))

    rows = jnp.arange(len(questions.images)), questions.images
    return Answers(samples, jax.lax.map(loss, rows))


def loss_noise(questions: Questions, i: Int[Array, ""] | int) -> Float[Array, "L *shape"]:
    """The noise that the loss at image i is taken with, at every level."""
    own = jax.random.fold_in(questions.key, i)
    _, *shape = questions.images.shape

    def at_level(j):
        return jax.random.normal(jax.random.fold_in(own, j), shape, questions.images.dtype)

    return jax.vmap(at_level)(jnp.arange(len(questions.levels)))


def train_trial(
    trial: Trial,
    images: Float[np.ndarray, "N *shape"],
    model: ModelSettings,
    settings: TrainSettings,
) -> Denoiser:
    """The model of a trial, trained from scratch; `images` are the study's, whose spread all trials
    take for sigma_data."""
    start, draws = jax.random.split(jax.random.key(trial.seed))
    fresh = build(model, images.shape[1:], float(images.std()), key=start)
    return train(
        fresh,
        images if trial.images is None else trial.images,
        key=draws,
        settings=settings,
        weights=trial.weights,
        base_weights=trial.base_weights,
        progress=False,
    ).model


def whole(seeds: int) -> dict[str, Trial]:
    """The trials of all images alike, `all-SEED`: what the others of a study are compared with."""
    return {f"all-{seed}": Trial(seed) for seed in range(seeds)}


def answers(
    folder: Path,
    names: Iterable[str],
    make: Callable[[str], Answers],
    shown: Callable[[list[str]], Iterator[str]] = iter,
) -> dict[str, Answers]:
    """The answers of all trials, those that the folder lacks found now and kept there.

    Args:
        folder: of the files, NAME.npz; it must hold no answers to other questions.
        names: of the trials.
        make: trains the trial of a name and asks, such as `train_trial` and `ask`.
        shown: what shows progress over the names of the trials that are left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: read_answers(folder / f"{name}.npz") for name in names}
    left = [name for name, answer in found.items() if answer is None]
    random.Random(os.getpid()).shuffle(left)
    for name in shown(left):
        file = folder / f"{name}.npz"
        found[name] = read_answers(file)  # another process may have been here
        if found[name] is None:
            found[name] = made = jax.device_get(make(name))
            with replacing(file) as beside, beside.open("wb") as stream:
                np.savez(stream, **made._asdict())
    return {name: answer for name, answer in found.items() if answer is not None}


def read_answers(file: Path) -> Answers | None:
    """The answers in a file; None where there is none, or a damaged one."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            return Answers(*(kept[name] for name in Answers._fields))
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile):
        return None

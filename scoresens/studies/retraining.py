r"""What training from scratch on other weights of the data does: the outputs of many models.

A trial is a seed and the weights of the N images. Trials of one seed share the initial parameters,
the noise and noise levels of every step, and as many of the images drawn as their weights allow
(`training.couple`), so that what separates two of them is their data.

Every model is evaluated at the same `Queries`: its samples from fixed noise, by Heun's rule, and
its denoising loss at fixed images, levels tau_j and noise n_ij,

    L_i = mean over j of lambda(tau_j) |D(x_i + tau_j n_ij, tau_j) - x_i|^2 / d

with the weight lambda of training. Its `Outputs` are kept as soon as they are there (`store`).
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from scipy.special import ndtri

from scoresens.flow import sample_ode
from scoresens.flow.solve import Solve
from scoresens.laws.noises import Gaussian, Noise
from scoresens.models import Denoiser, ModelSettings, build, load, save
from scoresens.studies.store import Form, Store, arrays
from scoresens.training.denoising import TrainSettings, denoising_loss, train


class Queries(NamedTuple):
    """Where every model is evaluated."""

    noise: Float[Array, "M *shape"]  # to sample from, at tau = 80
    images: Float[Array, "Q *shape"]  # where to take the denoising loss (there may be none),
    levels: Float[Array, " L"]  # at these noise levels,
    key: PRNGKeyArray  # with noise ij from fold_in(fold_in(key, i), j), as `loss_sensitivity`


class Outputs(NamedTuple):
    """What one model makes of the queries."""

    samples: Float[Array | np.ndarray, "M *shape"]
    losses: Float[Array | np.ndarray, " Q"]


class Trial(NamedTuple):
    """A model to train: the seed of its parameters and draws, and how often to draw each image."""

    seed: int
    weights: Float[np.ndarray, " L"] | None = None  # None: those of base_weights
    images: Float[np.ndarray, "L *shape"] | None = None  # None: those of the study
    base_weights: Float[np.ndarray, " L"] | None = None  # of the trial to share draws with; equal


OUTPUTS = arrays(*Outputs._fields)
MODEL: Form[tuple[Denoiser, dict]] = Form(
    ".safetensors", load, lambda file, kept: save(file, *kept)
)


class Retraining(NamedTuple):
    """The trainings of one study: what its trials share, and the folder that keeps their results.

    Args:
        folder: of the study (`store.of_study`).
        images: trained on, where a trial has none of its own.
        model: the architecture.
        settings: of the training.
        solve: the numerics of the sampler.
        shown: what shows progress over the names of the trials that are left.
    """

    folder: Path
    images: Float[np.ndarray, "N *shape"]
    model: ModelSettings
    settings: TrainSettings
    solve: Solve = Solve()
    shown: Callable[[list[str]], Iterator[str]] = iter

    def train(self, trial: Trial) -> Denoiser:
        """The model of a trial."""
        return train_trial(trial, self.images, self.model, self.settings)

    def models(self, trials: Mapping[str, Trial]) -> dict[str, Denoiser]:
        """The models of trials by name, kept as NAME.safetensors."""
        kept = Store(self.folder, MODEL).results(
            trials, lambda name: (self.train(trials[name]), {"seed": trials[name].seed}), self.shown
        )
        return {name: model for name, (model, _) in kept.items()}

    def outputs(
        self, trials: Mapping[str, Trial], models: Mapping[str, Denoiser], queries: Queries
    ) -> dict[str, Outputs]:
        """The outputs of every trial's model, kept as models/NAME.npz; `models` are not trained
        again."""

        def make(name):
            model = models.get(name) or self.train(trials[name])
            return jax.device_get(evaluate(model, queries, self.solve))._asdict()

        kept = Store(self.folder / "models", OUTPUTS).results(trials, make, self.shown)
        return {name: Outputs(**found) for name, found in kept.items()}

    def generated(
        self, model: Denoiser, noise: Float[Array, "M *shape"], **beside: np.ndarray
    ) -> Float[np.ndarray, "M *shape"]:
        """Samples of a model, clipped to the range of the data, kept as questions.npz: no machine
        draws the same to the last digit, and all models of a study are to have one query. `beside`:
        what else the file is to hold."""

        def make():
            x = sample_ode(model.process, model.score, noise, solve=self.solve).x
            x = np.clip(np.asarray(x), self.images.min(), self.images.max())
            return {"generated": x, "noise": np.asarray(noise), **beside}

        return Store(self.folder, arrays("generated")).result("questions", make)["generated"]


def training_levels(settings: TrainSettings, count: int) -> Float[np.ndarray, " L"]:
    """The middles of `count` equally likely shares of the noise levels that training draws."""
    return np.exp(settings.p_mean + settings.p_std * ndtri((np.arange(count) + 0.5) / count))


@functools.partial(jax.jit, static_argnames="solve")
def evaluate(model: Denoiser, queries: Queries, solve: Solve = Solve()) -> Outputs:
    """The samples and the losses of a model.

    Notes:
        2 `solve.steps` evaluations of the network a sample, and L an image.
    """
    samples = sample_ode(model.process, model.score, queries.noise, solve=solve).x
    if not len(queries.images):
        return Outputs(samples, jnp.zeros(0, samples.dtype))
    rows = jnp.arange(len(queries.images))
    return Outputs(samples, jax.lax.map(lambda i: loss_at(model, queries, i), rows))


def loss_at(model: Denoiser, queries: Queries, i: Int[Array, ""] | int) -> Float[Array, ""]:
    """The denoising loss of a model at query image i."""
    x = queries.images[i]
    copies = jnp.broadcast_to(x, (len(queries.levels), *x.shape))
    noise = noise_of_losses(queries, i, model.noise)
    return denoising_loss(model, copies, queries.levels, noise)


def noise_of_losses(
    queries: Queries, i: Int[Array, ""] | int, noise: Noise = Gaussian()
) -> Float[Array, "L *shape"]:
    """The noise that the loss at image i is taken with, at every level."""
    key, (_, *shape) = jax.random.fold_in(queries.key, i), queries.images.shape

    def at_level(j):
        return noise.draw(jax.random.fold_in(key, j), tuple(shape), queries.images.dtype)

    return jax.vmap(at_level)(jnp.arange(len(queries.levels)))


def start_of(
    seed: int, images: Float[np.ndarray, "N *shape"], model: ModelSettings
) -> tuple[Denoiser, PRNGKeyArray]:
    """The untrained model of a trial's seed, and the key of the draws of its training."""
    start, draws = jax.random.split(jax.random.key(seed))
    return build(model, images.shape[1:], float(images.std()), key=start), draws


def train_trial(
    trial: Trial,
    images: Float[np.ndarray, "N *shape"],
    model: ModelSettings,
    settings: TrainSettings,
) -> Denoiser:
    """The model of a trial, trained from scratch; `images` are the study's, whose spread all trials
    take for sigma_data."""
    fresh, draws = start_of(trial.seed, images, model)
    return train(
        fresh,
        images if trial.images is None else trial.images,
        key=draws,
        settings=settings,
        weights=trial.weights,
        base_weights=trial.base_weights,
        progress=False,
    ).model


def baselines(seeds: int) -> dict[str, Trial]:
    """The trials of all images alike, `all-SEED`: what the others of a study are compared with."""
    return {f"all-{seed}": Trial(seed) for seed in range(seeds)}

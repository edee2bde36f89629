r"""What every rival starts from: a study's model, its images, and the losses to be explained.

The loss at a query i and the loss at a training point k are one function of the parameters,

    L(x) = sum_j w_j |D(x + tau_j n_j, tau_j) - x|^2,    w_j = lambda(tau_j) / (d K),

over K noise levels tau_j with the weight lambda of training. A query has the levels and the noise
n_ij that the study's models were evaluated with (`scoresens.studies.retraining.evaluate`); a
training point has the same levels, and noise kj from fold_in(fold_in(key(seed + 2), k), j).
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scoresens.datasets.images import DataSettings, prepare
from scoresens.models import Denoiser, load
from scoresens.studies.retraining import training_levels
from scoresens.training.denoising import TrainSettings, loss_weight

LEVELS = 32  # K, where the study does not say


class Table(NamedTuple):
    """Points, and where their losses are taken."""

    x: Float[np.ndarray, "B *shape"]
    levels: Float[np.ndarray, "B K"]
    weights: Float[np.ndarray, "B K"]
    noise: Float[np.ndarray, "B K *shape"]


class Case(NamedTuple):
    """A model of all images of a study, and what is asked of it."""

    model: Denoiser
    training: Table
    queries: Table
    noise: Float[np.ndarray, "M *shape"]  # to sample from, in the process's frame
    seed: int  # queries have the noise of key(seed + 1)


def read(folder: Path, number: int, queries: int | None = None) -> Case:
    """The case of a study's model `all-NUMBER`, of its first queries only where a count is given.

    The settings are those in `study.json`, or the defaults: digits, 32 levels, seed 0.
    """
    about = _about(folder)
    images = prepare(_data(about)).images
    with np.load(folder / "questions.npz", allow_pickle=False) as asked:
        points = np.concatenate([asked["generated"], images[asked["held"]]])[:queries]
        training, noise = images[asked["kept"]], asked["noise"]
    model, _ = load(folder / f"all-{number}.safetensors")
    settings, halves = TrainSettings(**about.get("train", {})), about.get("halves", {})
    seed, count = halves.get("seed", 0), halves.get("levels", LEVELS)
    at = functools.partial(table, settings=settings, sigma_data=model.sigma_data)
    return Case(
        model,
        at(training, count=count, key=jax.random.key(seed + 2)),
        at(points, count=count, key=jax.random.key(seed + 1)),
        noise,
        seed,
    )


def _about(folder: Path) -> dict[str, Any]:
    file = folder / "study.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _data(about: Mapping[str, Any]) -> DataSettings:
    given = about.get("data", {"name": "digits"})
    return DataSettings(**{**given, "classes": tuple(given.get("classes", ()))})


def table(
    x: np.ndarray, *, count: int, key: jax.Array, settings: TrainSettings, sigma_data: float
) -> Table:
    levels = training_levels(settings, count).astype(np.float32)
    weights = loss_weight(levels, sigma_data) / (x[0].size * count)
    rows = (len(x), count)
    return Table(
        np.asarray(x, np.float32),
        np.broadcast_to(levels, rows),
        np.broadcast_to(weights, rows),
        np.asarray(_noise(key, *rows, x.shape[1:])),
    )


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _noise(key: jax.Array, points: int, count: int, shape: tuple[int, ...]) -> jax.Array:
    """`[B, K, *shape]`, noise ij of the key folded with i and then j."""

    def one(i, j):
        own = jax.random.fold_in(jax.random.fold_in(key, i), j)
        return jax.random.normal(own, shape, jnp.float32)

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(jnp.arange(points), jnp.arange(count))

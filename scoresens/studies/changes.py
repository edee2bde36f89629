"""Changes of a data set that people name: more of a class, less of it, one image, another half, an
edit, another model's samples.

A named change is two things that must agree: what to train on, and the perturbation to predict
with. At its mass the perturbed law is the law of the images trained on,

    rho + mass chi = sum_i w'_i delta_{x'_i}

(for another model, whose samples stand for it, up to their sampling error).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scoresens.datasets.images import BACKGROUND, Dataset
from scoresens.flow import sample_ode
from scoresens.laws.learned import Learned
from scoresens.laws.measures import Points
from scoresens.laws.perturbations import Perturbation, add, move, remove, reweight
from scoresens.laws.processes import EDM
from scoresens.laws.scores import from_denoiser
from scoresens.models import load


@dataclass(frozen=True)
class ChangeSettings:
    """A change of the data.

    Args:
        kind: `add` gives the classes, or the images, `mass` of the data's weight; `remove` takes
            the classes or images away; `half` keeps a random half; `shift` moves the classes' or
            images' pixels to the right, by one pixel at mass 1; `model` gives another model, that
            of a checkpoint, `mass` of the data's weight.
        classes: names of classes.
        images: indices of images; used where no class is named.
        random: this many images, drawn with `seed`; used where neither is named.
        mass: share of the new data, for `add` and `model`; the part of the change that is made
            (1 is the whole) for the others.
        seed: of the random images, the half, or the other model's samples.
        checkpoint: of the other model.
    """

    kind: Literal["add", "remove", "half", "shift", "model"] = "add"
    classes: tuple[str, ...] = ()
    images: tuple[int, ...] = ()
    random: int = 0
    mass: float = 1.0
    seed: int = 0
    checkpoint: Path | None = None

    def __post_init__(self):
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass must lie in (0, 1], got {self.mass}")
        if self.kind in ("half", "model"):
            if self.kind == "model" and self.checkpoint is None:
                raise ValueError("kind = 'model' needs the checkpoint of the other model")
        elif sum(map(bool, (self.classes, self.images, self.random))) != 1 or self.random < 0:
            raise ValueError(
                f"kind = {self.kind!r} needs either classes, or images, or a number of random ones"
            )

    @property
    def title(self) -> str:
        """The change in words, for tables and figures."""
        return self.words("image")

    def words(self, noun: str) -> str:
        """The change in words, of what the data are called one by one."""
        what = "class " + ", ".join(self.classes) if self.classes else f"{noun} {self.images}"
        if self.random:
            what = f"{self.random} random {noun}s"
        if self.kind == "half":
            return "a random half of the data"
        if self.kind == "model":
            return f"add the model {self.checkpoint and self.checkpoint.name} at mass {self.mass:g}"
        if self.kind == "shift":
            return f"shift {what} by {self.mass:g} pixel"
        share = f" at mass {self.mass:g}" if self.kind == "add" else ""
        return f"{self.kind} {what}{share}"


class Change(NamedTuple):
    """A named change of one data set."""

    perturbation: Perturbation  # one direction, K = 1
    weights: Float[np.ndarray, " L"]  # of the images trained on, at the full mass
    touched: np.ndarray  # [N] mask of the images that are added, taken or moved
    images: Float[np.ndarray, "L *shape"] | None = None  # trained on, where not the data's own
    base_weights: Float[np.ndarray, " L"] | None = None  # of the control; None: equal

    @property
    def moved(self) -> float:
        """How much of the data's mass changes place: the total variation of the weights, or the
        weight of the images that are edited."""
        count = len(self.weights)
        base = np.full(count, 1 / count) if self.base_weights is None else self.base_weights
        edited = 0 if self.images is None or self.base_weights is not None else self.touched.mean()
        return max(0.5 * float(np.abs(self.weights - base).sum()), float(edited))


def make_change(dataset: Dataset, data: Points, settings: ChangeSettings) -> Change:
    """The perturbation and the training set of a named change.

    Args:
        dataset: images and labels.
        data: the same images as a measure with equal weights.
        settings: what changes.

    Raises:
        ValueError: a class or an image that the data do not have, another model of other images.
    """
    return _MAKERS[settings.kind](dataset, data, settings)


def _half(dataset, data, settings):
    count = len(dataset.images)
    chosen = np.random.default_rng(settings.seed).permutation(count) < count // 2
    weights = chosen / chosen.sum()
    perturbation = reweight(data, jnp.asarray(weights, data.points.dtype))
    return Change(perturbation, _mixed(weights, settings.mass), ~chosen)


def _remove(dataset, data, settings):
    touched = _touched(dataset, settings)
    weights = _mixed(~touched / (~touched).sum(), settings.mass)
    return Change(remove(data, touched), weights, touched)


def _add(dataset, data, settings):
    touched = _touched(dataset, settings)
    weights = _mixed(touched / touched.sum(), settings.mass)
    return Change(add(Points(data.points[touched])), weights, touched)


def _shift(dataset, data, settings):
    if dataset.form.kind != "images":
        raise ValueError(
            f"kind = 'shift' moves pixels, and {dataset.name} has {dataset.form.nouns}"
        )
    touched = _touched(dataset, settings)
    shifted = np.roll(dataset.images[touched], 1, axis=2)
    shifted[:, :, 0] = BACKGROUND
    direction = shifted - dataset.images[touched]
    images = dataset.images.copy()
    images[touched] += settings.mass * direction
    weights = np.full(len(images), 1 / len(images))
    return Change(move(data, touched, direction), weights, touched, images)


def _model(dataset, data, settings):
    """Toward another model, for which N samples of its own stand in the training."""
    other, _ = load(settings.checkpoint)
    if other.network.shape != data.shape:
        raise ValueError(
            f"{settings.checkpoint} draws images of shape {other.network.shape}, the data's are "
            f"{data.shape}"
        )
    process, count = EDM(), len(data)
    score = from_denoiser(process, other)
    noise = process.sample_prior((count, *data.shape), key=jax.random.key(settings.seed))
    drawn = np.asarray(sample_ode(process, score, noise.astype(data.points.dtype)).x)
    law = Learned(process, score, data.shape, prior=Points(drawn))
    old, new = np.repeat([1.0, 0.0], count) / count, np.repeat([0.0, 1.0], count) / count
    weights = (1 - settings.mass) * old + settings.mass * new
    images = np.concatenate([dataset.images, drawn])
    return Change(add(law), weights, np.zeros(count, bool), images, old)


_MAKERS = {"add": _add, "remove": _remove, "half": _half, "shift": _shift, "model": _model}


def _mixed(weights, mass):
    """Equal weights, with `mass` of them given to others."""
    return (1 - mass) / len(weights) + mass * weights


def _touched(dataset: Dataset, settings: ChangeSettings) -> np.ndarray:
    """The mask of the images that a change names."""
    touched = np.zeros(len(dataset.images), bool)
    if settings.random > len(touched):
        nouns = dataset.form.nouns
        raise ValueError(f"{settings.random} random {nouns} are more than the {len(touched)} there")
    order = np.random.default_rng(settings.seed).permutation(len(touched))
    touched[order[: settings.random]] = True
    for index in settings.images:
        if not 0 <= index < len(touched):
            raise ValueError(
                f"{dataset.form.noun} {index} lies outside the data's {len(touched)} "
                f"{dataset.form.nouns}"
            )
        touched[index] = True
    for name in settings.classes:
        if name not in dataset.class_names:
            known = ", ".join(dataset.class_names)
            raise ValueError(f"class {name!r} is not in {dataset.name}: its classes are {known}")
        members = dataset.labels == dataset.class_names.index(name)
        if not members.any():
            raise ValueError(
                f"class {name!r} has no {dataset.form.noun} among the {len(members)} of "
                f"{dataset.name}"
            )
        touched |= members
    return touched

"""Changes of a data set that people name: more of a class, less of it, one image, another half.

A named change is two things that must agree: the weights to train with, and the perturbation to
predict with. At its mass the perturbed law is the reweighted data,

    rho + mass chi = sum_i w'_i delta_{x_i}
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scoresens.datasets import Dataset
from scoresens.measures import Points
from scoresens.perturbations import Perturbation, add, remove, reweight


@dataclass(frozen=True)
class ChangeSettings:
    """A change of the data.

    Args:
        kind: `add` gives the classes, or the images, `mass` of the data's weight; `remove` takes
            the classes or images away; `half` keeps a random half.
        classes: names of classes.
        images: indices of images; used where no class is named.
        mass: share of the new data, for `add`; the part of the change that is made (1 is the whole)
            for the others.
        seed: of the half.
    """

    kind: Literal["add", "remove", "half"] = "add"
    classes: tuple[str, ...] = ()
    images: tuple[int, ...] = ()
    mass: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass must lie in (0, 1], got {self.mass}")
        if self.kind != "half" and bool(self.classes) == bool(self.images):
            raise ValueError(f"kind = {self.kind!r} needs either classes or images")

    @property
    def title(self) -> str:
        """The change in words, for tables and figures."""
        what = "class " + ", ".join(self.classes) if self.classes else f"image {self.images}"
        if self.kind == "half":
            return "a random half of the data"
        share = f" at mass {self.mass:g}" if self.kind == "add" else ""
        return f"{self.kind} {what}{share}"


class Change(NamedTuple):
    """A named change of one data set."""

    perturbation: Perturbation  # one direction, K = 1
    weights: Float[np.ndarray, " N"]  # of the data at the full mass
    touched: np.ndarray  # [N] mask of the images that are added or taken


def make_change(dataset: Dataset, data: Points, settings: ChangeSettings) -> Change:
    """The perturbation and the training weights of a named change.

    Args:
        dataset: images and labels.
        data: the same images as a measure with equal weights.
        settings: what changes.

    Raises:
        ValueError: a class or an image that the data do not have.
    """
    count = len(dataset.images)
    if settings.kind == "half":
        chosen = np.random.default_rng(settings.seed).permutation(count) < count // 2
        weights = chosen / chosen.sum()
        perturbation = reweight(data, jnp.asarray(weights, data.points.dtype))
        mixed = (1 - settings.mass) / count + settings.mass * weights
        return Change(perturbation, mixed, ~chosen)
    touched = _touched(dataset, settings)
    if settings.kind == "remove":
        rest = ~touched / (~touched).sum()
        weights = (1 - settings.mass) / count + settings.mass * rest
        return Change(remove(data, touched), weights, touched)
    weights = (1 - settings.mass) / count + settings.mass * touched / touched.sum()
    return Change(add(Points(data.points[touched])), weights, touched)


def _touched(dataset: Dataset, settings: ChangeSettings) -> np.ndarray:
    """The mask of the images that a change names."""
    touched = np.zeros(len(dataset.images), bool)
    for index in settings.images:
        if not 0 <= index < len(touched):
            raise ValueError(f"image {index} lies outside the data's {len(touched)} images")
        touched[index] = True
    for name in settings.classes:
        if name not in dataset.class_names:
            known = ", ".join(dataset.class_names)
            raise ValueError(f"class {name!r} is not in {dataset.name}: its classes are {known}")
        members = dataset.labels == dataset.class_names.index(name)
        if not members.any():
            raise ValueError(
                f"class {name!r} has no image among the {len(members)} of {dataset.name}"
            )
        touched |= members
    return touched

"""Numbers of a sample that people name: how much it is itself, its class, its distance to an image.

A functional of `scoresens.attribute`, with the words that tables and pictures need for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from scoresens.datasets.images import Dataset
from scoresens.datasets.streams import mean
from scoresens.flow.solve import Solve
from scoresens.laws.measures import Points
from scoresens.laws.processes import Process
from scoresens.laws.scores import Score
from scoresens.sensitivity.functionals import components, log_density, pixel
from scoresens.statistics.components import principal_components

OWN = -1  # the class that each sample is of
RAISING = "raising", "lowering"  # of a number that is neither good nor bad


@dataclass(frozen=True)
class FunctionalSettings:
    """Which number of each sample is attributed to the training images.

    Args:
        kind: `itself`, how far the sample stands from the mean of the data, in its own direction;
            `class`, the log-odds that it is of its class; `closeness`, minus its distance to a
            training image; `pixel`, one grey value, or one number of a row, of a window or of a
            point, in its column's own units; `components`, the first principal components of the
            data; `log_density`, how likely the model finds it.
        class_name: for `class`: of this class; left out, of the class each sample looks like most.
        image: for `closeness`: the index of the training image.
        pixel: for `pixel`: row, column (and channel); of a table, the column; of a series, the
            step and the column.
        components: for `components`: how many.
    """

    kind: Literal["itself", "class", "closeness", "pixel", "components", "log_density"] = "itself"
    class_name: str | None = None
    image: int | None = None
    pixel: tuple[int, ...] = ()
    components: int = 3

    def __post_init__(self):
        if self.kind == "closeness" and self.image is None:
            raise ValueError("kind = 'closeness' needs image, the index of a training image")
        if self.kind == "pixel" and not self.pixel:
            raise ValueError("kind = 'pixel' needs pixel, its row and column")
        if self.components < 1:
            raise ValueError(f"components must be at least 1, got {self.components}")


class Question(NamedTuple):
    """A functional, and what it is called."""

    functional: Callable
    name: str  # in a title
    says: str  # in a caption
    parts: tuple[str, ...] = ()  # of a vector functional, a name each
    kinds: tuple[str, str] = ("helpful", "harmful")  # what images that raise, lower it are called

    def title(self, dataset: Dataset, samples: int) -> str:
        """The question about so many samples, in one line."""
        return (
            f"{dataset.name}: which of {len(dataset.images)} training {dataset.form.nouns} decide "
            f"{self.name} ({samples} samples)"
        )


def make_question(
    settings: FunctionalSettings,
    dataset: Dataset,
    data: Points,
    process: Process,
    score: Score,
    solve: Solve,
) -> Question:
    """The functional that settings name.

    Raises:
        ValueError: a class, an image or a pixel that the data do not have.
    """
    if settings.kind == "log_density":
        functional = log_density(process, score, prior=data, solve=solve)
        says = "Measured: the model's log-density of the sample, in nats."
        return Question(functional, "how likely the model finds a sample", says)
    return _MAKERS[settings.kind](settings, dataset)


# ------------------------------------------------------------------ one kind each


def _make_itself(settings, dataset):
    says = (
        "Measured: how much the sample is itself, its distance from the mean of the data in its "
        f"own direction, in {dataset.form.unit}."
    )
    functional = Partial(_itself, jnp.asarray(mean(dataset.images)))
    return Question(functional, "how much a sample is itself", says)


def _make_class(settings, dataset):
    present = np.unique(dataset.labels)
    names = [dataset.class_names[label] for label in present]
    if len(names) < 2:
        raise ValueError(f"kind = 'class' needs data of two classes at least, got {names}")
    if settings.class_name not in (None, *names):
        raise ValueError(
            f"class {settings.class_name!r} has no {dataset.form.noun} in {dataset.name}: choose "
            f"among {', '.join(names)}"
        )
    own = OWN if settings.class_name is None else names.index(settings.class_name)
    means = np.stack([dataset.images[dataset.labels == label].mean(0) for label in present])
    within = dataset.images - means[np.searchsorted(present, dataset.labels)]
    functional = Partial(
        _log_odds, jnp.asarray(means), jnp.asarray(np.mean(within**2)), jnp.asarray(own)
    )
    which = "its own class" if settings.class_name is None else f"class {settings.class_name}"
    says = (
        f"Measured: the log-odds, in nats, that the sample is of {which} and of no other, by its "
        "distances to the means of the classes."
    )
    return Question(functional, f"how surely a sample is of {which}", says)


def _make_closeness(settings, dataset):
    image, form = settings.image, dataset.form
    if not 0 <= image < len(dataset.images):
        raise ValueError(
            f"{form.noun} {image} lies outside the data's {len(dataset.images)} {form.nouns}"
        )
    says = f"Measured: minus the distance to training {form.noun} {image}, in {form.unit}."
    functional = Partial(_closeness, jnp.asarray(dataset.images[image : image + 1][0]))
    return Question(functional, f"how close a sample is to {form.noun} {image}", says)


def _make_pixel(settings, dataset):
    shape = dataset.images.shape[1:]
    place = settings.pixel + (0,) * (len(shape) - len(settings.pixel))
    inside = len(place) == len(shape) and all(0 <= i < n for i, n in zip(place, shape, strict=True))
    if not inside:
        nouns = dataset.form.nouns
        raise ValueError(f"pixel {list(settings.pixel)} lies outside {nouns} of shape {shape}")
    if dataset.form.columns:
        return _make_entry(place, dataset.form)
    name = f"pixel ({', '.join(map(str, settings.pixel))})"
    says = f"Measured: the grey value of {name}."
    return Question(pixel(*place), f"{name} of a sample", says, kinds=RAISING)


def _make_entry(place, form):
    """A number of a row, of a window or of a point, in its column's own units."""
    column = place[-1]
    name = f"{form.columns[column]}{f' at step {place[0]}' if len(place) > 1 else ''}"
    functional = Partial(_restored, pixel(*place), form.mean[column], form.std[column])
    says = f"Measured: {name}, in its own units."
    return Question(functional, f"{name} of a sample", says, kinds=RAISING)


def _make_components(settings, dataset):
    images, count = dataset.images, settings.components
    basis = principal_components(images, count)
    if count > len(basis):
        raise ValueError(f"the data have {len(basis)} components, not {count}")
    directions = jnp.asarray(basis.reshape(-1, *images.shape[1:]), images.dtype)
    functional = components(directions, images.mean(0))
    names = tuple(f"component {i + 1}" for i in range(count))
    says = "Measured: the sample along each principal component of the data, from their mean."
    name = f"{count} principal components of a sample"
    return Question(functional, name, says, names, RAISING)


_MAKERS = {
    "itself": _make_itself,
    "class": _make_class,
    "closeness": _make_closeness,
    "pixel": _make_pixel,
    "components": _make_components,
}


# ------------------------------------------------------------------ functionals of one sample


def _itself(mean, x):
    """`<u, x - mean>` along the sample's own direction u, which is held."""
    own = jax.lax.stop_gradient(x - mean)
    return jnp.vdot(own / jnp.linalg.norm(own.reshape(-1)), x - mean)


def _restored(entry, mean, std, x):
    return mean + std * entry(x)


def _closeness(image, x):
    return -jnp.linalg.norm((x - image).reshape(-1))


def _log_odds(means, variance, own, x):
    """Of class `own` against all others, each a Gaussian of one variance about its mean."""
    logits = -jnp.sum(jnp.square(x - means).reshape(len(means), -1), 1) / (2 * variance)
    own = jnp.where(own == OWN, jnp.argmax(logits), own)
    others = jnp.where(jnp.arange(len(means)) == own, -jnp.inf, logits)
    return logits[own] - jax.nn.logsumexp(others)

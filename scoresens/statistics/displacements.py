"""Batches of samples beside a data set, in numbers: how far they move, which way, what is near."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from scoresens.datasets.forms import IMAGES, Form

Batch = Float[np.ndarray, "M *shape"]
Images = Float[np.ndarray, "N *shape"]


class Named(NamedTuple):
    """Images, or other samples, and the names of their classes, as pictures need them."""

    images: Images
    labels: Int[np.ndarray, "N"]
    class_names: tuple[str, ...]
    form: Form = IMAGES

    @property
    def labelled(self) -> bool:
        """Whether classes are worth a word: of columns without a label they are not."""
        return len(self.class_names) > 1 or not self.form.columns


def norms(changes: Batch) -> Float[np.ndarray, "M"]:
    """The Euclidean norm of each change."""
    return np.linalg.norm(_flat(changes), axis=1)


def cosines(a: Batch, b: Batch) -> Float[np.ndarray, "M"]:
    """The cosine between each pair of changes; 0 where one of them is 0."""
    sizes = norms(a) * norms(b)
    inner = np.sum(_flat(a) * _flat(b), 1)
    return np.divide(inner, sizes, out=np.zeros(len(sizes)), where=sizes > 0)


def rank_correlation(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """Spearman's correlation along an axis; 0 where one of the two does not vary."""
    a, b = (rankdata(side, axis=axis) for side in (a, b))
    a, b = (side - side.mean(axis, keepdims=True) for side in (a, b))
    sizes = np.sqrt((a * a).sum(axis) * (b * b).sum(axis))
    return (a * b).sum(axis) / np.where(sizes > 0, sizes, 1)


def nearest(x: Batch, images: Images, count: int) -> np.ndarray:
    """Indices `[M, count]` of the images nearest to each sample, nearest first; fewer if there are
    fewer images."""
    flat, among = _flat(x), _flat(images)
    squares = np.sum(among**2, 1) - 2 * flat @ among.T  # but for |x|^2, which ranks nothing
    return np.argsort(squares, axis=1, kind="stable")[:, :count]


def spread(sizes: Float[np.ndarray, "M"], count: int) -> np.ndarray:
    """Indices of the samples to show, from the one that moves most to the one that moves least.

    Their ranks grow geometrically (1, 2, 4, ... 128): few samples move far, and most hardly at all.
    """
    order = np.argsort(-sizes, kind="stable")
    ranks = np.unique(np.geomspace(1, len(sizes), min(count, len(sizes))).round().astype(int)) - 1
    others = np.setdiff1d(np.arange(len(sizes)), ranks)[: min(count, len(sizes)) - len(ranks)]
    return order[np.sort(np.concatenate([ranks, others]))]


def looks_like(x: Batch, data: Named) -> Int[np.ndarray, "M"]:
    """The class of the training image nearest to each sample."""
    return data.labels[nearest(x, data.images, 1)[:, 0]]


def class_names(x: Batch, data: Named) -> list[str]:
    """The name of the class that each sample looks like."""
    return [data.class_names[label] for label in looks_like(x, data)]


def ordinal(n: int) -> str:
    """2nd, 3rd, 4th."""
    return {2: "2nd", 3: "3rd"}.get(n, f"{n}th")


def _flat(x: Batch) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(len(x), -1)

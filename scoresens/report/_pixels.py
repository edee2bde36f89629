"""One picture in its colours: grey, dark where values are high, or red and blue about 0."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm, Normalize

from scoresens.report._plots import FRAME

GREY, SIGNED = "gray_r", "RdBu_r"
CELL = 0.92  # inches


def show(axes: Axes, image: np.ndarray, norm: Normalize, colours: str) -> None:
    """Fill the axes with one picture, without ticks."""
    picture = _picture(image)
    if picture.ndim == 3 and colours == GREY:
        picture = np.clip(norm(picture), 0, 1)
    elif picture.ndim == 3:
        picture = picture.mean(-1)  # a change of colour is shown by its mean over channels
    axes.imshow(picture, cmap=colours, norm=norm, interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.6)


def _picture(sample: np.ndarray) -> np.ndarray:
    """A sample as rows and columns, and channels where it has three."""
    if sample.ndim == 3 and sample.shape[-1] == 1:
        return sample[..., 0]
    if sample.ndim == 2 or (sample.ndim == 3 and sample.shape[-1] == 3):
        return sample
    return sample.reshape(len(sample) if sample.ndim > 1 else 1, -1)


def cell_of(shape: tuple[int, ...]) -> tuple[float, float]:
    """Height and width of a picture: the longer side is CELL, the shorter at least a quarter."""
    rows, columns = _picture(np.zeros(shape)).shape[:2]
    longest = max(rows, columns)
    return tuple(CELL * max(side / longest, 0.25) for side in (rows, columns))


def value_norm(values: np.ndarray) -> Normalize:
    """From the least to the greatest value, but for one in 200 at either end; from -1 to 1 where
    that is about the same."""
    low, high = np.percentile(values, (0.5, 99.5))
    if max(abs(low + 1), abs(high - 1)) < 0.3:
        low, high = -1.0, 1.0
    return Normalize(float(low), float(high) if high > low else float(low) + 1)


def change_norm(changes: Sequence[np.ndarray]) -> AsinhNorm:
    """Symmetric about 0, linear up to a sixteenth of the limit and logarithmic beyond, so that
    small changes can be seen beside large ones; one entry in 100 may lie beyond."""
    entries = [np.abs(change).ravel() for change in changes] or [np.ones(1)]
    limit = float(np.percentile(np.concatenate(entries), 99)) or 1.0
    return AsinhNorm(limit / 16, -limit, limit)

"""What the samples of a data set are, in which units, and with which labels.

Columns are standardised, `x = (value - mean) / std`, with the mean and the standard deviation of
all rows of the data set, so that one noise level means the same to all; `Form` keeps both, and
gives results back in the columns' own units.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int

Kind = Literal["images", "table", "series", "points"]

NOUNS = {"images": "image", "table": "row", "series": "window", "points": "point"}


class Form(NamedTuple):
    """What one sample is.

    Args:
        kind: `images` (`[*shape]`, grey values), `table` (a row `[C]`), `series` (a window
            `[length, C]`), `points` (of a plane, `[2]`).
        columns: the names of the C columns, the last axis; none of images.
        mean: of each column, in its own units.
        std: the same.
    """

    kind: Kind = "images"
    columns: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def noun(self) -> str:
        """What one sample is called."""
        return NOUNS[self.kind]

    @property
    def nouns(self) -> str:
        """What several are called."""
        return f"{self.noun}s"

    @property
    def unit(self) -> str:
        """In what samples, distances and noise levels are measured."""
        return "standard deviations" if self.columns else "grey values"

    def restored(self, x: Float[Any, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Samples in the columns' own units, in float64: `mean + std x`; images as they are."""
        return self.restored_change(x) + np.asarray(self.mean) if self.columns else np.asarray(x)

    def restored_change(self, change: Float[Any, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Differences of samples in the columns' own units: `std change`."""
        if not self.columns:
            return np.asarray(change)
        return np.asarray(change, np.float64) * np.asarray(self.std)


IMAGES = Form()


class Dataset(NamedTuple):
    """Samples with labels.

    Args:
        name: what the data are called.
        images: the samples, `[N, *shape]`, float32; grey images are `[N, H, W, 1]` in [-1, 1],
            rows `[N, C]` and windows `[N, length, C]` are standardised.
        labels: `[N]`, indices into class_names.
        class_names: one name a class.
        form: what one sample is, and in which units.
    """

    name: str
    images: Float[np.ndarray, "N *shape"]
    labels: Int[np.ndarray, "N"]
    class_names: tuple[str, ...]
    form: Form = IMAGES


def standardised(
    values: Float[np.ndarray, "*rows C"], kind: Kind, columns: tuple[str, ...]
) -> tuple[Float[np.ndarray, "*rows C"], Form]:
    """Values of columns, float64, as float32 of mean 0 and standard deviation 1, and their form."""
    rows = values.reshape(-1, values.shape[-1])
    mean, std = rows.mean(0), rows.std(0)
    form = Form(kind, columns, tuple(mean.tolist()), tuple(std.tolist()))
    return ((values - mean) / std).astype(np.float32), form


def form_of(about: Mapping[str, Any]) -> Form:
    """The form that a checkpoint's metadata record, that of images if there is none.

    Raises:
        ValueError: for a form that is none.
    """
    found = about.get("form")
    if found is None:
        return IMAGES
    try:
        form = Form(found["kind"], *(tuple(found[name]) for name in Form._fields[1:]))
        numbers = np.array([form.mean, form.std], np.float64)
        fits = numbers.shape == (2, len(form.columns)) and bool(form.columns)
        known = form.kind in get_args(Kind)[1:] and all(isinstance(c, str) for c in form.columns)
        if fits and known and np.isfinite(numbers).all() and (numbers[1] > 0).all():
            return form
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(
        "the checkpoint records columns that are damaged (kind, columns, mean, std): train it again"
    )

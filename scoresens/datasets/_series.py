"""Series: columns of numbers over time, cut into windows that are samples `[length, C]`.

The sunspots come with the package; others are .csv, .parquet and .npy files. Windows of a stride
below their length overlap, and are then not independent of each other.
"""

from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Float

from scoresens._reading import read_arrays
from scoresens.datasets._columns import read_columns
from scoresens.datasets.forms import Dataset, standardised

BUNDLED = {"sunspots": 22}  # the length of their windows: two cycles of the Sun


def bundled_series(name: str, window: int | None, stride: int) -> Dataset:
    """A series that comes with the package."""
    with resources.as_file(resources.files("scoresens.datasets") / f"{name}.csv") as path:
        return read_series(path, BUNDLED[name] if window is None else window, stride)


def read_series(path: Path, window: int, stride: int = 1) -> Dataset:
    """The windows of the series in a file, each column standardised over the whole of it.

    Args:
        path: a .csv or .parquet file whose columns are numbers, or a .npy file `[T]` or `[T, C]`.
        window: how many rows a window has, at least 2.
        stride: how many rows one begins after another.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `read_columns`, and a ValueError for fewer
            than two windows.
    """
    columns, values = (
        _array(path) if path.suffix.lower() == ".npy" else read_columns(path).numbers()
    )
    if window < 2 or stride < 1:
        raise ValueError(f"window must be at least 2 and stride at least 1, got {window}, {stride}")
    starts = np.arange(0, len(values) - window + 1, stride)
    if len(starts) < 2:
        raise ValueError(
            f"{path}: {len(values)} rows have {len(starts)} windows of {window} by a stride of "
            f"{stride}, and 2 are needed: choose a shorter window, or a smaller stride"
        )
    rows, form = standardised(values, "series", columns)
    windows = rows[starts[:, None] + np.arange(window)]
    return Dataset(path.stem, windows, np.zeros(len(windows), np.int64), ("all",), form)


def _array(path: Path) -> tuple[tuple[str, ...], Float[np.ndarray, "T C"]]:
    """The columns of a .npy file, named by their numbers."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: correct the path")
    found = read_arrays(path, "series").get("series")
    if found is None or found.ndim not in (1, 2) or not found.size or found.dtype.kind not in "fiu":
        what = "an archive" if found is None else f"{found.dtype} of shape {found.shape}"
        raise ValueError(f"{path}: expected a series [T] or [T, C] of numbers, got {what}")
    values = np.asarray(found, np.float64).reshape(len(found), -1)
    if not (np.abs(values) <= np.finfo(np.float32).max).all():
        row, column = np.argwhere(~(np.abs(values) <= np.finfo(np.float32).max))[0]
        raise ValueError(
            f"{path}: row {row + 1}, column {column} is missing, infinite, or beyond what float32 "
            "can hold: mend it, or leave the row out"
        )
    still = np.flatnonzero(~(values.std(0) > 0))
    if len(still):
        raise ValueError(f"{path}: column {still[0]} does not vary: leave it out")
    return tuple(map(str, range(values.shape[1]))), values

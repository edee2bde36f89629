"""Arrays of Zarr, of format 2 or 3: read by rows, and distrusted."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from scoresens._extras import needed
from scoresens._reading import GIB, check_unpacked, refuse_pickles

NAMES = ("images", "labels")  # of arrays in a group


class ZarrRows:
    """An array that slices of rows are read from.

    Args:
        path: of the store, for errors.
        array: of Zarr.

    Raises:
        ValueError: where its metadata are damaged, or a chunk that is read; for chunks that are
            pickles; for an array that claims far more than its store holds.
    """

    def __init__(self, path: Path, array: Any):
        refuse_pickles(path, array)
        self.path, self.array = path, array
        with _blamed(path):
            self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)
        size = self.dtype.itemsize * math.prod(self.shape)
        if size > GIB:
            check_unpacked(path, size, sum(file.stat().st_size for file in path.rglob("*")))

    def __getitem__(self, rows: slice) -> np.ndarray:
        with _blamed(self.path):
            return np.asarray(self.array[rows])


def is_zarr(path: Path) -> bool:
    """Whether a folder is an array or a group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def open_zarr(path: Path) -> dict[str, ZarrRows]:
    """An array as `images`, or those of a group that are named `images` and `labels`.

    Raises:
        ValueError: if it is damaged, or has no images.
        ImportError: without the extra `sweeps`.
    """
    zarr = needed("zarr", "reading Zarr arrays", "sweeps")
    with _blamed(path):
        whole = zarr.open(path, mode="r")
        if not isinstance(whole, zarr.Group):
            whole = {NAMES[0]: whole}
        found = {name: whole[name] for name in NAMES if name in whole}
        arrays = {name: array for name, array in found.items() if not isinstance(array, zarr.Group)}
        members = sorted(whole)
    if NAMES[0] not in arrays:
        raise ValueError(f"{path} has no array named images, but {members}")
    return {name: ZarrRows(path, array) for name, array in arrays.items()}


@contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """What goes wrong in here is a damaged store."""
    try:
        yield
    except Exception as error:  # metadata and codecs may fail in any way
        raise ValueError(f"{path} is damaged, or no array of Zarr: {error}") from error

"""Images that stay in their files, and are read by rows when they are asked for.

    FILE.npy       an array [N, *shape], mapped into memory
    FOLDER.zarr    a Zarr array [N, *shape], or a group with one named images
    FOLDER         image files of one size, in the order of their names; its sub-folders are classes

Floats are taken as they are, bytes are scaled from 0..255 to [-1, 1], and [N, H, W] becomes
[N, H, W, 1]. Zarr and image files want the extra `sweeps`. Files and folders whose names begin with
a dot are not looked at: they are of programs that were there.
"""

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt16

from scoresens._reading import map_array
from scoresens.datasets._pictures import SUFFIXES, is_coloured, read
from scoresens.datasets._zarr import is_zarr, open_zarr

BLOCK = 4096


@runtime_checkable
class Rows(Protocol):
    """An array `[N, *shape]` that slices of rows are read from."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N, and that of one row."""
        ...

    @property
    def dtype(self) -> Any:
        """Of the numbers."""

    def __getitem__(self, rows: slice) -> Any:
        """Some of the rows, in memory or to be read into it."""


class Stream:
    """Images `[N, *shape]`, float32, as the model has them; `stream[start:stop]` reads.

    Args:
        rows: a memory map, an array of Zarr, or `ImageFiles`; floats or bytes.

    Raises:
        ValueError: if it holds anything else, or nothing.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, rows: Rows):
        kind = np.dtype(rows.dtype)
        real = kind.kind == "f" or kind == np.uint8
        if len(rows.shape) < 2 or 0 in rows.shape or not real:
            raise ValueError(
                f"expected images [N, *shape], floats or bytes, got {kind} of shape {rows.shape}"
            )
        self.rows, self.bytes = rows, kind == np.uint8
        self.shape = (*rows.shape, 1) if len(rows.shape) == 3 else tuple(rows.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Float[np.ndarray, "B *shape"]:
        found = np.asarray(self.rows[rows])
        found = scaled(found) if self.bytes else found.astype(np.float32, copy=False)
        return found.reshape(-1, *self.shape[1:])


class ImageFiles:
    """The image files of a folder and of its sub-folders, as numbers in [-1, 1] `[N, H, W, C]`.

    The first file says how large they are. All are grey (C = 1), or else all are taken as coloured
    (C = 3). What was done to some of them, such as a turn, is said in a warning.

    Raises:
        ValueError: if there is none, or one that cannot be read or is of another size.

    Notes:
        Opens every file once at the start, to see whether it is coloured.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, folder: Path):
        self.files = sorted(file for file in visible(folder) if file.suffix.lower() in SUFFIXES)
        if not self.files:
            raise ValueError(f"{folder} has no image files: {', '.join(SUFFIXES)}")
        self.folder = folder
        coloured = sum(map(is_coloured, self.files))
        if 0 < coloured < len(self.files):
            self._note(f"{coloured} of {len(self.files)} are coloured: the grey ones become so too")
        size = read(self.files[0]).pixels.shape[:2]
        self.shape = (len(self.files), *size, 3 if coloured else 1)

    def __getitem__(self, rows: slice) -> Float[np.ndarray, "B H W C"]:
        files, remarks = self.files[rows], set()
        images = np.empty((len(files), *self.shape[1:]), self.dtype)
        with ThreadPoolExecutor() as pool:
            for row, (file, found) in enumerate(zip(files, pool.map(read, files), strict=True)):
                height, width = found.pixels.shape[:2]
                if (height, width) != self.shape[1:3]:
                    raise ValueError(
                        f"{file} is {width} x {height} pixels, where {self.files[0]} is "
                        f"{self.shape[2]} x {self.shape[1]}: make all of one size"
                    )
                images[row] = scaled(found.pixels)
                remarks.update(found.remarks)
        for remark in sorted(remarks):
            self._note(f"some {remark}")
        return images

    def classes(self) -> tuple[Int[np.ndarray, " N"], tuple[str, ...]]:
        """The class of each image, and the names: of the sub-folders, or `all`."""
        folders = [file.relative_to(self.folder).parts[0] for file in self.files]
        names = tuple(sorted({name for name in folders if (self.folder / name).is_dir()}))
        if not names or any((self.folder / name).is_file() for name in folders):
            return np.zeros(len(folders), np.int64), ("all",)
        places = {name: place for place, name in enumerate(names)}
        return np.array([places[name] for name in folders]), names

    def _note(self, words: str) -> None:
        warnings.warn(f"of the images in {self.folder}, {words}", stacklevel=3)


def stream(path: Path) -> Stream:
    """The images at a path: a .npy file, a Zarr array, or a folder of image files.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if what is there is none of these.
        ImportError: without the extra `sweeps`, for the last two.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}: correct the path")
    rows: Any
    if is_zarr(path):
        rows = open_zarr(path)["images"]
    else:
        rows = ImageFiles(path) if path.is_dir() else map_array(path)
    try:
        return Stream(rows)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def mean(images: np.ndarray | Stream) -> Float[np.ndarray, "*shape"]:
    """The mean image, read in blocks."""
    total = np.zeros(images.shape[1:])
    for start in range(0, len(images), BLOCK):
        total += images[start : start + BLOCK].sum(0, dtype=np.float64)
    return (total / len(images)).astype(images.dtype)


def mark(path: Path) -> str:
    """What tells files from others without reading them: how many, how large, when written."""
    within = path.rglob("*") if is_zarr(path) else visible(path)
    files = [path] if path.is_file() else [file for file in within if file.is_file()]
    stats = [file.stat() for file in files]
    size, last = sum(each.st_size for each in stats), max(each.st_mtime_ns for each in stats)
    return f"{len(files)} files, {size} bytes, {last}"


def visible(folder: Path) -> Iterator[Path]:
    """The files of a folder and of its sub-folders, without those that begin with a dot."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in files if not name.startswith("."))


def scaled(
    images: UInt8[np.ndarray, "*shape"] | UInt16[np.ndarray, "*shape"],
) -> Float[np.ndarray, "*shape"]:
    """Bytes, or pairs of them, as numbers in [-1, 1]."""
    return images.astype(np.float32) / np.float32(np.iinfo(images.dtype).max / 2) - 1

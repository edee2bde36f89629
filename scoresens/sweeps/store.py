"""The store of a sweep: arrays with named dimensions on disk, filled block by block.

    FOLDER/store.zarr     one Zarr array a field; xarray.open_zarr reads it
    FOLDER/blocks/        NAME.json for each block that is whole, with the checksum of its numbers
    FOLDER/study.json     what the numbers are of; a store of another study is refused

A chunk of an array is written whole or not at all, and belongs to one block; the block's mark is
written last. So a block is whole if it has a mark and the arrays hold what the mark's checksum is
of: what a killed process left is redone, and so is what was damaged later.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from scoresens._files import refuse_another, write_text
from scoresens._pytrees import fingerprint
from scoresens._reading import read_json, refuse_pickles


class Block(NamedTuple):
    """A rectangle of a sweep: one seed, some of its samples, some of the directions."""

    seed: int
    sample: slice
    direction: slice

    @property
    def name(self) -> str:
        """By where it begins."""
        return f"{self.seed}-{self.sample.start}-{self.direction.start}"


class Layout(NamedTuple):
    """How a sweep is cut into blocks; the last of a row or column is smaller."""

    seeds: int
    samples: int
    directions: int
    rows: int  # samples a block
    columns: int  # directions a block

    @property
    def total(self) -> int:
        """Of blocks."""
        across = -(-self.directions // self.columns)
        return self.seeds * -(-self.samples // self.rows) * across

    def blocks(self) -> list[Block]:
        """All blocks, seed by seed and row by row."""
        return [
            Block(seed, rows, columns)
            for seed in range(self.seeds)
            for rows in _cuts(self.samples, self.rows)
            for columns in _cuts(self.directions, self.columns)
        ]


class Field(NamedTuple):
    """One array of a store."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str


class Store:
    """The arrays and marks in a folder.

    Args:
        folder: made if absent.
        fields: the arrays by name; a field without the dimension "direction" is written by the
            first column of blocks.
        layout: how blocks cut them; chunks are blocks.
        coordinates: the numbers along a dimension, by its name.
        study: what the numbers are of; anything JSON can hold.

    Raises:
        ValueError: if the folder holds a store of another study or layout.
        OSError: if it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        fields: Mapping[str, Field],
        layout: Layout,
        coordinates: Mapping[str, np.ndarray],
        study: Mapping[str, Any],
    ):
        self.folder, self.fields, self.layout = folder, dict(fields), layout
        self.marks = folder / "blocks"
        self.marks.mkdir(parents=True, exist_ok=True)
        asked = json.loads(json.dumps({"study": study, "layout": layout._asdict()}, default=str))
        file = folder / "study.json"
        if not file.exists():
            self._create(coordinates)
            # last: without it, the arrays are made again
            write_text(file, json.dumps(asked, indent=2) + "\n")
        kept = _kept(file)
        for part in asked:
            refuse_another(folder, kept[part], asked[part])
        self.arrays = _opened(folder / "store.zarr", self.fields)

    def whole(self, block: Block) -> bool:
        """Whether a block is there, with the numbers that were written."""
        mark = self.marks / f"{block.name}.json"
        try:
            kept = read_json(mark)["sha256"]
            return all(
                kept[name] == fingerprint(self.read(name, block)) for name in self._of(block)
            )
        except Exception:  # not there, torn, or damaged in any way a codec can tell
            return False

    def read(self, name: str, block: Block) -> np.ndarray:
        """A field's numbers in a block."""
        return np.asarray(self.arrays[name][self._place(name, block)])

    def write(self, block: Block, found: Mapping[str, np.ndarray], **about: Any) -> None:
        """Writes a block, and then its mark.

        Args:
            block: which.
            found: its numbers by field, `[samples of the block, ...]`.
            about: what else the mark is to tell.
        """
        names = self._of(block)
        parts = {name: np.asarray(found[name], self.fields[name].dtype) for name in names}
        for name, part in parts.items():
            self.arrays[name][self._place(name, block)] = part
        sums = {name: fingerprint(part) for name, part in parts.items()}
        write_text(self.marks / f"{block.name}.json", json.dumps({"sha256": sums, **about}) + "\n")

    def _of(self, block: Block) -> list[str]:
        """The fields that a block writes."""
        first = block.direction.start == 0
        return [name for name, field in self.fields.items() if first or "direction" in field.dims]

    def _place(self, name: str, block: Block) -> tuple:
        where = {"seed": block.seed, "sample": block.sample, "direction": block.direction}
        return tuple(where.get(dim, slice(None)) for dim in self.fields[name].dims)

    def _create(self, coordinates: Mapping[str, np.ndarray]) -> None:
        group = zarr.open_group(self.folder / "store.zarr", mode="w")
        cut = {"seed": 1, "sample": self.layout.rows, "direction": self.layout.columns}
        for name, (dims, shape, dtype) in self.fields.items():
            chunks = tuple(
                min(size, cut.get(dim, size)) for dim, size in zip(dims, shape, strict=True)
            )
            group.create_array(
                name, shape=shape, chunks=chunks, dtype=dtype, dimension_names=list(dims),
                fill_value=np.nan if np.dtype(dtype).kind == "f" else -1,
            )  # fmt: skip
        for name, values in coordinates.items():
            group.create_array(name, data=values, dimension_names=[name])


def progress(folder: Path) -> dict[str, Any]:
    """How far the sweep in a folder is: blocks done and in all, seconds spent, the study.

    Raises:
        FileNotFoundError: if there is no sweep.
    """
    file = folder / "study.json"
    if not file.is_file():
        raise FileNotFoundError(f"there is no sweep in {folder}: no study.json")
    kept = _kept(file)
    files = [mark for mark in (folder / "blocks").glob("*.json") if mark.name[0] != "."]
    layout = Layout(**kept["layout"])
    return {
        "done": len(files),
        "blocks": layout.total,
        "seconds": math.fsum(map(_seconds, files)),
        "layout": layout,
        "study": kept["study"],
    }


def _kept(file: Path) -> dict[str, dict[str, Any]]:
    """The study and the layout that a folder is kept for."""
    found = read_json(file)
    study, layout = found.get("study"), found.get("layout")
    counts = layout.values() if isinstance(layout, dict) else ()
    if (
        not isinstance(study, dict)
        or not isinstance(layout, dict)
        or layout.keys() != set(Layout._fields)
        or not all(type(count) is int and count > 0 for count in counts)
    ):
        raise ValueError(
            f"{file} is damaged: it tells no study, or no layout of one or more blocks"
        )
    return {"study": study, "layout": layout}


def _seconds(mark: Path) -> float:
    """How long a block took, by its mark."""
    seconds = read_json(mark).get("seconds", 0.0)
    if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValueError(
            f"{mark} is damaged: a block takes no {seconds!r} seconds; remove the mark"
        )
    return float(seconds)


def _opened(path: Path, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The arrays of a store, of the shapes and types that they should have."""
    try:
        group = zarr.open_group(path, mode="r+")
        arrays: dict[str, Any] = {name: group[name] for name in fields}
        found = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    except Exception as error:  # damaged metadata may fail in any way
        raise ValueError(f"{path} is damaged: {error}") from error
    for name, (_, shape, dtype) in fields.items():
        refuse_pickles(path, arrays[name])
        if found[name] != (tuple(shape), str(np.dtype(dtype))):
            raise ValueError(
                f"{path}: {name} should be {dtype} of shape {shape}, got {found[name][1]} of shape "
                f"{found[name][0]}: it is damaged"
            )
    return arrays


def _cuts(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]

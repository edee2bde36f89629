"""The store of a sweep: arrays with named dimensions on disk, filled block by block.

    FOLDER/store.zarr     one Zarr array a field; xarray.open_zarr reads it
    FOLDER/blocks/        NAME.json for each block that is whole, with the checksum of its numbers
    FOLDER/study.json     what the numbers are of; a store of another study is refused

A chunk of an array is written whole or not at all, and belongs to one block; the block's mark is
written last. So a block is whole if it has a mark and the arrays hold what the mark's checksum is
of: what a killed process left is redone, and so is what was damaged later.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from scoresens._files import refuse_another, write_text
from scoresens._pytrees import fingerprint


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
        kept = json.loads(file.read_text(encoding="utf-8"))
        for part in asked:
            refuse_another(folder, kept.get(part, {}), asked[part])
        self.arrays: Any = zarr.open_group(folder / "store.zarr", mode="r+")

    def whole(self, block: Block) -> bool:
        """Whether a block is there, with the numbers that were written."""
        mark = self.marks / f"{block.name}.json"
        try:
            kept = json.loads(mark.read_text(encoding="utf-8"))["sha256"]
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
    kept = json.loads(file.read_text(encoding="utf-8"))
    files = [mark for mark in (folder / "blocks").glob("*.json") if mark.name[0] != "."]
    marks = [json.loads(mark.read_text(encoding="utf-8")) for mark in files]
    layout = Layout(**kept["layout"])
    return {
        "done": len(marks),
        "blocks": len(layout.blocks()),
        "seconds": sum(mark.get("seconds", 0.0) for mark in marks),
        "layout": layout,
        "study": kept["study"],
    }


def _cuts(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]

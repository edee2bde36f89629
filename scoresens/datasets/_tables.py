"""Tables: rows of numbers, and a column that names their classes.

The wines and the tumours come with the package; others are .csv and .parquet files. A table of two
columns of numbers is a set of points in their plane.
"""

import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from scoresens.datasets._columns import Columns, read_columns
from scoresens.datasets.forms import Dataset, standardised

SUFFIXES = (".csv", ".parquet")
BUNDLED = ("wine", "breast-cancer")
LABELS = ("class", "label", "target")  # names of columns that may be the label, the first first
FEW = 20  # whole numbers at most, for a column of these names to be the label


def bundled_table(name: str) -> Dataset:
    """A table that comes with the package."""
    with resources.as_file(resources.files("scoresens.datasets") / f"{name}.csv") as path:
        return read_table(path, "class")


def read_table(path: Path, label: str | None = None) -> Dataset:
    """The table in a file, its columns standardised.

    Args:
        path: a .csv or .parquet file.
        label: the column of classes; "" for none; left out, the first of `class`, `label` and
            `target` that holds text or few whole numbers, which is said in a warning.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `read_columns`, and a ValueError for a label
            that is not there, or that tells no classes apart.
    """
    found = read_columns(path, LABELS if label is None else (label.strip().lower(),))
    name = _chosen(found) if label is None else _asked(found, label)
    columns, values = found.numbers(name)
    kind = "points" if len(columns) == 2 else "table"
    rows, form = standardised(values, kind, columns)
    if name is None:
        return Dataset(path.stem, rows, np.zeros(len(rows), np.int64), ("all",), form)
    labels, classes = _classes(found.texts[name])
    if not 2 <= len(classes) < len(rows):
        raise ValueError(
            f"{path}: column {name!r} has {len(classes)} classes in {len(rows)} rows: choose "
            'another label, or label = "" for none'
        )
    if label is None:
        warnings.warn(
            f"{path.name}: column {name!r} is taken as the label ({len(classes)} classes), and "
            f'{len(columns)} columns as the data; name another by label, or none by label = ""',
            stacklevel=3,
        )
    return Dataset(path.stem, rows, labels, classes, form)


def _asked(found: Columns, label: str) -> str | None:
    """The label of this name, which is matched as it is written, or else in any letters."""
    if not label.strip():
        return None
    if label.strip() in found.texts:
        return label.strip()
    if len(found.texts) == 1:
        return next(iter(found.texts))
    known = ", ".join(found.names)
    raise ValueError(f"{found.path} has no column {label!r}: its columns are {known[:300]}")


def _chosen(found: Columns) -> str | None:
    """The first column with the name of a label, and what is one."""
    by_name = {name.lower(): name for name in found.texts}
    names = [by_name[name] for name in LABELS if name in by_name]
    return next((name for name in names if _tells_classes(found.texts[name])), None)


def _tells_classes(texts: list[str]) -> bool:
    """Whether texts are words, or few whole numbers."""
    whole = _whole(texts)
    if whole is None:
        return any(_as_float(text) is None for text in set(texts))
    return len(whole) <= min(FEW, len(texts) - 1)


def _classes(texts: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Indices into the classes that occur, in the order of the alphabet, or of their numbers."""
    whole = _whole(texts)
    order = sorted(set(texts)) if whole is None else sorted(whole, key=whole.__getitem__)
    places: Mapping[str, int] = {name: place for place, name in enumerate(order)}
    return np.array([places[text] for text in texts], np.int64), tuple(order)


def _whole(texts: list[str]) -> dict[str, float] | None:
    """The number of each text, if all are whole numbers."""
    numbers = {text: _as_float(text) for text in set(texts)}
    if any(number is None or not float(number).is_integer() for number in numbers.values()):
        return None
    return numbers  # type: ignore


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

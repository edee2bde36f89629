"""Tables as files have them: numbers by column, and the text of a column that names classes.

Read strictly: every cell is a finite number that float32 can hold, of a row as long as the header;
or an error names the row (1 is the first below the header) and the column. Nothing is guessed, but
for which column is the label.
"""

import csv
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from scoresens._extras import needed
from scoresens._reading import check_unpacked, refuse_pointer, start_of

MISSING = ("", "na", "n/a", "nan", "null", "?")  # as people write it, in small letters
PARQUET = b"PAR1"
LARGEST = float(np.finfo(np.float32).max)
BATCH = 65_536  # rows
SHOWN = 40  # letters of a cell, in an error


class Columns(NamedTuple):
    """A table, of which some columns are still text.

    Args:
        path: of its file, for errors.
        names: of all columns, in their order.
        values: of those that are numbers, in their order.
        texts: of the others, by their names.
    """

    path: Path
    names: tuple[str, ...]
    values: Float[np.ndarray, "N C"]
    texts: dict[str, list[str]]

    def numbers(self, label: str | None = None) -> tuple[tuple[str, ...], Float[np.ndarray, "N D"]]:
        """The names and the numbers of all columns but the label, each of which varies.

        Raises:
            ValueError: for a text that is no number, a column that does not vary, or none at all.
        """
        names = tuple(name for name in self.names if name != label)
        read, columns = iter(self.values.T), []
        with _named(self.path):
            for name in self.names:
                if name not in self.texts:
                    columns.append(next(read))
                elif name != label:
                    columns.append(_as_numbers(self.texts[name], name))
            return names, _varying(columns, names)


def read_columns(path: Path, as_text: Sequence[str] = ()) -> Columns:
    """The table in a .csv or .parquet file.

    Args:
        path: the file; a .csv file is UTF-8, with commas and a first line of names.
        as_text: names of columns, in small letters, that are not numbers, or need not be; those
            that are there are left as text.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or no table of numbers; says where, and what to do.
        ImportError: for a .parquet file without the extra `tables`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: correct the path")
    refuse_pointer(path)
    read = _parquet if path.suffix.lower() == ".parquet" else _csv
    with _named(path):
        rows = read(path)
        names = _checked_names(next(rows, ()))
        texts = {name: [] for name in names if name.lower() in as_text}
        values = _collected(rows, names, texts)
    return Columns(path, tuple(names), values, texts)


# ------------------------------------------------------------------ rows of each format


def _csv(path: Path) -> Iterator[Sequence[Any]]:
    """The names, then the cells of each row; blank lines are skipped."""
    if start_of(path, len(PARQUET)) == PARQUET:
        raise ValueError("it is a Parquet file: name it .parquet")
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from filter(None, csv.reader(file, strict=True))


def _parquet(path: Path) -> Iterator[Sequence[Any]]:
    """The same of a Parquet file, read in batches."""
    parquet = needed("pyarrow.parquet", "reading Parquet files", "tables")
    with parquet.ParquetFile(str(path)) as file:
        names = file.schema_arrow.names
        check_unpacked(path, 8 * file.metadata.num_rows * max(len(names), 1))
        for name, kind in zip(names, file.schema_arrow.types, strict=True):
            _check_type(name, str(kind))
        yield names
        for batch in file.iter_batches(BATCH, use_threads=False):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _check_type(name: str, kind: str) -> None:
    plain = ("int", "uint", "float", "double", "halffloat", "bool", "string", "large_string",
             "dictionary<values=string", "dictionary<values=large_string")  # fmt: skip
    if not kind.startswith(plain):
        raise ValueError(
            f"column {name!r} is of type {kind}: make it numbers (or text, of a label), or leave "
            "it out"
        )


# ------------------------------------------------------------------ cells


def _checked_names(header: Sequence[Any]) -> list[str]:
    """The names of columns, known to be names, and different."""
    names = [str(name).strip() for name in header]
    if not names:
        raise ValueError("it is empty: a first line of names and rows of numbers belong there")
    if all(_number(name) is not None for name in names):
        raise ValueError(
            "its first line holds numbers, where the names of the columns belong: put them above"
        )
    for place, name in enumerate(names):
        if not name:
            raise ValueError(f"column {place + 1} has no name: give it one, or leave it out")
        if name in names[:place]:
            raise ValueError(f"two columns are named {name!r}: rename one")
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise ValueError(f"it has one column, {names[0]!r}: separate columns by commas")
    return names


def _collected(
    rows: Iterator[Sequence[Any]], names: Sequence[str], texts: dict[str, list[str]]
) -> np.ndarray:
    """The numbers `[N, C]`; texts are filled with the others. Missing cells are counted to the
    end."""
    numbers, missing, first, count = array("d"), dict.fromkeys(names, 0), None, 0
    for count, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise ValueError(
                f"row {count} has {len(row)} cells, where {len(names)} columns are named: mend it "
                "(a cell with a comma wants quotes)"
            )
        for name, cell in zip(names, row, strict=True):
            if _is_missing(cell):
                missing[name] += 1
                first = first or (count, name)
            elif name in texts:
                texts[name].append(_text(cell))
            else:
                numbers.append(_finite(cell, count, name))
    if first:
        _refuse_missing(missing, first)
    if count < 2:
        raise ValueError(f"it has {count or 'no'} rows below its names: at least 2 are needed")
    return np.frombuffer(numbers, np.float64).reshape(count, len(names) - len(texts))


def _as_numbers(texts: list[str], name: str) -> Float[np.ndarray, "N"]:
    return np.array([_finite(text, row, name) for row, text in enumerate(texts, start=1)])


def _varying(
    columns: Sequence[Float[np.ndarray, "N"]], names: Sequence[str]
) -> Float[np.ndarray, "N C"]:
    """Columns side by side, known to have a scale each."""
    if not columns:
        raise ValueError("it has no column of numbers: at least one belongs beside the label")
    values = np.stack(columns, 1)
    still = [name for name, spread in zip(names, values.std(0), strict=True) if not spread > 0]
    if still:
        raise ValueError(
            f"column {still[0]!r} does not vary ({len(still)} such): leave it out, for it has no "
            "scale"
        )
    return values


def _refuse_missing(missing: dict[str, int], first: tuple[int, str]) -> None:
    some = {name: count for name, count in missing.items() if count}
    shown = ", ".join(f"{name!r} {count}" for name, count in list(some.items())[:8])
    more = f" and {len(some) - 8} more columns" if len(some) > 8 else ""
    raise ValueError(
        f"{sum(some.values())} cells are missing, the first in row {first[0]}, column "
        f"{first[1]!r} ({shown}{more}): fill them in, or leave these rows or columns out"
    )


def _is_missing(cell: Any) -> bool:
    return (
        cell is None or cell != cell or (isinstance(cell, str) and cell.strip().lower() in MISSING)
    )


def _finite(cell: Any, row: int, column: str) -> float:
    """A cell's number, finite in float32."""
    number = _number(cell)
    if number is None:
        raise ValueError(
            f"row {row}, column {column!r} holds text, {_text(cell)[:SHOWN]!r}: make the column "
            "numbers, leave it out, or, of a table, name it as the label"
        )
    if not abs(number) <= LARGEST:
        raise ValueError(
            f"row {row}, column {column!r} holds {_text(cell)[:SHOWN]}, beyond what float32 can "
            "hold: choose another unit"
        )
    return number


def _number(cell: Any) -> float | None:
    """What a cell says, as a number; None if it is none."""
    if isinstance(cell, str) and "_" in cell:  # which Python's numbers may have, and tables' not
        return None
    try:
        return float(cell)
    except ValueError:
        return None
    except OverflowError:  # an integer beyond float64
        return float("inf")


def _text(cell: Any) -> str:
    return str(cell).strip()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What goes wrong in here names the file."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: save it so ({error})") from error
    except csv.Error as error:
        raise ValueError(f"{path} is damaged, or no CSV: {error}") from error
    except Exception as error:  # a decoder may fail in any way
        named = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise ValueError(named) from error

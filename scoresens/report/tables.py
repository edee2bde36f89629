"""Tables of text: rows, columns, and numbers with their intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scoresens.statistics.estimates import Estimate

Rows = Mapping[str, Mapping[str, str]]
Interval = Estimate | Sequence[float | None]  # value, low, high

NAMES = {
    "counterfactual_data": "counterfactual (data)",
    "counterfactual_model": "counterfactual (model)",
    "counterfactual_sharp": "counterfactual (sharp)",
    "counterfactual_steps": "counterfactual (data), as so many steps learn it",
    "first_order_data": "first order (data)",
    "first_order_model": "first order (model)",
    "first_order_sharp": "first order (sharp)",
    "class_mean": "toward class mean",
    "wiener": "Wiener's filter",
    "another_finetuning": "another fine-tuning",
    "another_seed": "another seed's training",
}
MEASURES = {
    "median_cosine": "median cosine",
    "pooled_pearson": "pooled Pearson",
    "relative_l2": "relative L2",
    "magnitude_ratio": "magnitude ratio",
    "magnitude_spearman": "magnitude Spearman",
}


def table(rows: Rows, corner: str = "") -> str:
    """Rows and columns of text, aligned: names to the left, entries to the right.

    >>> print(table({"a": {"norm": "1.50", "cosine": "0.9"}, "bcd": {"norm": "12.00"}}))
          norm  cosine
    ---  -----  ------
    a     1.50     0.9
    bcd  12.00

    Args:
        rows: entries by column, by row; a column is where a row first names it.
        corner: what stands over the names.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [[corner, *columns]]
    lines += [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def validation_table(results: Mapping[str, Mapping[str, Interval]]) -> str:
    """Methods by measures, each `value [low, high]`, from estimates."""
    rows = {
        method: {MEASURES.get(name, name): cell(found) for name, found in row.items()}
        for method, row in results.items()
    }
    return table(rows, "method")


def cell(estimate: Interval, form: str = ".2f") -> str:
    """A number with its interval, `value [low, high]`."""
    value, low, high = (number(part, form) for part in estimate)
    return f"{value} [{low}, {high}]"


def number(value: Any, form: str = ".2f") -> str:
    """A number; a dash where there is none, a power of ten where it would not fit a column."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:{form if abs(value) < 1e4 else '.0e'}}"

"""Many samples at once, of data that no grid of cells suits: columns, and points of a plane."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from scoresens.datasets.forms import Form
from scoresens.report._canvas import EDGE, Page
from scoresens.report._plots import FAINT, OKABE_ITO, SMALL, dress

SHOWN = 16  # columns
ACROSS, TALL, WIDE, BELOW, LEFT = 4, 1.25, 1.75, 0.68, 0.35  # inches
BINS = 24


def histograms(
    title: str, caption: str, x: np.ndarray, form: Form, data: np.ndarray | None
) -> Page:
    """A page with a panel a column: how samples, and the data, are distributed over its values."""
    count = min(len(form.columns), SHOWN)
    across = min(ACROSS, count)
    if count < len(form.columns):
        caption += f" The first {count} of {len(form.columns)} columns."
    page = Page(max(2 * EDGE + across * (WIDE + LEFT), 5.0), title, f"{caption} {_colours(data)}")
    page.extend(math.ceil(count / across) * (TALL + BELOW) + 0.05)
    for column in range(count):
        row, place = divmod(column, across)
        left, top = EDGE + 0.1 + place * (WIDE + LEFT), page.top + row * (TALL + BELOW) + 0.05
        axes = page.axes(left, top, WIDE, TALL)
        both = [form.restored(each)[:, column] for each in (x, data) if each is not None]
        _histogram(axes, both)
        dress(axes, form.columns[column], "")
        axes.set(yticks=[])
    return page


def scatter(title: str, caption: str, x: np.ndarray, form: Form, data: np.ndarray | None) -> Page:
    """A page with samples, and the data, in their plane."""
    page = Page(6.5, title, f"{caption} {_colours(data)}")
    page.extend(5.4)
    axes = page.axes(EDGE + 0.6, page.top + 0.05, 6.5 - 2 * EDGE - 0.7, 4.75)
    for place, (each, name) in enumerate(((data, "data"), (x, "samples"))):
        if each is not None:
            style: dict[str, Any] = {"color": (FAINT, OKABE_ITO[1])[place], "linewidth": 0}
            axes.scatter(*form.restored(each).T, s=9, alpha=0.6, label=name, **style)
    dress(axes, *form.columns)
    axes.legend(fontsize=SMALL, frameon=False)
    return page


def _histogram(axes: Axes, both: list[np.ndarray]) -> None:
    whole = np.concatenate(both)
    low, high = np.percentile(whole, (0.25, 99.75))
    edges = np.linspace(low, high, BINS + 1)
    heights, _ = np.histogram(both[0], edges, density=True)
    axes.stairs(heights, edges, fill=True, color=OKABE_ITO[1], alpha=0.45)
    if len(both) > 1:
        heights, _ = np.histogram(both[1], edges, density=True)
        axes.stairs(heights, edges, color=FAINT, linewidth=1.2)


def _colours(data: np.ndarray | None) -> str:
    own = "Values in the columns' own units."
    return f"Orange: samples. {own}" if data is None else f"Orange: samples; grey: the data. {own}"


Overview = Callable[[str, str, np.ndarray, Form, np.ndarray | None], Page]
OVERVIEWS: Mapping[str, Overview] = {"table": histograms, "points": scatter}

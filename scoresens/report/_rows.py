"""How one sample is drawn, by the kind of its data; what every sheet and grid draws with.

    images   grey values, or changes in red and blue
    table    a bar a column, its length in standard deviations, its number in the column's own units
    series   a line a column over the steps of the window
    points   a dot among the data, or an arrow

`painter` chooses. To draw another kind, write a class of its own and name it in `PAINTERS`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from matplotlib.axes import Axes

from scoresens.datasets.forms import Form
from scoresens.report._canvas import Page, draw_bar
from scoresens.report._pixels import CELL, GREY, SIGNED, cell_of, change_norm, show, value_norm
from scoresens.report._plots import FAINT, FRAME, INK, OKABE_ITO, SMALL

RISES, FALLS, STILL = "#b2182b", "#2166ac", "#8c8c8c"
TINY = 5.8  # points
MOST = 14  # columns of a table that a cell shows
BAR_ROW, BAR_CELL, LETTER = 0.125, 1.3, 0.05  # inches
NAME = 22  # letters of a column's name
CLOUD = 400  # points of the data behind one of them
COVER = 99.5  # per cent of the data within a frame


@runtime_checkable
class Painter(Protocol):
    """Draws samples of one kind.

    Args:
        size: height and width of a cell, in inches.
        margin: what the first cell of a row needs at its left, for the names of its axis.
    """

    size: tuple[float, float]
    margin: float

    def draw(self, axes: Axes, sample: np.ndarray, *, signed: bool, first: bool) -> None:
        """Fill the axes with a sample, or a change of one; `first` in its row names its axes."""
        ...

    def explain(self, page: Page, left: float, top: float, signed: str) -> None:
        """What colours and lengths mean, below the cells; `signed` says it of changes, if any."""
        ...


def painter(
    form: Form,
    data: np.ndarray,
    values: Sequence[np.ndarray],
    changes: Sequence[np.ndarray],
    unitless: bool = False,
) -> Painter:
    """What draws samples of this form.

    Args:
        form: of the data.
        data: samples that the scales should span.
        values: samples that will be drawn, an array `[R, *shape]` a column of the sheet.
        changes: the same of their changes.
        unitless: whether those are not in the columns' units.
    """
    own = form._replace(std=(1.0,) * len(form.std)) if unitless else form
    return PAINTERS[form.kind](form, own, data, values, changes)


class Pictures:
    """Images: what is high is dark; changes red and blue."""

    margin = 0.0

    def __init__(self, form, change, data, values, changes):
        self.size = cell_of(data.shape[1:])
        self.norms = value_norm(data), change_norm(changes)

    def draw(self, axes: Axes, sample: np.ndarray, *, signed: bool, first: bool) -> None:
        """A picture without ticks."""
        show(axes, sample, self.norms[signed], SIGNED if signed else GREY)

    def explain(self, page: Page, left: float, top: float, signed: str) -> None:
        """Bars of colours with their scales."""
        draw_bar(page, left, top, self.norms[0], GREY, "grey value")
        if signed:
            draw_bar(page, left + 2.5, top, self.norms[1], SIGNED, signed)


class Bars:
    """Rows of a table: those columns, up to `MOST`, that change most, or else differ most."""

    def __init__(self, form, change, data, values, changes):
        self.form, self.change, many = form, change, len(form.columns)
        self.shown = np.sort(_telling(data, values, changes)[:MOST])
        self.size = BAR_ROW * len(self.shown) + 0.06, BAR_CELL
        names = [_short(form.columns[i]) for i in self.shown]
        self.names, self.margin = names, 0.15 + LETTER * max(map(len, names))
        self.limits = _limit(data), _limit(np.concatenate(changes or [np.ones((1, many))]))
        self.digits = _digits(form), _digits(change)

    def draw(self, axes: Axes, sample: np.ndarray, *, signed: bool, first: bool) -> None:
        """A bar a column from the mean, or from no change, with its number at the right."""
        limit, places = self.limits[signed], np.arange(len(self.shown))
        colours = np.where(sample > 0, RISES, FALLS)[self.shown] if signed else STILL
        axes.barh(places, np.clip(sample[self.shown], -limit, limit), 0.72, color=colours)
        axes.axvline(0, color=FAINT, linewidth=0.5)
        axes.set(xlim=(-1.05 * limit, 2.3 * limit), ylim=(len(places) - 0.4, -0.6), xticks=[])
        restored = self.change.restored_change(sample) if signed else self.form.restored(sample)
        for place, column in enumerate(self.shown):
            number = _number(restored[column], self.digits[signed][column], signed)
            axes.text(2.22 * limit, place, number, fontsize=TINY, color=INK, ha="right",
                      va="center_baseline")  # fmt: skip
        axes.set_yticks(places if first else [], self.names if first else [])
        _dress(axes)

    def explain(self, page: Page, left: float, top: float, signed: str) -> None:
        """What bars and numbers are."""
        some = f"{len(self.shown)} of {len(self.form.columns)} columns. " if len(
            self.shown
        ) < len(self.form.columns) else ""  # fmt: skip
        says = [
            f"{some}Numbers: in the columns' own units. Bars: from the mean of the data, up to "
            f"{self.limits[0]:.2g} standard deviations."
        ]
        if signed:
            says += [
                f"Bars of {signed}: red is more, blue is less, up to {self.limits[1]:.2g} standard "
                "deviations."
            ]
        page.text(left - self.margin, top, "\n".join(says), SMALL, FAINT, va="top")


class Lines:
    """Windows of series: a line a column, in its own units where there is one column."""

    size, margin = (0.85, 1.3), 0.78

    def __init__(self, form, change, data, values, changes):
        self.form, self.change, self.alone = form, change, len(form.columns) == 1
        spans = self._scaled(data), np.concatenate(changes or [np.ones((1, *data.shape[1:]))])
        self.limits = np.percentile(spans[0], (100 - COVER, COVER)), _limit(self._changed(spans[1]))

    def _scaled(self, x):
        return self.form.restored(x) if self.alone else x

    def _changed(self, x):
        return self.change.restored_change(x) if self.alone else x

    def draw(self, axes: Axes, sample: np.ndarray, *, signed: bool, first: bool) -> None:
        """The lines of one window, on limits that all windows share."""
        drawn = self._changed(sample) if signed else self._scaled(sample)
        for place, line in enumerate(drawn.T):
            colour = INK if self.alone else OKABE_ITO[place % len(OKABE_ITO)]
            axes.plot(line, color=colour, linewidth=0.9)
        low, high = (-self.limits[1], self.limits[1]) if signed else self.limits[0]
        axes.set(
            xlim=(0, len(sample) - 1), ylim=(low - 0.05 * (high - low), high * 1.05 - 0.05 * low)
        )
        if signed:
            axes.axhline(0, color=FRAME, linewidth=0.6)
        axes.set(xticks=[], yticks=(low, high) if first else [])
        digits = _digits(self.form)[0] if self.alone else 1
        axes.yaxis.set_major_formatter(lambda value, _: _number(value, digits, False))
        name = _short(self.form.columns[0]) if self.alone else "std. dev."
        axes.set_ylabel(name if first else "", fontsize=TINY, color=INK, labelpad=1)
        _dress(axes)

    def explain(self, page: Page, left: float, top: float, signed: str) -> None:
        """What the axes are."""
        units = f"{self.form.columns[0]}, in its own units" if self.alone else (
            "standard deviations from the mean of each column"
        )  # fmt: skip
        says = [f"Across: the steps of a window. Up: {units}."]
        if signed:
            says += [f"{signed[0].upper()}{signed[1:]}: up to ±{self.limits[1]:.3g}."]
        if not self.alone:
            says += [", ".join(f"{_colour(i)}: {_short(name)}" for i, name in
                               enumerate(self.form.columns[:8]))]  # fmt: skip
        page.text(left - self.margin, top, "\n".join(says), SMALL, FAINT, va="top")


class Spots:
    """Points of a plane: a dot among the data; a change is an arrow from the middle."""

    size, margin = (CELL, CELL), 0.42

    def __init__(self, form, change, data, values, changes):
        self.form, self.change, self.cloud = form, change, form.restored(data[:CLOUD])
        low, high = np.percentile(form.restored(data), (100 - COVER, COVER), axis=0)
        room = 0.15 * (high - low)
        self.low, self.high = low - room, high + room
        moved = np.concatenate(changes or [np.ones((1, 2))])
        self.limit = 1.1 * float(np.abs(change.restored_change(moved)).max()) or 1.0

    def draw(self, axes: Axes, sample: np.ndarray, *, signed: bool, first: bool) -> None:
        """A dot, or an arrow, in the columns' own units."""
        if signed:
            along, up = self.change.restored_change(sample)
            tip = {"arrowstyle": "-|>", "color": RISES, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (along, up), (0, 0), arrowprops=tip | {"mutation_scale": 6})
            axes.plot(0, 0, ".", color=FAINT, markersize=3)
            axes.set(xlim=(-self.limit, self.limit), ylim=(-self.limit, self.limit))
        else:
            axes.plot(*self.cloud.T, ".", color=FRAME, markersize=1)
            axes.plot(*self.form.restored(sample), "o", color=RISES, markersize=4)
            axes.set(xlim=(self.low[0], self.high[0]), ylim=(self.low[1], self.high[1]))
        across, upward = map(_short, self.form.columns)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(upward if first else "", fontsize=TINY, color=INK, labelpad=2)
        if first:
            axes.text(0.98, 0.02, across, fontsize=TINY, color=INK, ha="right", va="bottom",
                      transform=axes.transAxes)  # fmt: skip
        _dress(axes)

    def explain(self, page: Page, left: float, top: float, signed: str) -> None:
        """The ranges of the axes."""
        ends = zip(self.form.columns, self.low, self.high, strict=True)
        ranges = [f"{_short(name)} from {low:.2g} to {high:.2g}" for name, low, high in ends]
        says = [f"In the columns' own units: {', '.join(ranges)}. Grey: the data."]
        if signed:
            says += [f"Arrows: {signed}, frames up to ±{self.limit:.2g}."]
        words = "\n".join(says).replace("-", "−")
        page.text(left - self.margin, top, words, SMALL, FAINT, va="top")


PAINTERS: Mapping[str, type] = {
    "images": Pictures, "table": Bars, "series": Lines, "points": Spots
}  # fmt: skip


# ------------------------------------------------------------------ parts


def _telling(
    data: np.ndarray, values: Sequence[np.ndarray], changes: Sequence[np.ndarray]
) -> np.ndarray:
    """Columns in order: by how much they change, or differ between what stands in one row."""
    if changes:
        told = np.mean(np.concatenate(changes) ** 2, 0)
    elif len(values) > 1:
        told = np.var(np.stack(values), 0).mean(0)
    else:
        told = np.var(data, 0)
    return np.argsort(-told, kind="stable")


def _limit(entries: np.ndarray) -> float:
    return float(np.percentile(np.abs(entries), COVER)) or 1.0


def _digits(form: Form) -> list[int]:
    """After the point, of each column: its spread has two."""
    return [max(0, 1 - math.floor(math.log10(spread))) for spread in form.std]


def _number(value: float, digits: int, signed: bool) -> str:
    """A number with as many digits as its column's spread asks for."""
    form = ".2e" if digits > 5 or abs(value) >= 1e7 else f".{digits}f"
    if not float(f"{value:{form}}"):
        return "0"
    return f"{value:{'+' if signed else ''}{form}}".replace("-", "−")


def _short(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


def _colour(place: int) -> str:
    names = ("blue", "vermilion", "green", "pink", "orange", "sky", "black")
    return names[place % len(names)]


def _dress(axes: Axes) -> None:
    axes.tick_params(labelsize=TINY, color=FRAME, labelcolor=INK, length=0, pad=2)
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.6)

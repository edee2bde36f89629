"""Plots beside pictures: points about a diagonal, numbers with intervals, curves over noise levels.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

FRAME, FAINT, INK = "#b8b8b8", "#5f5f5f", "#1a1a1a"
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASH = (0, (4, 3))
BODY, SMALL = 9.5, 8.0  # points


class Scatter(NamedTuple):
    """One panel beside a sheet: points, and the diagonal on which prediction is truth."""

    title: str
    x_label: str
    y_label: str
    points: Mapping[str, tuple[np.ndarray, np.ndarray]]  # by the name in the legend
    logarithmic: bool = False


class Dots(NamedTuple):
    """One panel beside a sheet: numbers with their intervals, a line each."""

    title: str
    x_label: str
    values: Mapping[str, Sequence[Any]]  # by series; value, low, high
    names: Sequence[str]  # one a line


class Curves(NamedTuple):
    """A last column of a sheet: a small plot a row, over one logarithmic axis.

    Args:
        title: one or two short lines.
        x_label: what the axis is, up to two lines.
        edges: `[S + 1]`, where the steps of the axis begin and end.
        heights: `[R, S]`, a step each; every row fills its own plot.
        marks: `[R]`, a line across each plot.
        notes: what is written under each plot.
    """

    title: str
    x_label: str
    edges: np.ndarray
    heights: np.ndarray
    marks: np.ndarray
    notes: Sequence[str]


def plot_panel(axes: Axes, panel: Scatter | Dots) -> None:
    """Fill the axes with a panel."""
    if isinstance(panel, Scatter):
        _scatter(axes, panel)
        return
    draw_intervals(axes, panel.values, panel.names)
    axes.axvline(1, color=FAINT, linewidth=0.8, linestyle=DASH, zorder=0)
    dress(axes, panel.x_label, "")
    head(axes, panel.title)


def plot_curve(axes: Axes, curves: Curves, row: int) -> None:
    """Fill the axes with the curve of one row; the last row's axis is labelled."""
    last, heights = row == len(curves.heights) - 1, curves.heights[row]
    axes.stairs(heights, curves.edges, fill=True, color=OKABE_ITO[5], alpha=0.6)
    axes.stairs(heights, curves.edges, color=OKABE_ITO[0], linewidth=0.8)
    axes.axvline(curves.marks[row], color=INK, linewidth=0.8, linestyle=DASH)
    axes.set(xscale="log", xlim=(curves.edges.min(), curves.edges.max()), yticks=[])
    axes.set_ylim(0, 1.12 * float(heights.max()) or 1.0)
    dress(axes, curves.x_label if last else "", "")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(labelbottom=last)
    note = {"fontsize": SMALL, "color": FAINT, "transform": axes.transAxes}
    axes.text(0.02, 0.97, curves.notes[row], va="top", **note)


def _scatter(axes: Axes, panel: Scatter) -> None:
    many = max(np.size(x) for x, _ in panel.points.values()) > 500
    for (name, (x, y)), colour, marker in zip(
        panel.points.items(), OKABE_ITO, MARKERS, strict=False
    ):
        size, alpha = (3, 0.35) if many else (16, 0.75)
        style = {"s": size, "alpha": alpha, "color": colour, "marker": marker, "linewidth": 0}
        axes.scatter(np.ravel(x), np.ravel(y), label=name, **style)
    entries = np.concatenate([np.ravel(side) for pair in panel.points.values() for side in pair])
    if panel.logarithmic:
        axes.set(xscale="log", yscale="log")
        entries = entries[entries > 0]
    span = (entries.min(), entries.max()) if entries.size else (0.1, 1.0)
    axes.plot(span, span, color=FAINT, linewidth=0.8, linestyle=DASH, zorder=0)
    dress(axes, panel.x_label, panel.y_label)
    head(axes, panel.title, markerscale=3.0 if many else 1.0)


def draw_intervals(axes: Axes, values: Mapping[str, Sequence[Any]], names: Sequence[str]) -> None:
    """Numbers with their intervals, `(value, low, high)` by series, a line a name."""
    lines, series = np.arange(len(names)), len(values)
    for place, (name, row) in enumerate(values.items()):
        middle, low, high = np.asarray(row, float).T
        heights, ends = lines + 0.22 * (place - (series - 1) / 2), [middle - low, high - middle]
        style = {"color": OKABE_ITO[place], "markersize": 4.5, "linewidth": 1.2, "label": name}
        axes.errorbar(middle, heights, xerr=np.maximum(ends, 0), fmt=MARKERS[place], **style)
    axes.set_yticks(lines, names)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.axvline(0, color=FRAME, linewidth=0.8, zorder=0)


def head(axes: Axes, title: str, markerscale: float = 1.0) -> None:
    """A title, and between it and the plot the legend in one line, clear of every point."""
    axes.set_title(title, fontsize=BODY, color=INK, loc="left", pad=18)
    axes.legend(
        fontsize=SMALL - 0.5,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(-0.04, 0.98),
        ncols=len(axes.get_legend_handles_labels()[1]),
        markerscale=markerscale,
        columnspacing=0.7,
        handletextpad=0.3,
        handlelength=1.3,
    )


def dress(axes: Axes, x_label: str, y_label: str) -> None:
    """Labels, and a frame of two sides."""
    axes.set_xlabel(x_label, fontsize=SMALL, color=INK)
    axes.set_ylabel(y_label, fontsize=SMALL, color=INK)
    axes.tick_params(labelsize=SMALL, color=FRAME, labelcolor=INK)
    axes.tick_params(which="minor", color=FRAME, labelbottom=False, labelleft=False)
    for side, spine in axes.spines.items():
        spine.set(color=FRAME, visible=side in ("left", "bottom"))

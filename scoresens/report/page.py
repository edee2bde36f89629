"""Pictures of results: rows of samples under titles, plots beside them, a caption below.

Pictures are laid out in inches from the top left corner and sized by what they hold, so that no
text meets another. A sample is drawn as its kind of data is (`_rows`): images in grey, dark where
they are high, and their changes in red where a value rises and blue where it falls, on limits
symmetric about 0, which colour-blind readers can tell apart.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from scoresens.datasets.forms import IMAGES, Form
from scoresens.report._canvas import EDGE, Page
from scoresens.report._matplotlib import drawing
from scoresens.report._overviews import OVERVIEWS
from scoresens.report._plots import (
    FAINT,
    FRAME,
    OKABE_ITO,
    SMALL,
    Curves,
    Dots,
    Scatter,
    dress,
    plot_curve,
    plot_panel,
)
from scoresens.report._rows import painter

# Inches.
GAP, SPLIT, NOTE, LABEL = 0.12, 0.34, 0.19, 1.25
HEADINGS, BARS, CURVE = 0.62, 0.75, 2.1
PANEL, PANEL_LEFT, PANEL_BELOW = 3.2, 1.5, 0.62
ABOVE, BELOW, LEFT = 0.5, 0.62, 0.82  # of the frame of a panel among others
WIDE, TALL = 3.3, 2.9  # that frame
GRID, MANY = 64, 4096  # samples of a grid, and of an overview, at most


class Column(NamedTuple):
    """One column of a sheet: a picture a row.

    Args:
        title: one or two short lines.
        images: `[R, *shape]`, values or, where `signed`, changes.
        signed: whether 0 is the middle of the colours.
        notes: what is written under each picture, if anything.
        split: whether a wider gap separates it from the column to its left.
        frames: the colour around each picture; left out, a faint grey.
    """

    title: str
    images: np.ndarray
    signed: bool = False
    notes: Sequence[str] = ()
    split: bool = False
    frames: Sequence[str] = ()


# ------------------------------------------------------------------ pictures


@drawing
def draw_sheet(
    path: Path,
    columns: Sequence[Column],
    labels: Sequence[str],
    *,
    title: str,
    caption: str,
    values: np.ndarray,
    beside: Sequence[Scatter | Dots] | Curves = (),
    signed: str = "",
    form: Form = IMAGES,
    unitless: bool = False,
) -> Path:
    """Write rows of pictures under column titles, beside panels, over a caption.

    Args:
        path: the PNG file.
        columns: the pictures; all have the same number of rows R.
        labels: what stands left of each row, up to four short lines.
        title: one line or two.
        caption: what is to be seen, in sentences.
        values: samples that the scales should span: images from white to black.
        beside: what stands to the right: plots from top to bottom, or small ones, one a row.
        signed: what signed columns show; left out, changes.
        form: what one sample is.
        unitless: whether signed columns are no changes of columns, and so not in their units.
    """
    rows, small = len(labels), isinstance(beside, Curves)
    signed = signed or ("change" if form.columns else "change of grey value")
    panels = () if small else beside
    changes = [column.images for column in columns if column.signed]
    drawn = [column.images for column in columns if not column.signed]
    hand = painter(form, values, drawn, changes, unitless)
    tall, wide = hand.size
    pitch = tall + GAP + NOTE * (small or any(column.notes for column in columns))
    lefts = [EDGE + LABEL + hand.margin]
    for column in columns[1:]:
        lefts.append(lefts[-1] + wide + (SPLIT if column.split else GAP))
    right = lefts[-1] + wide
    more = (0.3 + PANEL_LEFT + PANEL) * bool(panels) + (SPLIT + CURVE) * small
    page = Page(right + EDGE + more, title, caption)
    page.extend(HEADINGS + max(rows * pitch, len(panels) * 2.1) + BARS)
    top = page.top + HEADINGS
    for column, left in zip(columns, lefts, strict=True):
        page.text(left + wide / 2, top - 0.08, column.title, ha="center", va="bottom")
        for row in range(rows):
            axes = page.axes(left, top + row * pitch, wide, tall)
            hand.draw(axes, column.images[row], signed=column.signed, first=column is columns[0])
            _annotate(page, axes, column, row)
    for row, label in enumerate(labels):
        middle = top + row * pitch + tall / 2
        page.text(
            lefts[0] - hand.margin - 0.12, middle, label, ha="right", va="center", linespacing=1.35
        )
    bars = top + rows * pitch + 0.18
    hand.explain(page, lefts[0], bars, signed if changes else "")
    if isinstance(beside, Curves):
        _draw_curves(page, beside, (right + SPLIT, top), pitch, tall)
    else:
        _draw_panels(page, beside, right + 0.3 + PANEL_LEFT, top)
    return page.save(path)


@drawing
def draw_grid(
    path: Path,
    images: np.ndarray,
    *,
    title: str,
    caption: str,
    notes: Sequence[str] = (),
    form: Form = IMAGES,
    data: np.ndarray | None = None,
) -> Path:
    """Write images, or windows of series, `[M, *shape]` in rows of eight, each with its note if
    there are any; of tables the distribution of each column, and points in their plane, beside the
    data if they are given."""
    if form.kind in OVERVIEWS:
        return OVERVIEWS[form.kind](title, caption, images, form, data).save(path)
    across = min(8, len(images))
    down = math.ceil(len(images) / across)
    hand = painter(form, images if data is None else data, [images], [])
    tall, wide = hand.size
    pitch, start = tall + GAP + NOTE * bool(notes), EDGE + hand.margin
    page = Page(max(start + EDGE + across * (wide + GAP) - GAP, 5.0), title, caption)
    page.extend(down * pitch + BARS)
    for i, image in enumerate(images):
        left, top = start + (i % across) * (wide + GAP), page.top + (i // across) * pitch
        hand.draw(page.axes(left, top, wide, tall), image, signed=False, first=not i % across)
        if notes:
            below = top + tall + 0.03
            page.text(left + wide / 2, below, notes[i], SMALL, FAINT, ha="center", va="top")
    hand.explain(page, start + 0.12, page.top + down * pitch + 0.12, "")
    return page.save(path)


def at_most(form: Form) -> int:
    """How many samples `draw_grid` should be given."""
    return MANY if form.kind in OVERVIEWS else GRID


@drawing
def draw_loss(
    path: Path, steps: np.ndarray, losses: np.ndarray, *, title: str, caption: str
) -> Path:
    """Write the loss `[n]` against the optimiser steps `[n]`."""
    page = Page(6.5, title, caption)
    page.extend(3.6)
    axes = page.axes(EDGE + 0.65, page.top + 0.05, 6.5 - 2 * EDGE - 0.75, 2.85)
    axes.plot(steps, losses, color=OKABE_ITO[0], linewidth=1.2, marker=".", markersize=3)
    dress(axes, "optimiser steps", "denoising loss (1: untrained)")
    return page.save(path)


def panels_of(count: int, title: str, caption: str) -> tuple[Page, list[Axes]]:
    """A page of panels, at most three in a row."""
    across = math.ceil(count / math.ceil(count / 3))
    down = math.ceil(count / across)
    page = Page(2 * EDGE + across * (LEFT + WIDE) + 0.1, title, caption)
    page.extend(down * (ABOVE + TALL + BELOW))
    places = [divmod(place, across) for place in range(count)]
    lefts = [EDGE + LEFT + column * (LEFT + WIDE) for _, column in places]
    tops = [page.top + ABOVE + row * (ABOVE + TALL + BELOW) for row, _ in places]
    return page, [page.axes(*corner, WIDE, TALL) for corner in zip(lefts, tops, strict=True)]


def _draw_curves(
    page: Page, curves: Curves, corner: tuple[float, float], pitch: float, tall: float
) -> None:
    left, top = corner
    page.text(left + CURVE / 2, top - 0.08, curves.title, ha="center", va="bottom")
    for row in range(len(curves.heights)):
        plot_curve(page.axes(left, top + row * pitch, CURVE, tall), curves, row)


def _draw_panels(page: Page, panels: Sequence[Scatter | Dots], left: float, top: float) -> None:
    height = (page.height - top - page.below - 0.1) / max(len(panels), 1)
    for place, panel in enumerate(panels):
        box = left, top + place * height, PANEL, height - PANEL_BELOW - 0.3
        plot_panel(page.axes(*box), panel)


def _annotate(page: Page, axes: Axes, column: Column, row: int) -> None:
    """The frame and the note of one picture of a column."""
    if column.frames:
        colour = column.frames[row]
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=0.6 if colour == FRAME else 2.0)
    if column.notes:
        box = axes.get_position()
        middle, below = (box.x0 + box.x1) / 2 * page.width, (1 - box.y0) * page.height + 0.05
        page.text(middle, below, column.notes[row], SMALL, FAINT, ha="center", va="top")

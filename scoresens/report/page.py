"""Pictures of results: rows of images under titles, plots beside them, a caption below.

Pictures are laid out in inches from the top left corner and sized by what they hold, so that no
text meets another. Values are grey, dark where they are high; changes are red where a value rises
and blue where it falls, on limits symmetric about 0: both maps can be told apart by colour-blind
readers. Figures are made without pyplot and under matplotlib's own settings (`drawing`): no global
state of matplotlib's is read or left behind.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure

from scoresens._files import replacing
from scoresens.report._matplotlib import drawing
from scoresens.report._plots import (
    BODY,
    FAINT,
    FRAME,
    INK,
    OKABE_ITO,
    SMALL,
    Curves,
    Dots,
    Scatter,
    dress,
    plot_curve,
    plot_panel,
)

GREY, SIGNED = "gray_r", "RdBu_r"
DPI = 150

# Inches.
EDGE, CELL, GAP, SPLIT, NOTE, LABEL = 0.35, 0.92, 0.12, 0.34, 0.19, 1.25
HEADINGS, BAR, BARS, CURVE = 0.62, 0.11, 0.75, 2.1
PANEL, PANEL_LEFT, PANEL_BELOW = 3.2, 1.5, 0.62
ABOVE, BELOW, LEFT = 0.5, 0.62, 0.82  # of the frame of a panel among others
WIDE, TALL = 3.3, 2.9  # that frame
TITLE = 14.0  # points
CHARACTER = 0.5  # mean width, in units of the size


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
    signed: str = "change of grey value",
) -> Path:
    """Write rows of pictures under column titles, beside panels, over a caption.

    Args:
        path: the PNG file.
        columns: the pictures; all have the same number of rows R.
        labels: what stands left of each row, up to four short lines.
        title: one line or two.
        caption: what is to be seen, in sentences.
        values: images that the grey map should span from white to black.
        beside: what stands to the right: plots from top to bottom, or small ones, one a row.
        signed: what the colours of signed columns show.
    """
    rows, small = len(labels), isinstance(beside, Curves)
    panels = () if small else beside
    tall, wide = _cell(columns[0].images.shape[1:])
    pitch = tall + GAP + NOTE * (small or any(column.notes for column in columns))
    lefts = [EDGE + LABEL]
    for column in columns[1:]:
        lefts.append(lefts[-1] + wide + (SPLIT if column.split else GAP))
    right = lefts[-1] + wide
    more = (0.3 + PANEL_LEFT + PANEL) * bool(panels) + (SPLIT + CURVE) * small
    page = Page(right + EDGE + more, title, caption)
    page.extend(HEADINGS + max(rows * pitch, len(panels) * 2.1) + BARS)
    top = page.top + HEADINGS
    norms = _value_norm(values), change_norm([c.images for c in columns if c.signed])
    for column, left in zip(columns, lefts, strict=True):
        norm, colours = (norms[1], SIGNED) if column.signed else (norms[0], GREY)
        page.text(left + wide / 2, top - 0.08, column.title, ha="center", va="bottom")
        for row in range(rows):
            axes = page.axes(left, top + row * pitch, wide, tall)
            show(axes, column.images[row], norm, colours)
            _annotate(page, axes, column, row)
    for row, label in enumerate(labels):
        middle = top + row * pitch + tall / 2
        page.text(lefts[0] - 0.12, middle, label, ha="right", va="center", linespacing=1.35)
    bars = top + rows * pitch + 0.18
    draw_bar(page, lefts[0], bars, norms[0], GREY, "grey value")
    if any(column.signed for column in columns):
        draw_bar(page, lefts[0] + 2.5, bars, norms[1], SIGNED, signed)
    if isinstance(beside, Curves):
        _draw_curves(page, beside, (right + SPLIT, top), pitch, tall)
    else:
        _draw_panels(page, beside, right + 0.3 + PANEL_LEFT, top)
    return page.save(path)


@drawing
def draw_grid(
    path: Path, images: np.ndarray, *, title: str, caption: str, notes: Sequence[str] = ()
) -> Path:
    """Write images `[M, *shape]` in rows of eight, each with its note if there are any."""
    across = min(8, len(images))
    down = math.ceil(len(images) / across)
    tall, wide = _cell(images.shape[1:])
    pitch = tall + GAP + NOTE * bool(notes)
    page = Page(max(2 * EDGE + across * (wide + GAP) - GAP, 5.0), title, caption)
    page.extend(down * pitch + BARS)
    norm = _value_norm(images)
    for i, image in enumerate(images):
        left, top = EDGE + (i % across) * (wide + GAP), page.top + (i // across) * pitch
        show(page.axes(left, top, wide, tall), image, norm, GREY)
        if notes:
            below = top + tall + 0.03
            page.text(left + wide / 2, below, notes[i], SMALL, FAINT, ha="center", va="top")
    draw_bar(page, EDGE + 0.12, page.top + down * pitch + 0.12, norm, GREY, "grey value")
    return page.save(path)


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


class Page:
    """A figure measured in inches from its top left corner: a title, a body, a caption."""

    def __init__(self, width: float, title: str, caption: str):
        self.width = width
        self.title = _wrapped(title, width, TITLE)
        self.caption = _wrapped(caption, width, BODY)
        self.top = EDGE + _lines(self.title) * TITLE * 1.25 / 72 + 0.12
        self.below = EDGE + _lines(self.caption) * BODY * 1.4 / 72
        self.height = self.top + self.below
        self.figure = Figure((width, self.height), facecolor="white")
        self.figure.set_layout_engine("none")
        FigureCanvasAgg(self.figure)

    def extend(self, body: float) -> None:
        """Make room for a body of this height, and write the title and the caption about it."""
        self.height = self.top + body + self.below
        self.figure.set_size_inches(self.width, self.height)
        self.text(EDGE, EDGE, self.title, TITLE, va="top", linespacing=1.25)
        start = self.height - self.below
        self.text(EDGE, start, self.caption, colour=FAINT, va="top", linespacing=1.4)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        w, h = self.width, self.height
        return self.figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))

    def text(
        self,
        left: float,
        top: float,
        words: str,
        size: float = BODY,
        colour: str = INK,
        **place: Any,
    ) -> None:
        style = {"fontsize": size, "color": colour, "fontfamily": "DejaVu Sans"} | place
        where = left / self.width, 1 - top / self.height
        self.figure.text(*where, words, parse_math=False, **style)

    def save(self, path: Path) -> Path:
        with replacing(path) as beside:
            self.figure.savefig(beside, format="png", dpi=DPI, metadata={"Software": "scoresens"})
        return path


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


def show(axes: Axes, image: np.ndarray, norm: Normalize, colours: str) -> None:
    """Fill the axes with one picture, without ticks."""
    picture = _picture(image)
    if picture.ndim == 3 and colours == GREY:
        picture = np.clip(norm(picture), 0, 1)
    elif picture.ndim == 3:
        picture = picture.mean(-1)  # a change of colour is shown by its mean over channels
    axes.imshow(picture, cmap=colours, norm=norm, interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.6)


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


def _picture(sample: np.ndarray) -> np.ndarray:
    """A sample as rows and columns, and channels where it has three."""
    if sample.ndim == 3 and sample.shape[-1] == 1:
        return sample[..., 0]
    if sample.ndim == 2 or (sample.ndim == 3 and sample.shape[-1] == 3):
        return sample
    return sample.reshape(len(sample) if sample.ndim > 1 else 1, -1)


def _cell(shape: tuple[int, ...]) -> tuple[float, float]:
    """Height and width of a picture: the longer side is CELL, the shorter at least a quarter."""
    rows, columns = _picture(np.zeros(shape)).shape[:2]
    longest = max(rows, columns)
    return tuple(CELL * max(side / longest, 0.25) for side in (rows, columns))


def _value_norm(values: np.ndarray) -> Normalize:
    """From the least to the greatest value, but for one in 200 at either end; from -1 to 1 where
    that is about the same."""
    low, high = np.percentile(values, (0.5, 99.5))
    if max(abs(low + 1), abs(high - 1)) < 0.3:
        low, high = -1.0, 1.0
    return Normalize(float(low), float(high) if high > low else float(low) + 1)


def change_norm(changes: Sequence[np.ndarray]) -> AsinhNorm:
    """Symmetric about 0, linear up to a sixteenth of the limit and logarithmic beyond, so that
    small changes can be seen beside large ones; one entry in 100 may lie beyond."""
    entries = [np.abs(change).ravel() for change in changes] or [np.ones(1)]
    limit = float(np.percentile(np.concatenate(entries), 99)) or 1.0
    return AsinhNorm(limit / 16, -limit, limit)


def draw_bar(
    page: Page, left: float, top: float, norm: Normalize, colours: str, label: str
) -> None:
    """A horizontal bar of colours with its scale, from its top left corner."""
    axes = page.axes(left, top, 2.1, BAR)
    mapped = ScalarMappable(norm, colours)
    bar = page.figure.colorbar(mapped, cax=axes, orientation="horizontal", extend="both")
    bar.outline.set(color=FRAME, linewidth=0.6)
    ticks = [float(norm.inverse(share)) for share in (0, 0.25, 0.5, 0.75, 1)]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}".replace("-", "−") for tick in ticks])
    bar.minorticks_off()
    axes.tick_params(labelsize=SMALL, color=FRAME, length=2.5, pad=2)
    axes.set_xlabel(label, fontsize=SMALL, color=FAINT, labelpad=2)


def _wrapped(words: str, width: float, size: float) -> str:
    """Text in lines that fit a page; line breaks of its own stay."""
    characters = int((width - 2 * EDGE) * 72 / (size * CHARACTER * 1.08))
    return "\n".join(textwrap.fill(line, characters) for line in words.splitlines())


def _lines(words: str) -> int:
    return words.count("\n") + 1

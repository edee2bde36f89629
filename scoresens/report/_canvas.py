"""A page in inches: a title, a body, a caption; and bars of colours.

Figures are made without pyplot and under matplotlib's own settings (`drawing`): no global state of
matplotlib's is read or left behind.
"""

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from scoresens._files import replacing
from scoresens.report._plots import BODY, FAINT, FRAME, INK, SMALL

DPI = 150
EDGE, BAR = 0.35, 0.11  # inches
TITLE = 14.0  # points
CHARACTER = 0.5  # mean width, in units of the size


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

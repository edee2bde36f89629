"""The tables and the picture of what training without some of the images did to samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scoresens._files import replacing
from scoresens.report._matplotlib import drawing
from scoresens.report._plots import BODY, INK, MARKERS, OKABE_ITO, SMALL, dress
from scoresens.report.tables import cell, table

Points = Sequence[Mapping[str, Any]]  # share, value, low, high: one for each share left out
Effects = Mapping[str, Mapping[str, Points]]  # by effect and method

EFFECTS = {"loss": "rise of the denoising loss at the sample", "moved": "how far the sample moved"}


def removal_tables(effects: Effects, nouns: str = "images") -> str:
    """A table an effect: methods by the share of the images, or of what the data are, left out."""
    parts = []
    for effect, what in EFFECTS.items():
        rows = {
            method: {
                f"{p['share']:.1%}": cell((p["value"], p["low"], p["high"]), ".3f") for p in points
            }
            for method, points in effects[effect].items()
        }
        parts.append(f"{what}, by the share of the {nouns} left out\n\n{table(rows, 'left out')}")
    return "\n\n".join(parts)


@drawing
def draw_removal(path: Path, effects: Effects, *, title: str, nouns: str = "images") -> Path:
    """Write a panel an effect, of the `effects` that the command writes: its mean over samples
    against the share of the images left out."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=BODY + 2, color=INK)
    for axes, (effect, what) in zip(figure.subplots(1, 2), EFFECTS.items(), strict=True):
        _panel(axes, effects[effect])
        dress(axes, f"{nouns} left out, per cent", what)
    figure.axes[0].legend(fontsize=SMALL, frameon=False, loc="upper left")
    with replacing(path) as beside:
        figure.savefig(beside, dpi=150, format="png")
    return path


def _panel(axes: Axes, methods: Mapping[str, Points]) -> None:
    shares = np.zeros(0)
    for place, (method, points) in enumerate(methods.items()):
        shares, value, low, high = (
            np.array([p[name] for p in points]) for name in ("share", "value", "low", "high")
        )
        apart = 1 + 0.03 * (place - 2)  # so that intervals do not hide each other
        axes.errorbar(
            100 * shares * apart, value, yerr=[value - low, high - value],
            color=OKABE_ITO[place], marker=MARKERS[place], markersize=4.5, linewidth=1.2,
            label=method,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(100 * shares)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axhline(0, color=INK, linewidth=0.6)

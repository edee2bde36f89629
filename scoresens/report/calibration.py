"""How near the kernels of a data set come to a network, by noise level."""

from pathlib import Path

import numpy as np

from scoresens.datasets.forms import IMAGES, Form
from scoresens.report._matplotlib import drawing
from scoresens.report._plots import MARKERS, OKABE_ITO, dress, head
from scoresens.report.page import panels_of
from scoresens.report.tables import table
from scoresens.sensitivity.calibration import Calibrated


def calibration_table(found: Calibrated) -> str:
    """The kernel found, and what it leaves unexplained beside the default one."""
    kernel, weights = found.points.kernel, found.energies / found.energies.sum()
    rows = {
        "as sharp as Bayes": {"unexplained": f"{found.sharp @ weights:.3f}"},
        "nearest": {
            "width": f"{found.width:.3g}",
            "resolution": f"{found.resolution:.2g}",
            "unexplained": f"{found.error:.3f}",
        },
        "to predict with": {
            "bandwidth": f"{float(found.points.bandwidth):.3g}",
            "width": f"{float(np.asarray(kernel.width)):.3g}",
            "resolution": f"{float(kernel.resolution):.2g}",
        },
    }
    return table(rows, "kernel")


@drawing
def draw_calibration(
    path: Path, found: Calibrated, *, title: str, count: int, form: Form = IMAGES
) -> Path:
    """Write what kernels leave unexplained of a network's denoiser, over noise levels.

    Args:
        found: by `calibrate`.
        count: of samples that the network was asked around.
        form: of the data.
    """
    page, (first, second) = panels_of(
        2,
        title,
        f"The network's denoiser at {count} of its own samples, noised to each level. Left: how "
        f"much of it is not linear in the noised {form.noun}, which is where single training "
        f"{form.nouns} matter. Right: the share of that which a denoiser of the training "
        f"{form.nouns} leaves "
        "unexplained, by the nearest kernel, and by that of the default bandwidth, as sharp as "
        "Bayes' rule.",
    )
    style = {"color": OKABE_ITO[2], "marker": MARKERS[2], "markersize": 4}
    first.plot(found.levels, found.energies, label="of the network's denoiser", **style)
    shares = {"nearest kernel": found.errors, "as sharp as Bayes": found.sharp}
    for place, (label, values) in enumerate(shares.items()):
        style = {"color": OKABE_ITO[place], "marker": MARKERS[place], "markersize": 4}
        second.plot(found.levels, values, label=label, **style)
    for axes, heading, label in (
        (first, "What is not linear", "squared norm"),
        (second, "What kernels leave of it", "share unexplained"),
    ):
        axes.set(xscale="log", ylim=(0, None))
        axes.xaxis.set_major_formatter("{x:g}")
        dress(axes, "noise level τ", label)
        head(axes, heading)
    return page.save(path)

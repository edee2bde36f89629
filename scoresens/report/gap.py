"""What the study of a gap found, in tables and in pictures: induced laws, residuals, distances."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.ticker import LogLocator

from scoresens.report._canvas import EDGE, Page, draw_bar
from scoresens.report._matplotlib import drawing
from scoresens.report._pixels import GREY, SIGNED, change_norm, show
from scoresens.report._plots import BODY, DASH, FAINT, INK, MARKERS, OKABE_ITO, SMALL, dress, head
from scoresens.report.page import GAP, LABEL, NOTE, SPLIT, panels_of
from scoresens.report.tables import Rows, cell, number, table
from scoresens.statistics.estimates import Estimate
from scoresens.studies.gap import GRID, Sampled

# Inches.
DENSITY = 1.55
OTHERS = "networks"  # whose names tell neither data nor weight

Levels = Mapping[float, Mapping[str, Estimate]]


class Studied(NamedTuple):
    """One network: what sampling found of it, and its row of result.json."""

    name: str
    data: str
    weight: float | None  # of the residual in training
    found: Sampled
    truth: np.ndarray | None  # [bins, bins]
    row: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What it is called beside networks of the same data."""
        return self.name if self.weight is None else f"w = {self.weight:g}"


def families(studied: Sequence[Studied]) -> dict[str, list[Studied]]:
    """Networks by the data that they were trained on; those of no known weight together."""
    found: dict[str, list[Studied]] = {}
    for network in studied:
        found.setdefault(OTHERS if network.weight is None else network.data, []).append(network)
    return found


# ------------------------------------------------------------------ tables


def gap_table(studied: Sequence[Studied]) -> str:
    """Networks by distances W_2 and mean squared residuals, with their 95 % intervals."""
    rows = {network.name: _entries(network) for network in studied}
    blank = dict.fromkeys((column for row in rows.values() for column in row), "-")
    return table({name: blank | row for name, row in rows.items()}, "network")


def _entries(network: Studied) -> dict[str, str]:
    row = network.row
    entries = {
        "w_R": "-" if network.weight is None else f"{network.weight:g}",
        "SDE-ODE": cell((row["w2_sde_ode"], *row["w2_sde_ode_interval"]), ".4f"),
    }
    for law in ("ode", "sde"):
        if f"w2_{law}_truth" in row:
            entries[f"{law.upper()}-truth"] = number(row[f"w2_{law}_truth"], ".4f")
    entries["SDE-flow"] = number(row["w2_sde_flow"], ".4f")
    mean = (row["residual_box_mean"], *row["residual_box_mean_interval"])
    entries["mean R^2"] = cell(mean, ".3g")
    published = row.get("published", {})
    for law in ("ode", "sde"):
        if f"ratio_{law}" in published:
            entries[f"{law.upper()}/floor"] = number(published[f"ratio_{law}"])
    if "w2_ode_flow" in published:
        entries["published ODE-flow"] = number(published["w2_ode_flow"], ".4f")
    return entries


def levels_table(levels: Levels) -> str:
    """Noise levels by the numbers of a score, with their 95 % intervals."""
    rows: Rows = {
        f"{level:g}": {
            column: cell(row[name], ".3g")
            for name, column in (
                ("relative_residual", "residual / rate"),
                ("antisymmetric_share", "antisymmetric share"),
                ("denoiser_antisymmetric_share", "of the denoiser"),
            )
        }
        for level, row in levels.items()
    }
    return table(rows, "noise level")


# ------------------------------------------------------------------ pictures


@drawing
def draw_laws(path: Path, family: str, studied: Sequence[Studied]) -> Path:
    """Write the truth and the induced laws of networks of the same data, the `family`, as
    densities, a row a network."""
    titles = ("truth", "SDE", "ODE", "flow, converged", "ODE − SDE")
    densities = [_densities(network) for network in studied]
    pitch = DENSITY + GAP + NOTE
    lefts = [EDGE + LABEL + place * (DENSITY + GAP) + SPLIT * (place > 3) for place in range(5)]
    title = f"{family}: what a network's samplers draw"
    page = Page(lefts[-1] + DENSITY + EDGE, title, _laws_caption(studied))
    page.extend(0.3 + len(studied) * pitch + 0.75)
    top = page.top + 0.3
    shades = np.concatenate([rho[rho > 0] for row in densities for rho in row if rho is not None])
    norm = PowerNorm(0.5, 0, float(np.percentile(shades, 99.5)))
    changes = [_density(each.found.ode) - _density(each.found.sde) for each in studied]
    signed_norm = change_norm([change[change != 0] for change in changes])
    for left, words in zip(lefts, titles, strict=True):
        page.text(left + DENSITY / 2, top - 0.08, words, ha="center", va="bottom")
    for place, (network, laws, change) in enumerate(zip(studied, densities, changes, strict=True)):
        height = top + place * pitch
        label = f"{network.label}\nmean R²\n{network.row['residual_box_mean']:.2g}"
        beside = {"ha": "right", "va": "center", "linespacing": 1.4}
        page.text(EDGE + LABEL - 0.12, height + DENSITY / 2, label, **beside)
        *notes, apart = _notes(network.row)
        for left, law, note in zip(lefts, laws, notes, strict=False):
            _draw_density(page, (left, height), law, note, norm, GREY)
        _draw_density(page, (lefts[-1], height), change, apart, signed_norm, SIGNED)
    bars = top + len(studied) * pitch + 0.12
    draw_bar(page, lefts[0], bars, norm, GREY, "density, per unit of area")
    draw_bar(page, lefts[-1] + DENSITY - 2.1, bars, signed_norm, SIGNED, "difference of densities")
    return page.save(path)


def _draw_density(
    page: Page,
    corner: tuple[float, float],
    density: np.ndarray | None,
    note: str,
    norm: Normalize,
    colours: str,
) -> None:
    """Draw a density from its top left corner, with a note under it; or say that it is unknown."""
    (left, top), small = corner, {"size": SMALL, "colour": FAINT, "ha": "center"}
    middle = left + DENSITY / 2
    if density is None:
        page.text(middle, top + DENSITY / 2, "not known", va="center", **small)
        return
    show(page.axes(left, top, DENSITY, DENSITY), density[::-1], norm, colours)  # y upwards
    page.text(middle, top + DENSITY + 0.05, note, va="top", **small)


def _densities(network: Studied) -> list[np.ndarray | None]:
    """The truth, and the laws of the SDE, of the ODE and of the flow."""
    found, truth = network.found, network.truth
    laws = (found.sde, found.ode, found.flow)
    return [None if truth is None else _density(truth), *map(_density, laws)]


def _density(counts: np.ndarray) -> np.ndarray:
    """A histogram in units of 1 / area."""
    return counts / counts.sum() / GRID.spacing**2


def _notes(row: Mapping[str, Any]) -> list[str]:
    far = [
        f"W₂ {row[f'w2_{law}_truth']:.3f} from truth" if f"w2_{law}_truth" in row else ""
        for law in ("sde", "ode", "flow")
    ]
    return ["", *far, f"W₂ {row['w2_sde_ode']:.3f} apart"]


def _laws_caption(studied: Sequence[Studied]) -> str:
    count, side = studied[0].row["samples"], GRID.half_width
    return (
        "Each row is one network, trained with weight w on the residual R of the Fokker-Planck "
        "equation. Truth: the law of its data. SDE and ODE: what its reverse SDE and its "
        "probability flow draw by Euler's rule, as the literature draws them. Flow: the law of the "
        "same flow by a converged rule, so that what it lacks of ODE is Euler's error. ODE − SDE: "
        "red where the ODE draws more, blue where less.\n"
        f"{count:,} samples of each law, counted in the square |x|, |y| ≤ {side:g}; dark is dense, "
        "by the square root, on one scale. W₂: exact transport distance of the histograms, which "
        "for two draws of one law is not 0 but falls with their number. Mean R²: over that square "
        "and all times."
    )


@drawing
def draw_residuals(path: Path, studied: Sequence[Studied]) -> Path:
    """Write the mean squared residual over time, a panel a data set, and against W_2^2."""
    groups = families(studied)
    colours = {label: _cycled(OKABE_ITO, i) for i, label in enumerate(_labels(studied))}
    page, panels = panels_of(
        len(groups) + 1,
        "How far networks are from the Fokker-Planck equation, and their samplers from each other",
        "Left: the mean of R², squared residual of a network in the log-density's equation, over "
        f"the square |x|, |y| ≤ {GRID.half_width:g} between two times; t = 0 is data. w: the "
        "weight of R² in training. Bands and bars: 95 % intervals.\nLast: the squared distance "
        "between what the reverse SDE and the ODE draw, against the mean of R² over all times, a "
        "point a network. W₂ holds the noise of finite samples, below which no gap can be seen.",
    )
    spans = []
    for axes, (family, members) in zip(panels, groups.items(), strict=False):
        spans += [_over_time(axes, network, colours[network.label]) for network in members]
        dress(axes, "time t", "mean of R²")
        _titled(axes, f"{family}: residual over time")
    for axes in panels[:-1]:
        low, high = min(span[0] for span in spans), max(span[1] for span in spans)
        axes.set_ylim(low / 2, high * 2)
    axes = panels[-1]
    for place, (family, members) in enumerate(groups.items()):
        for network in members:
            _against(axes, network, _cycled(MARKERS, place), colours[network.label])
        axes.plot([], [], _cycled(MARKERS, place), color=FAINT, markersize=5, label=family)
    axes.set(xscale="log", yscale="log")
    _read_in_full(axes)
    dress(axes, "mean of R² over all times", "W₂² between SDE and ODE")
    _titled(axes, "Gap against residual, colours as left")
    return page.save(path)


@drawing
def draw_levels(
    path: Path, levels: Levels, *, title: str, count: int, trace: Literal["exact"] | int
) -> Path:
    """Write how well a score obeys its equations, over noise levels.

    Args:
        levels: the numbers by noise level.
        count: points a level.
        trace: how traces were taken: exactly, or by so many random probes a point.
    """
    probes = f" Traces are estimated by random probes ({trace} a point), which raises the residual."
    page, (first, second) = panels_of(
        2,
        title,
        "The score of noised data obeys an equation in time (left) and is the gradient of a "
        "log-density (right); a network only approximately. Left: what is left over of the "
        "equation, relative to the rate at which the score changes: 0 is obeyed, 1 as wrong as "
        "that rate is large. Right: the share of the Jacobian that is antisymmetric, |A| / |J| in "
        "Frobenius norms, A = (J − Jᵀ) / 2: 0 for a gradient. The denoiser's share does not hide "
        "behind the identity that rules the score's Jacobian at high noise.\n"
        f"Root mean squares over {count} noised images a level, the same images and noise at each; "
        f"bands: 95 % intervals." + ("" if trace == "exact" else probes),
    )
    for axes, name, label, place in (
        (first, "relative_residual", "", 0),
        (second, "antisymmetric_share", "of the score", 0),
        (second, "denoiser_antisymmetric_share", "of the denoiser", 1),
    ):
        estimates = np.array([row[name] for row in levels.values()])
        _curve(axes, np.array([*levels]), estimates, OKABE_ITO[place], label, MARKERS[place])
    first.axhline(1, color=FAINT, linewidth=0.8, linestyle=DASH)
    for axes, heading, y_label in (
        (first, "Residual of the score's equation", "residual / rate of change"),
        (second, "Antisymmetric part of the Jacobian", "share |A| / |J|"),
    ):
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        dress(axes, "noise level τ", y_label)
        _titled(axes, heading)
    return page.save(path)


# ------------------------------------------------------------------ panels


def _over_time(axes: Axes, network: Studied, colour: str) -> tuple[float, float]:
    """Fill in the residual's profile of one network; the least and the greatest mean."""
    profile = network.row["residual_by_time"]
    edges, means = np.array(profile["edges"]), np.array(profile["mean"])
    _curve(axes, np.sqrt(edges[:-1] * edges[1:]), means, colour, network.label)
    axes.set(xscale="log", yscale="log", xlim=(edges[0], edges[-1]))
    return float(means[:, 0].min()), float(means[:, 0].max())


def _curve(
    axes: Axes, x: np.ndarray, estimates: np.ndarray, colour: str, label: str, marker: str = ""
) -> None:
    """Fill in numbers `(value, low, high)` with their band."""
    value, low, high = estimates.T
    axes.fill_between(x, np.maximum(low, value / 20), high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, value, color=colour, label=label, marker=marker, markersize=4, linewidth=1.4)


def _against(axes: Axes, network: Studied, marker: str, colour: str) -> None:
    """Fill in the point of one network."""
    row = network.row
    x, y = row["residual_box_mean"], row["w2_sde_ode"] ** 2
    ends = np.array([row["residual_box_mean_interval"], np.square(row["w2_sde_ode_interval"])])
    ends = np.maximum(ends, [[x / 20], [y / 20]])  # an end at 0 has no place on a logarithmic axis
    x_error, y_error = np.abs(ends - [[x], [y]])[..., None]
    style = {"fmt": marker, "color": colour, "markersize": 6, "linewidth": 1.2}
    axes.errorbar(x, y, xerr=x_error, yerr=y_error, **style)


def _read_in_full(axes: Axes) -> None:
    """Give logarithmic axes room, and label y at 1, 2 and 5 too: it may span less than a power of
    10."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    axes.set(xlim=(left / 3, right * 3), ylim=(low / 1.5, high * 1.5))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _titled(axes: Axes, title: str) -> None:
    """A title, and a legend below it in one line or, where that is too long, within the axes."""
    names = axes.get_legend_handles_labels()[1]
    if names and sum(len(name) + 6 for name in names) <= 60:
        head(axes, title)
        return
    axes.set_title(title, fontsize=BODY, color=INK, loc="left", pad=18)
    if names:
        axes.legend(fontsize=SMALL, frameon=False, loc="best", handlelength=1.4)


def _labels(studied: Sequence[Studied]) -> list[str]:
    """Labels of networks, by weight."""
    order = sorted(studied, key=lambda network: (network.weight is None, network.weight or 0.0))
    return list(dict.fromkeys(network.label for network in order))


def _cycled(choices: Sequence[str], place: int) -> str:
    return choices[place % len(choices)]

"""The tables and the picture of predictions against training on halves of the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scoresens._files import replacing
from scoresens.report._matplotlib import drawing
from scoresens.report._plots import BODY, DASH, FAINT, INK, OKABE_ITO, SMALL, draw_intervals, dress
from scoresens.report.tables import cell, table

Result = Mapping[str, Any]
COLUMNS = {"displacement": ("lds", "pearson", "cosine", "l2", "size"), "loss": ("lds", "pearson")}
WHAT = {
    "displacement": "How each sample moves",
    "loss": "How the denoising loss at each query changes",
}
SHARED = "the effect that seeds share"
ANOTHER = "another seed's training"


def ranked(result: Result, target: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The methods of a target with what is known of them, the best LDS first."""
    return sorted(result[target]["methods"].items(), key=lambda item: -item[1]["chosen"]["lds"][0])


def halves_table(result: Result) -> str:
    """Both targets, a method a line; settings chosen on other halves than these, and defaults."""
    parts = []
    for target, measures in COLUMNS.items():
        ceiling = result[target]["ceiling"]
        rows = {}
        for method, row in ranked(result, target):
            rows[method] = {"setting": row["setting"]}
            rows[method] |= {measure: cell(row["chosen"][measure]) for measure in measures}
            if ceiling:
                rows[method]["of ceiling"] = _share(row["chosen"], ceiling)
            if "default" in row:
                measured = {m: cell(row["default"][m]) for m in ("lds", "pearson")}
                rows[method] |= {f"default {m}": found for m, found in measured.items()}
                if ceiling:
                    rows[method]["default of ceiling"] = _share(row["default"], ceiling)
        if ceiling:
            for name, ending in ((SHARED, ""), (ANOTHER, "_of_another_seed")):
                rows[name] = {m: cell(ceiling[m + ending]) for m in ("lds", "pearson")}
        parts.append(table(rows, target))
    return "\n\n".join(parts)


def _share(measured: Mapping[str, Any], ceiling: Mapping[str, Any]) -> str:
    highest = ceiling["pearson"][0]
    return f"{measured['pearson'][0] / (highest if highest > 0 else float('nan')):.0%}"


@drawing
def draw_halves(path: Path, result: Result, *, title: str) -> Path:
    """Write LDS and Pearson's correlation of every method, and their ceilings, from the `result`
    that the command writes."""
    most = max(len(result[target]["methods"]) for target in COLUMNS)
    figure = Figure(figsize=(13.2, 1.7 + 0.34 * most), layout="constrained")
    figure.suptitle(f"Predicted and real effect of training on half of the data\n{title}",
                    x=0.01, ha="left", fontsize=BODY + 2, color=INK)  # fmt: skip
    for axes, target in zip(figure.subplots(1, len(COLUMNS)), COLUMNS, strict=True):
        _panel(axes, result, target)
    figure.text(
        0.01, -0.01,
        "LDS: rank correlation over halves, the mean over queries (displacements: along principal "
        "components). Pearson: of all numbers pooled, each centred over halves. 95 % intervals "
        "over halves and queries.\nSettings chosen on other halves. Dashed: what the effect that "
        "all seeds share would reach against one seed (blue LDS, orange Pearson), the ceiling.",
        fontsize=SMALL, color=FAINT, va="top",
    )  # fmt: skip
    with replacing(path) as beside:
        figure.savefig(beside, dpi=150, format="png", bbox_inches="tight", pad_inches=0.25)
    return path


def _panel(axes: Axes, result: Result, target: str) -> None:
    methods, ceiling = ranked(result, target), result[target]["ceiling"]
    series = {"LDS": "lds", "Pearson": "pearson"}
    values = {name: [row["chosen"][m] for _, row in methods] for name, m in series.items()}
    draw_intervals(axes, values, [f"{method}, {row['setting']}" for method, row in methods])
    if ceiling:
        for place, measure in enumerate(series.values()):
            axes.axvline(ceiling[measure][0], color=OKABE_ITO[place], linewidth=0.9, linestyle=DASH)
    dress(axes, "correlation with the truth", "")
    axes.set_title(WHAT[target], fontsize=BODY, color=INK, loc="left")
    axes.legend(fontsize=SMALL, edgecolor="none", framealpha=1, loc="lower right")

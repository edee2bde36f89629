"""What a run found, in tables and in pictures that need no code to be understood."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from scoresens.report.page import Column, draw_sheet
from scoresens.report.plots import FRAME, OKABE_ITO, Dots, Scatter
from scoresens.statistics.displacements import (
    Batch,
    Images,
    Named,
    looks_like,
    nearest,
    norms,
    ordinal,
    spread,
)

Rows = Mapping[str, Mapping[str, str]]

SHOWN = 8  # rows of a picture
NEIGHBOURS = 3
NAMES = {
    "counterfactual_data": "counterfactual (data)",
    "counterfactual_model": "counterfactual (model)",
    "counterfactual_sharp": "counterfactual (sharp)",
    "first_order_data": "first order (data)",
    "first_order_model": "first order (model)",
    "first_order_sharp": "first order (sharp)",
    "class_mean": "toward class mean",
    "another_finetuning": "another fine-tuning",
    "another_seed": "another seed's training",
}
MEASURES = {
    "median_cosine": "median cosine",
    "pooled_pearson": "pooled Pearson",
    "relative_l2": "relative L2",
    "magnitude_ratio": "magnitude ratio",
    "magnitude_spearman": "magnitude Spearman",
}


# ------------------------------------------------------------------ tables


def table(rows: Rows, corner: str = "") -> str:
    """Rows and columns of text, aligned: names to the left, entries to the right.

    >>> print(table({"a": {"norm": "1.50", "cosine": "0.9"}, "bcd": {"norm": "12.00"}}))
          norm  cosine
    ---  -----  ------
    a     1.50     0.9
    bcd  12.00

    Args:
        rows: entries by column, by row; the first row names the columns.
        corner: what stands over the names.
    """
    columns = list(next(iter(rows.values())))
    lines = [[corner, *columns]]
    lines += [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def validation_table(results: Mapping[str, Mapping[str, Sequence[float | None]]]) -> str:
    """Methods by measures, each `value [low, high]`, from `(value, low, high)`."""
    return table(
        {
            method: {MEASURES.get(name, name): interval(*found) for name, found in row.items()}
            for method, row in results.items()
        },
        "method",
    )


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A number with its interval, `value [low, high]`."""
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"


# ------------------------------------------------------------------ pictures


def draw_demo(
    path: Path,
    data: Named,
    touched: np.ndarray,
    before: Batch,
    first_order: Batch,
    after: Batch,
    *,
    count: int,
    title: str,
    remark: str,
) -> Path:
    """Write samples before, their first-order change, the counterfactual samples, and the touched
    images nearest to them.

    Args:
        path: the PNG file.
        data: the training data.
        touched: `[N]` mask of the images whose weight changes.
        before: `[M, *shape]` samples.
        first_order: `[M, *shape]`, mass times the derivative.
        after: `[M, *shape]` counterfactual samples.
        count: how many of the samples to show.
        title: of the picture.
        remark: a sentence or two for the caption.
    """
    finite = after - before
    rows = spread(norms(finite), count)
    labels = _became(_labels(rows, norms(finite)), before[rows], after[rows], data)
    columns = [
        Column("before", before[rows]),
        Column("first-order\nchange", first_order[rows], True, _sizes(first_order[rows]), True),
        Column("counterfactual\nchange", finite[rows], True, _sizes(finite[rows])),
        Column("counterfactual\nsample", after[rows], split=True),
        *_neighbours(after[rows], data.images[touched], "nearest\nadded"),
    ]
    caption = (
        "Each row starts from one draw of noise. Before: what the model makes of it. First-order "
        "change: mass times the derivative of the sample with respect to the training data. "
        "Counterfactual: what the model would make of the same noise, had it been trained on the "
        "changed data. Nearest added: the training images of the added class closest to the "
        "counterfactual sample. Red: darker than before, blue: lighter; the numbers are Euclidean "
        f"norms.\n{_rows(rows, before)}, labelled with the class of the nearest training image "
        f"before → after. {remark}"
    )
    return draw_sheet(path, columns, labels, title=title, caption=caption, values=data.images)


def draw_strip(
    path: Path,
    data: Named,
    touched: np.ndarray,
    before: Batch,
    after: Float[np.ndarray, "M E *shape"],
    masses: Sequence[float],
    *,
    sizes: Float[np.ndarray, "M"],
    count: int,
    title: str,
    verb: str,
    bounded: Int[np.ndarray, "M E"] | None = None,
    remark: str = "",
) -> Path:
    """Write samples before and after a change of the data that grows from left to right.

    Args:
        path: the PNG file.
        data: the training data.
        touched: `[N]` mask of the images whose weight changes.
        before: `[M, *shape]` samples.
        after: `[M, E, *shape]` counterfactual samples.
        masses: `[E]`, rising.
        sizes: `[M]`, how far each sample moves, by which it is ranked.
        count: how many of the samples to show.
        title: of the picture.
        verb: what happens to the touched images: "added", "removed", "moved".
        bounded: `[M, E]`, at how many steps a removal asked for more than there was.
        remark: a sentence or two for the caption.
    """
    rows = spread(sizes, count)
    shown, start, end = after[rows], before[rows], after[rows, -1]
    steps = np.zeros(shown.shape[:2], int) if bounded is None else bounded[rows]
    columns = [Column("before", start)]
    for place, mass in enumerate(masses):
        x = shown[:, place]
        marks = [" *" * bool(count) for count in steps[:, place]]
        notes = list(map("".join, zip(_sizes(x - start), marks, strict=True)))
        differs = looks_like(x, data) != looks_like(start, data)
        frames = [OKABE_ITO[1] if other else FRAME for other in differs]
        columns.append(Column(f"mass\n{mass:g}", x, False, notes, not place, frames))
    near = end if verb == "added" else start
    columns += _neighbours(near, data.images[touched], f"nearest\n{verb}")
    mass = "the share that is new" if verb == "added" else "the part of the change that is made"
    caption = (
        "Each row starts from one draw of noise. Before: what the model makes of it. Then: what it "
        f"would make of the same noise, had its training data changed. Mass: {mass}. Below each "
        "sample, how far it is from before (Euclidean norm, grey values). Orange: it has come to "
        "look like another class, that of its nearest training image.\n"
        f"{_rows(rows, before)}, labelled with that class before → at the last mass. {remark}"
    )
    if steps.any():
        caption += "* bounded: the removal asked for more than there is."
    labels = _became(_labels(rows, sizes), start, end, data)
    return draw_sheet(path, columns, labels, title=title, caption=caption, values=data.images)


def draw_sensitivity(
    path: Path,
    data: Named,
    touched: np.ndarray,
    x: Batch,
    change: Batch,
    *,
    title: str,
    verb: str,
    log_density: Float[np.ndarray, "M"] | None = None,
) -> Path:
    """Write samples, their first-order change, both together, and the touched images nearest.

    Args:
        path: the PNG file.
        data: the training data.
        touched: `[N]` mask of the images whose weight changes.
        x: `[M, *shape]` samples.
        change: `[M, *shape]`, mass times the derivative.
        title: of the picture.
        verb: what happens to the touched images, "added" or "removed".
        log_density: `[M]` nats, if known.
    """
    rows = spread(norms(change), SHOWN)
    labels = _labels(rows, norms(change))
    if log_density is not None:
        labels = [
            f"{label}\nlog p = {log_density[i]:.0f}" for label, i in zip(labels, rows, strict=True)
        ]
    columns = [
        Column("sample", x[rows]),
        Column("first-order\nchange", change[rows], True, _sizes(change[rows])),
        Column("sample\n+ change", x[rows] + change[rows]),
        *_neighbours(x[rows], data.images[touched], f"nearest\n{verb}"),
    ]
    caption = (
        "First-order change: mass times the derivative of the sample with respect to the training "
        "data, the noise held fixed. Red: darker than before, blue: lighter; the numbers are "
        f"Euclidean norms. Nearest {verb}: the training images whose weight changes, closest to "
        f"the sample.\n{_rows(rows, x)}."
    )
    return draw_sheet(path, columns, labels, title=title, caption=caption, values=data.images)


def draw_validation(
    path: Path,
    values: Images,
    predicted: Mapping[str, Batch],
    before: Batch,
    control: Batch,
    changed: Batch,
    real: Batch,
    results: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str,
    trained: str,
) -> Path:
    """Write predicted beside real changes of the same samples, and how well they agree.

    Args:
        path: the PNG file.
        values: images that the grey map should span.
        predicted: displacements `[M, *shape]` by method; one is `counterfactual_data`, one
            `first_order_data`.
        before: `[M, *shape]` samples of the checkpoint.
        control: `[M, *shape]`, after one fine-tuning on the unchanged data.
        changed: `[M, *shape]`, after its twin on the changed data.
        real: `[M, *shape]`, the change that counts as true: changed - control, or a mean of such.
        results: `(value, low, high)` by measure, by method, from `scoresens.validation.compare`.
        title: of the picture.
        trained: what was trained on the changed and on the unchanged data, for the caption.
    """
    first, finite = predicted["first_order_data"], predicted["counterfactual_data"]
    rows = spread(norms(real), SHOWN)
    columns = [
        Column("before", before[rows]),
        Column("predicted\nafter", before[rows] + finite[rows]),
        Column("control", control[rows], split=True),
        Column("really\nafter", changed[rows]),
        Column("first-order\nchange", first[rows], True, _sizes(first[rows]), True),
        Column("predicted\nchange", finite[rows], True, _sizes(finite[rows])),
        Column("real\nchange", real[rows], True, _sizes(real[rows])),
    ]
    names = {method: NAMES.get(method, method.replace("_", " ")) for method in results}
    short = {name: words.removesuffix(" (data)") for name, words in names.items()}
    sizes = {
        f"{short[method]}, ρ = {_number(results[method]['magnitude_spearman'][0])}": (
            norms(real),
            norms(predicted[method]),
        )
        for method in ("counterfactual_data", "first_order_data")
    }
    pearson = _number(results["counterfactual_data"]["pooled_pearson"][0])
    panels = [
        Dots(
            "Agreement with the real change",
            "1 is perfect; 95 % bootstrap intervals",
            {
                MEASURES[measure]: [row[measure] for row in results.values()]
                for measure in ("median_cosine", "pooled_pearson", "magnitude_spearman")
            },
            list(names.values()),
        ),
        Scatter(
            "How far each sample moves (ρ: Spearman)",
            "real norm",
            "predicted norm",
            sizes,
            logarithmic=True,
        ),
        Scatter(
            "Every entry of every change (r: Pearson)",
            "real change",
            "predicted change",
            {f"{short['counterfactual_data']}, r = {pearson}": (real, finite)},
        ),
    ]
    caption = (
        "Each row is one draw of noise. Predicted, by the counterfactual, without training: before "
        f"→ predicted after. Real: {trained} on the changed data, against a control on the "
        "unchanged data with the same randomness. Real change: really after minus control, "
        "averaged where there are several pairs. Red: darker, blue: lighter; the "
        "numbers are Euclidean norms.\n"
        f"{_rows(rows, real)}. Dashed: prediction equal to truth."
    )
    return draw_sheet(
        path,
        columns,
        _labels(rows, norms(real)),
        title=title,
        caption=caption,
        values=values,
        panels=panels,
    )


def _became(labels: Sequence[str], before: Batch, after: Batch, data: Named) -> list[str]:
    """Labels with the class that each sample looks like, before → after."""
    looks = [looks_like(x, data) for x in (before, after)]
    names = data.class_names
    return [
        f"{label}\n{names[was]} → {names[now]}"
        for label, was, now in zip(labels, *looks, strict=True)
    ]


def _neighbours(x: Batch, images: Images, title: str) -> list[Column]:
    """Columns of the images nearest to each sample, the nearest first; none if there are none."""
    if not len(images):
        return []
    found = nearest(x, images, NEIGHBOURS).T
    titles = [title, *(f"{ordinal(n)}\nnearest" for n in range(2, len(found) + 1))]
    return [
        Column(name, images[index], split=not place)
        for place, (name, index) in enumerate(zip(titles, found, strict=True))
    ]


def _labels(rows: np.ndarray, sizes: Float[np.ndarray, "M"]) -> list[str]:
    """The number of each sample shown, and its rank by how far it moves."""
    ranks = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")
    return [f"sample {i}\nrank {ranks[i] + 1}" for i in rows]


def _rows(rows: np.ndarray, drawn: Batch) -> str:
    return (
        f"Rows: {len(rows)} of {len(drawn)} samples, from the one that moves most (rank 1) to the "
        "one that moves least"
    )


def _sizes(changes: Batch) -> list[str]:
    return [f"{size:.2f}" for size in norms(changes)]

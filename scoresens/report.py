"""What a run found, in tables and in pictures that need no code to be understood."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scoresens.drawing import Column, Dots, Scatter, draw_sheet

Batch = Float[np.ndarray, "M *shape"]
Images = Float[np.ndarray, "N *shape"]
Rows = Mapping[str, Mapping[str, str]]

SHOWN = 8  # rows of a picture
NEIGHBOURS = 3
NAMES = {
    "first_order_model": "first order (model)",
    "first_order_data": "first order (data)",
    "counterfactual_data": "counterfactual",
    "class_mean": "toward class mean",
    "another_finetuning": "another fine-tuning",
}
MEASURES = {
    "median_cosine": "median cosine",
    "pooled_pearson": "pooled Pearson",
    "relative_l2": "relative L2",
    "magnitude_ratio": "magnitude ratio",
    "magnitude_spearman": "magnitude Spearman",
}


class Named(NamedTuple):
    """Images and the names of their classes, as pictures need them."""

    images: Images
    labels: Int[np.ndarray, "N"]
    class_names: tuple[str, ...]


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
            method: {MEASURES.get(name, name): _interval(*found) for name, found in row.items()}
            for method, row in results.items()
        },
        "method",
    )


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"


# ------------------------------------------------------------------ numbers


def norms(changes: Batch) -> Float[np.ndarray, "M"]:
    """The Euclidean norm of each change."""
    return np.linalg.norm(_flat(changes), axis=1)


def cosines(a: Batch, b: Batch) -> Float[np.ndarray, "M"]:
    """The cosine between each pair of changes; 0 where one of them is 0."""
    sizes = norms(a) * norms(b)
    inner = np.sum(_flat(a) * _flat(b), 1)
    return np.divide(inner, sizes, out=np.zeros(len(sizes)), where=sizes > 0)


def nearest(x: Batch, images: Images, count: int) -> np.ndarray:
    """Indices `[M, count]` of the images nearest to each sample, nearest first; fewer if there are
    fewer images."""
    flat, among = _flat(x), _flat(images)
    squares = np.sum(among**2, 1) - 2 * flat @ among.T  # but for |x|^2, which ranks nothing
    return np.argsort(squares, axis=1, kind="stable")[:, :count]


def spread(sizes: Float[np.ndarray, "M"], count: int) -> np.ndarray:
    """Indices of the samples to show, from the one that moves most to the one that moves least.

    Their ranks grow geometrically (1, 2, 4, ... 128): few samples move far, and most hardly at all.
    """
    order = np.argsort(-sizes, kind="stable")
    ranks = np.unique(np.geomspace(1, len(sizes), min(count, len(sizes))).round().astype(int)) - 1
    others = np.setdiff1d(np.arange(len(sizes)), ranks)[: min(count, len(sizes)) - len(ranks)]
    return order[np.sort(np.concatenate([ranks, others]))]


def _flat(x: Batch) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(len(x), -1)


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
    looks = [_looks_like(x, data) for x in (before[rows], after[rows])]
    kinds = [f"\n{b} → {a}" for b, a in zip(*looks, strict=True)]
    labels = [label + kind for label, kind in zip(_labels(rows, finite), kinds, strict=True)]
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
    labels = _labels(rows, change)
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
    sizes = {
        f"{names[method]}, ρ = {_number(results[method]['magnitude_spearman'][0])}": (
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
            {f"{names['counterfactual_data']}, r = {pearson}": (real, finite)},
        ),
    ]
    caption = (
        "Each row is one draw of noise. Predicted, by the counterfactual, without training: before "
        "→ predicted after. Real: the checkpoint fine-tuned on the changed data, against a control "
        "fine-tuned on the unchanged data with the same randomness. Real change: really after "
        "minus control, averaged where there are several pairs. Red: darker, blue: lighter; the "
        "numbers are Euclidean norms.\n"
        f"{_rows(rows, real)}. Dashed: prediction equal to truth."
    )
    return draw_sheet(
        path,
        columns,
        _labels(rows, real),
        title=title,
        caption=caption,
        values=values,
        panels=panels,
    )


def looks_like(x: Batch, data: Named) -> Int[np.ndarray, "M"]:
    """The class of the training image nearest to each sample."""
    return data.labels[nearest(x, data.images, 1)[:, 0]]


def _looks_like(x: Batch, data: Named) -> list[str]:
    return [data.class_names[label] for label in looks_like(x, data)]


def _neighbours(x: Batch, images: Images, title: str) -> list[Column]:
    """Columns of the images nearest to each sample, the nearest first."""
    found = nearest(x, images, NEIGHBOURS).T
    titles = [title, *(f"{_ordinal(n)}\nnearest" for n in range(2, len(found) + 1))]
    return [
        Column(name, images[index], split=not place)
        for place, (name, index) in enumerate(zip(titles, found, strict=True))
    ]


def _ordinal(n: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(n, f"{n}th")


def _labels(rows: np.ndarray, changes: Batch) -> list[str]:
    """The number of each sample shown, and its rank by how far it moves."""
    ranks = np.argsort(np.argsort(-norms(changes), kind="stable"), kind="stable")
    return [f"sample {i}\nrank {ranks[i] + 1}" for i in rows]


def _rows(rows: np.ndarray, drawn: Batch) -> str:
    return (
        f"Rows: {len(rows)} of {len(drawn)} samples, from the one that moves most (rank 1) to the "
        "one that moves least"
    )


def _sizes(changes: Batch) -> list[str]:
    return [f"{size:.2f}" for size in norms(changes)]

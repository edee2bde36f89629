"""Samples before and after a change of the data, in pictures that need no code to be understood."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scoresens.datasets.forms import IMAGES, Form
from scoresens.report._plots import FRAME, OKABE_ITO, Dots, Scatter
from scoresens.report.page import Column, draw_sheet
from scoresens.report.tables import MEASURES, NAMES, number
from scoresens.statistics.displacements import (
    Batch,
    Images,
    Named,
    class_names,
    looks_like,
    nearest,
    norms,
    ordinal,
    spread,
)
from scoresens.statistics.estimates import Estimate

SHOWN = 8  # rows of a picture
NEIGHBOURS = 3


class Touched(NamedTuple):
    """Training data, and which images a change of theirs touches.

    Args:
        data: all images.
        mask: `[N]`, true for those whose weight or place changes.
        verb: what happens to them: "added", "removed", "moved".
    """

    data: Named
    mask: np.ndarray
    verb: str = "added"

    @property
    def images(self) -> Images:
        """The touched ones."""
        return self.data.images[self.mask]


class Strip(NamedTuple):
    """Samples before and after a change of the data at E masses.

    Args:
        before: `[M, *shape]` samples.
        after: `[M, E, *shape]` counterfactual samples.
        masses: `[E]`, rising.
        sizes: `[M]`, how far each sample moves, by which it is ranked.
        bounded: `[M, E]`, at how many steps a removal asked for more than there was.
        cosine: `[M]`, what the cosine with a real displacement at the last mass is above, if known.
    """

    before: Batch
    after: Float[np.ndarray, "M E *shape"]
    masses: Sequence[float]
    sizes: Float[np.ndarray, "M"]
    bounded: Int[np.ndarray, "M E"] | None = None
    cosine: Float[np.ndarray, "M"] | None = None


def draw_demo(
    path: Path,
    touched: Touched,
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
        touched: the training data, and what changes in them.
        before: `[M, *shape]` samples.
        first_order: `[M, *shape]`, mass times the derivative.
        after: `[M, *shape]` counterfactual samples.
        count: how many of the samples to show.
        remark: a sentence or two for the caption.
    """
    finite, data, form = after - before, touched.data, touched.data.form
    rows = spread(norms(finite), count)
    labels = _became(_labels(rows, norms(finite)), before[rows], after[rows], data)
    columns = [
        Column("before", before[rows]),
        Column("first-order\nchange", first_order[rows], True, _sizes(first_order[rows]), True),
        Column("counterfactual\nchange", finite[rows], True, _sizes(finite[rows])),
        Column("counterfactual\nsample", after[rows], split=True),
        *_neighbours(after[rows], touched.images, "nearest\nadded"),
    ]
    caption = (
        "Each row starts from one draw of noise. Before: what the model makes of it. First-order "
        "change: mass times the derivative of the sample with respect to the training data. "
        "Counterfactual: what the model would make of the same noise, had it been trained on the "
        f"changed data. Nearest added: the training {form.nouns} "
        f"{'of the added class' if data.labelled else 'that are added,'} closest to the "
        f"counterfactual sample. {_colours(form, ' than before')}\n{_rows(rows, before)}"
        f"{_labelled(data)}. {remark}"
    )
    return _sheet(path, columns, labels, data, title=title, caption=caption)


def draw_strip(
    path: Path, touched: Touched, strip: Strip, *, count: int, title: str, remark: str = ""
) -> Path:
    """Write samples before and after a change of the data that grows from left to right.

    Args:
        touched: the training data, and what changes in them.
        strip: the samples.
        count: how many of the samples to show.
        remark: a sentence or two for the caption.
    """
    data, sizes, verb, form = touched.data, strip.sizes, touched.verb, touched.data.form
    rows = spread(sizes, count)
    shown, start, end = strip.after[rows], strip.before[rows], strip.after[rows, -1]
    steps = np.zeros(shown.shape[:2], int) if strip.bounded is None else strip.bounded[rows]
    columns = [Column("before", start)]
    for place, mass in enumerate(strip.masses):
        x = shown[:, place]
        marks = [" *" * bool(count) for count in steps[:, place]]
        notes = list(map("".join, zip(_sizes(x - start), marks, strict=True)))
        differs = looks_like(x, data) != looks_like(start, data)
        frames = [OKABE_ITO[1] if other else FRAME for other in differs]
        columns.append(Column(f"mass\n{mass:g}", x, False, notes, not place, frames))
    near = end if verb == "added" else start
    columns += _neighbours(near, touched.images, f"nearest\n{verb}")
    mass = "the share that is new" if verb == "added" else "the part of the change that is made"
    caption = (
        "Each row starts from one draw of noise. Before: what the model makes of it. Then: what it "
        f"would make of the same noise, had its training data changed. Mass: {mass}. Below each "
        f"sample, how far it is from before (Euclidean norm, {form.unit}).{_turned(data)}\n"
        f"{_rows(rows, strip.before)}"
        f"{', labelled with that class before → at the last mass' * data.labelled}. {remark}"
    )
    labels = _became(_labels(rows, sizes), start, end, data)
    if strip.cosine is not None:
        known = zip(labels, strip.cosine[rows], strict=True)
        labels = [f"{label}\ncos > {bound:.2f}" for label, bound in known]
        caption += (
            "cos: what the cosine of the last displacement with that of fine-tuning is above, with "
            "90 %. "
        )
    if steps.any():
        caption += "* bounded: the removal asked for more than there is."
    return _sheet(path, columns, labels, data, title=title, caption=caption)


def draw_sensitivity(
    path: Path,
    touched: Touched,
    x: Batch,
    change: Batch,
    *,
    title: str,
    log_density: Float[np.ndarray, "M"] | None = None,
) -> Path:
    """Write samples, their first-order change, both together, and the touched images nearest.

    Args:
        touched: the training data, and what changes in them.
        x: `[M, *shape]` samples.
        change: `[M, *shape]`, mass times the derivative.
        log_density: `[M]` nats, if known.
    """
    rows, form = spread(norms(change), SHOWN), touched.data.form
    labels = _labels(rows, norms(change))
    if log_density is not None:
        known = zip(labels, log_density[rows], strict=True)
        labels = [f"{label}\nlog p = {density:.0f}" for label, density in known]
    columns = [
        Column("sample", x[rows]),
        Column("first-order\nchange", change[rows], True, _sizes(change[rows])),
        Column("sample\n+ change", x[rows] + change[rows]),
        *_neighbours(x[rows], touched.images, f"nearest\n{touched.verb}"),
    ]
    caption = (
        "First-order change: mass times the derivative of the sample with respect to the training "
        f"data, the noise held fixed. {_colours(form, ' than before')} Nearest {touched.verb}: the "
        f"training {form.nouns} whose weight changes, closest to the sample.\n{_rows(rows, x)}."
    )
    return _sheet(path, columns, labels, touched.data, title=title, caption=caption)


class Comparison(NamedTuple):
    """Predicted beside real changes of the same M samples.

    Args:
        before: samples of the checkpoint.
        control: after training on the unchanged data.
        changed: after its twin on the changed data.
        real: the change that counts as true: changed - control, or a mean of such.
        predicted: changes by method; one is `counterfactual_data`, one `first_order_data`.
        results: measures by method, from `scoresens.studies.compare`.
    """

    before: Batch
    control: Batch
    changed: Batch
    real: Batch
    predicted: Mapping[str, Batch]
    results: Mapping[str, Mapping[str, Estimate]]


def draw_validation(
    path: Path,
    values: Images,
    found: Comparison,
    *,
    title: str,
    trained: str,
    form: Form = IMAGES,
) -> Path:
    """Write predicted beside real changes of the same samples, and how well they agree.

    Args:
        values: samples that the scales should span.
        found: what there is to show.
        trained: what was trained on the changed and on the unchanged data, for the caption.
        form: what one sample is.
    """
    first, finite = (found.predicted[f"{kind}_data"] for kind in ("first_order", "counterfactual"))
    before, real = found.before, found.real
    rows = spread(norms(real), SHOWN)
    columns = [
        Column("before", before[rows]),
        Column("predicted\nafter", before[rows] + finite[rows]),
        Column("control", found.control[rows], split=True),
        Column("really\nafter", found.changed[rows]),
        Column("first-order\nchange", first[rows], True, _sizes(first[rows]), True),
        Column("predicted\nchange", finite[rows], True, _sizes(finite[rows])),
        Column("real\nchange", real[rows], True, _sizes(real[rows])),
    ]
    caption = (
        "Each row is one draw of noise. Predicted, by the counterfactual, without training: before "
        f"→ predicted after. Real: {trained} on the changed data, against a control on the "
        "unchanged data with the same randomness. Real change: really after minus control, "
        f"averaged where there are several pairs. {_colours(form)}\n"
        f"{_rows(rows, real)}. Dashed: prediction equal to truth."
    )
    words: dict[str, Any] = {"title": title, "caption": caption, "values": values, "form": form}
    labels = _labels(rows, norms(real))
    return draw_sheet(path, columns, labels, beside=_agreement(found), **words)


def _agreement(found: Comparison) -> list[Dots | Scatter]:
    """How well predicted changes agree with the real ones: measures, norms, entries."""
    real, predicted, results = found.real, found.predicted, found.results
    names = {method: NAMES.get(method, method.replace("_", " ")) for method in results}
    short = {name: words.removesuffix(" (data)") for name, words in names.items()}
    sizes = {
        f"{short[method]}, ρ = {number(results[method]['magnitude_spearman'].value)}": (
            norms(real),
            norms(predicted[method]),
        )
        for method in ("counterfactual_data", "first_order_data")
    }
    pearson = number(results["counterfactual_data"]["pooled_pearson"].value)
    entries = (real, predicted["counterfactual_data"])
    measures = ("median_cosine", "pooled_pearson", "magnitude_spearman")
    return [
        Dots(
            "Agreement with the real change",
            "1 is perfect; 95 % bootstrap intervals",
            {MEASURES[name]: [row[name] for row in results.values()] for name in measures},
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
            {f"{short['counterfactual_data']}, r = {pearson}": entries},
        ),
    ]


def _sheet(
    path: Path, columns: Sequence[Column], labels: Sequence[str], data: Named, **words: Any
) -> Path:
    return draw_sheet(path, columns, labels, values=data.images, form=data.form, **words)


def _colours(form: Form, than: str = "") -> str:
    """How changes and their numbers are to be read."""
    if form.kind == "images":
        return f"Red: darker{than}, blue: lighter; the numbers are Euclidean norms."
    return f"The numbers below changes are Euclidean norms, in {form.unit}."


def _labelled(data: Named) -> str:
    nearest_one = f"the nearest training {data.form.noun}"
    return f", labelled with the class of {nearest_one} before → after" * data.labelled


def _turned(data: Named) -> str:
    looks = f"look like another class, that of its nearest training {data.form.noun}"
    return f" Orange: it has come to {looks}." * data.labelled


def _became(labels: Sequence[str], before: Batch, after: Batch, data: Named) -> list[str]:
    """Labels with the class that each sample looks like, before → after."""
    if not data.labelled:
        return list(labels)
    looks = [class_names(x, data) for x in (before, after)]
    return [f"{label}\n{was} → {now}" for label, was, now in zip(labels, *looks, strict=True)]


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

"""What training images do to samples, drawn: the most helpful, the most harmful, and where."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scoresens.report._plots import OKABE_ITO, Curves
from scoresens.report.page import Column, draw_sheet
from scoresens.statistics.displacements import Batch, Named, ordinal

HELPFUL, HARMFUL = OKABE_ITO[0], OKABE_ITO[1]  # blue and vermilion
PART = 0.01  # of the data's weight: scores are drawn as what so much more of an image does


class Influence(NamedTuple):
    """What training images do to one number of each of R samples, or to each of P numbers.

    Args:
        x: the samples.
        gradient: of that number at each.
        value: that number.
        top, bottom: indices of the images that raise it most and lower it most, the first first.
        top_scores, bottom_scores: the derivatives, per unit of mass.
        edges: noise levels between which the steps of the paths lie, falling.
        profile: mean |influence| at each step.
        labels: of the samples, for a picture.
        scores: of all N images, if they were kept.
    """

    x: Batch
    gradient: Float[np.ndarray, "R ..."]
    value: Float[np.ndarray, "R *P"]
    top: Int[np.ndarray, "R *P k"]
    top_scores: Float[np.ndarray, "R *P k"]
    bottom: Int[np.ndarray, "R *P k"]
    bottom_scores: Float[np.ndarray, "R *P k"]
    edges: Float[np.ndarray, "S+1"]
    profile: Float[np.ndarray, "R *P S"]
    labels: Sequence[str] = ()
    scores: Float[np.ndarray, "R *P N"] | None = None


def median_levels(
    profile: Float[np.ndarray, "... S"], edges: Float[np.ndarray, "S+1"]
) -> Float[np.ndarray, "..."]:
    """The noise level with half of the influence above it and half below, `[...]`."""
    shares = np.cumsum(profile, -1) / np.sum(profile, -1, keepdims=True)
    step = np.argmax(shares >= 0.5, -1)
    return np.sqrt(edges[step] * edges[step + 1])


def draw_influence(
    path: Path,
    data: Named,
    found: Influence,
    *,
    images: int,
    title: str,
    says: str,
    kinds: tuple[str, str] = ("helpful", "harmful"),
    remark: str = "",
) -> Path:
    """Write samples beside the training images that help and harm them most, with their scores.

    Args:
        data: the training data.
        found: what there is to show, a row each.
        images: how many to show of either kind.
        says: what number is measured, in a sentence or two.
        kinds: what images that raise it, and that lower it, are called.
        remark: a sentence or two for the caption.
    """
    edges, middles = found.edges, median_levels(found.profile, found.edges)
    widths = np.log(edges[:-1] / edges[1:])
    largest = np.max(np.abs(found.gradient), axis=tuple(range(1, found.x.ndim)), keepdims=True)
    gradient = found.gradient / np.where(largest > 0, largest, 1)
    columns = [
        Column("sample", found.x, notes=[_signed(v, False) for v in found.value]),
        Column("what is\nmeasured", gradient, True),
        *_ranked(data, found.top, found.top_scores, images, f"most\n{kinds[0]}", HELPFUL),
        *_ranked(data, found.bottom, found.bottom_scores, images, f"most\n{kinds[1]}", HARMFUL),
    ]
    curves = Curves(
        f"at which noise level\n{data.form.nouns} have their influence",
        f"noise level τ, in {data.form.unit}:\nfine detail  ←    →  coarse form",
        edges[::-1],
        (found.profile / widths)[:, ::-1],
        middles,
        [f"half above {middle:.2g}" for middle in middles],
    )
    caption = (
        f"{says} Its value stands under each sample. Blue: the training {data.form.nouns} that "
        "raise it most; orange: those that lower it most. Below each "
        f"{data.form.noun}, by how much, to first order, if {100 * PART:g} % of the data's weight "
        f"were moved to it. Right: the share of all {data.form.nouns}' influence by the "
        f"noise level at which it acts, dashed its median. {remark}"
    )
    signed = "what is measured" + ": red, darker is more" * (not data.form.columns)
    words: dict[str, Any] = {"title": title, "caption": caption, "signed": signed}
    shown = {"values": data.images, "beside": curves, "form": data.form, "unitless": True}
    return draw_sheet(path, columns, found.labels, **words, **shown)


def _ranked(
    data: Named, indices: np.ndarray, scores: np.ndarray, count: int, title: str, colour: str
) -> list[Column]:
    """Columns of training images by rank, in frames of one colour."""
    found = enumerate(zip(indices.T[:count], PART * scores.T[:count], strict=True))
    frames = [colour] * len(indices)
    return [
        Column(
            ordinal(place + 1) if place else title,
            data.images[index],
            notes=[_signed(v) for v in values],
            split=not place,
            frames=frames,
        )
        for place, (index, values) in found
    ]


def _signed(value: float, sign: bool = True) -> str:
    """Three digits, a sign, and a minus as wide as the plus."""
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")

"""`scoresens demo`: what more of one class does to samples, and what decides them."""

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from scoresens.cli._command import Command, from_options
from scoresens.cli._common import (
    Changed,
    change_data,
    in_own_units,
    norms_by_mass,
    picture,
    set_up,
    words,
    write,
)
from scoresens.cli._functionals import FunctionalSettings
from scoresens.cli._progress import Stages, blaming
from scoresens.cli._quick import more_like, train_quickly, usual_class
from scoresens.cli._settings import BumpSettings, at_least
from scoresens.cli.attribute import (
    attribute_samples,
    attributed_result,
    draw_attributed,
    question_of,
)
from scoresens.datasets.forms import Dataset
from scoresens.datasets.images import DataSettings, prepare
from scoresens.flow.solve import Solve
from scoresens.report.samples import Strip, draw_demo, draw_strip
from scoresens.report.tables import Rows, table
from scoresens.sensitivity.counterfactual import counterfactual
from scoresens.sensitivity.tangents import sample_sensitivity
from scoresens.statistics.displacements import (
    Batch,
    class_names,
    cosines,
    nearest,
    norms,
    spread,
)
from scoresens.studies.changes import ChangeSettings

DRAWN = 128  # samples, of which some are shown
STRIP = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # masses of the strip, beside the run's
NAMED = 10  # images of either kind that result.json names of each sample


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """Options of `scoresens demo`, explained in its help."""

    data: str = "digits"
    label: str | None = None
    window: int | None = None
    class_name: str | None = None
    near: int | None = None
    mass: float = 0.2
    count: int = 8
    seed: int = 0

    def __post_init__(self):
        at_least(1, count=self.count)
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass must lie in (0, 1], got {self.mass}")
        if self.near is not None and self.class_name is not None:
            raise ValueError(
                "either a class is added, or what is near to one of the data, not both"
            )


class More(NamedTuple):
    """What is added to the data."""

    what: str  # in words
    key: dict[str, str | int]  # in result.json
    change: ChangeSettings


class Moves(NamedTuple):
    """Samples before the change, and after."""

    before: np.ndarray  # [M, *shape]
    first_order: np.ndarray  # [M, *shape], mass times the derivative
    after: np.ndarray  # [M, *shape]
    strip: np.ndarray  # [M, E, *shape], after changes of growing masses
    masses: list[float]  # [E]

    @property
    def finite(self) -> Batch:
        """`[M, *shape]`, how each sample moved."""
        return self.after - self.before


def run_demo(run: DemoRun, out: Path, where: str) -> str:
    """Write what more of one class does to samples, and which of the data decide them; the table
    of the run."""
    stages = Stages()
    data = DataSettings(run.data, label=run.label, window=run.window)
    with blaming(where):
        dataset = prepare(data)
        more = more_of(run, dataset)
        bundled = run.data == "digits"
        checkpoint = "digits" if bundled else train_quickly(dataset, out, run.seed, stages)
    drawn, bumps = max(DRAWN, run.count), BumpSettings()
    setup = set_up(data, checkpoint, where, stages, count=drawn, seed=run.seed, bumps=bumps)
    changed = change_data(setup, more.change, where)
    moves = _moves(changed, stages)
    shown = spread(norms(moves.finite), run.count)
    with stages("attribution", f"compiling and integrating {len(shown)} paths and adjoints"):
        solve, noise = Solve(), setup.noise[shown]
        question = question_of(FunctionalSettings("itself"), setup, solve)
        found = attribute_samples(setup, question, noise, NAMED, solve, base=setup.data)
    shares = _shares(changed, moves)
    numbers = {
        "first_order_norm": norms(moves.first_order),
        "counterfactual_norm": norms(moves.finite),
        "cosine": cosines(moves.first_order, moves.finite),
    }
    names = {
        f"class_{when}": class_names(x, setup.named)
        for when, x in (("before", moves.before), ("after", moves.after))
    }
    medians = {name: float(np.median(values)) for name, values in numbers.items()}
    title = _title(changed, more)
    result = changed.about | {"change": f"add {more.what} at mass {run.mass:g}"}
    result |= {**more.key, "class_share": shares}
    result |= in_own_units(
        dataset.form, moves.before, first_order=moves.first_order, counterfactual=moves.finite
    )
    result |= {"median": medians, "shown": shown, "samples": numbers | names}
    result["strip"] = {"masses": moves.masses, "norms": norms_by_mass(moves.strip, moves.before)}
    result["attribution"] = attributed_result(setup, found)
    write(out, result, run, stages)
    with stages("pictures", "drawing"):
        _draw_moves(out, run, changed, more, moves, shares)
        asked = question.title(setup.dataset, len(shown))
        picture(
            draw_attributed, out / "attribution.png", setup, question, found, asked, shown,
            f"{len(shown)} of {len(setup.noise)} samples, from the one that moves most (report.png)"
            " to the one that moves least",
        )  # fmt: skip
    says = ", ".join(f"{words(name)} {value:.1%}" for name, value in shares.items())
    rows = table(_rows(shown, numbers, names if setup.named.labelled else {}, medians))
    return "\n\n".join([title, rows, *_by_column(dataset, moves), f"share of {more.what}: {says}"])


def more_of(run: DemoRun, dataset: Dataset) -> More:
    """More of a class; of data without classes, or where one of the data is named, of those that
    are nearest to it.

    Raises:
        ValueError: for a class, or a number, that the data do not have.
    """
    name = run.class_name or usual_class(dataset)
    if name is None or run.near is not None:
        near, change = more_like(dataset, run.near, run.mass)
        form, count = dataset.form, len(change.images)
        return More(f"{count} {form.nouns} like {form.noun} {near}", {"near": near}, change)
    if name not in dataset.class_names:
        known = ", ".join(dataset.class_names)
        raise ValueError(f"class {name!r} is not in {dataset.name}: its classes are {known}")
    change = ChangeSettings(kind="add", classes=(name,), mass=run.mass)
    return More(f"class {name}", {"class": name}, change)


def _title(changed: Changed, more: More) -> str:
    dataset, count = changed.setup.dataset, int(changed.change.touched.sum())
    whole = f"({count} of {len(dataset.images)} {dataset.form.nouns})"
    return f"{dataset.name}: add {more.what} at mass {more.change.mass:g} {whole}"


def _by_column(dataset: Dataset, moves: Moves) -> list[str]:
    """A table of what happened to each column, in its own units; none of images and series."""
    if dataset.form.kind not in ("table", "points"):
        return []
    data = dataset.form.restored(dataset.images).mean(0)
    means = [dataset.form.restored(x).mean(0) for x in (moves.before, moves.after)]
    rows = {
        column: {"data": f"{whole:.4g}", "before": f"{was:.4g}", "after": f"{now:.4g}"}
        for column, whole, was, now in zip(dataset.form.columns, data, *means, strict=True)
    }
    return [table(rows, "mean, own units")]


def _moves(changed: Changed, stages: Stages) -> Moves:
    """The samples before, to first order, and at growing masses."""
    setup, change, settings = changed
    start = setup.process, setup.score, change.perturbation, setup.noise
    with stages("first_order", f"compiling and integrating {len(setup.noise)} paths and tangents"):
        first = sample_sensitivity(*start, base=setup.data)
    masses = sorted({*STRIP, settings.mass})
    with stages("counterfactual", f"compiling and integrating them at {len(masses)} masses"):
        finite = counterfactual(*start, mass=jnp.asarray(masses), base=setup.data)
    before, strip = np.asarray(first.x), np.asarray(finite.x[:, :, 0])
    moved = settings.mass * np.asarray(first.tangent[:, 0])
    return Moves(before, moved, strip[:, masses.index(settings.mass)], strip, masses)


def _draw_moves(
    out: Path,
    run: DemoRun,
    changed: Changed,
    more: More,
    moves: Moves,
    shares: Mapping[str, float],
) -> None:
    """Write report.png and strip.png."""
    whose = "The class's" if "class" in more.key else "Their"
    picture(
        draw_demo,
        out / "report.png",
        changed.touched,
        *moves[:3],
        count=run.count,
        title=_title(changed, more),
        remark=(
            f"{whose} share: {shares['data_before']:.0%} → {shares['data_after']:.0%} of "
            f"the data, {shares['samples_before']:.0%} → {shares['samples_after']:.0%} of the "
            "samples. The same samples in strip.png, at growing masses, and in "
            f"attribution.png, beside the {changed.setup.dataset.form.nouns} that decide them."
        ),
    )
    sizes = norms(moves.finite)
    picture(
        draw_strip,
        out / "strip.png",
        changed.touched,
        Strip(moves.before, moves.strip, moves.masses, sizes),
        count=run.count,
        title=f"{changed.setup.dataset.name}: more and more of {more.what}, "
        f"{min(run.count, len(sizes))} samples",
        remark=f"Ranked at mass {run.mass:g}, as in report.png.",
    )


def _shares(changed: Changed, moves: Moves) -> dict[str, float]:
    """The shares of what is added in the data, and of samples whose nearest data are of it."""
    touched, weights = changed.change.touched, changed.change.weights
    images = changed.setup.dataset.images
    return {
        "samples_before": float(np.mean(touched[nearest(moves.before, images, 1)[:, 0]])),
        "samples_after": float(np.mean(touched[nearest(moves.after, images, 1)[:, 0]])),
        "data_before": float(touched.mean()),
        "data_after": float(weights[touched].sum()),
    }


def _rows(
    shown: np.ndarray,
    numbers: dict[str, np.ndarray],
    names: dict[str, list[str]],
    medians: dict[str, float],
) -> Rows:
    """A row for each sample in the picture, and one for the medians of all."""
    rows = {
        f"sample {i}": {
            **({"class": " -> ".join(each[i] for each in names.values())} if names else {}),
            **{words(name): f"{values[i]:.2f}" for name, values in numbers.items()},
        }
        for i in shown
    }
    median = {words(name): f"{value:.2f}" for name, value in medians.items()}
    return rows | {"median of all": median}


def _add_arguments(parser: ArgumentParser) -> None:
    for flag, field, kind, what in (
        (
            "--data",
            "data",
            str,
            "digits, wine, breast-cancer, sunspots, moons, pinwheel, or a file",
        ),
        ("--label", "label", str, "the column of classes, of a table in a file"),
        ("--window", "window", int, "rows a window, of a series"),
        ("--class", "class_name", str, "the class to add (default: 3 of digits, else the last)"),
        ("--near", "near", int, "in place of a class, add what is nearest to the data's number N"),
        ("--mass", "mass", float, "its additional share of the changed data, in (0, 1]"),
        ("--count", "count", int, "samples to show"),
        ("--seed", "seed", int, "of the noise, and of the network"),
    ):
        default = getattr(DemoRun, field)
        about = what if default is None else f"{what} (default: {default})"
        parser.add_argument(flag, dest=field, type=kind, default=default, help=about)


COMMAND = Command(
    name="demo",
    run=run_demo,
    settings=DemoRun,
    arguments=_add_arguments,
    read=from_options,
    brief="see what more of one class does to samples, of digits or of your data",
    about=f"""\
What do samples of the digits, or of your table, become, when a share of one class is added to the
training data?

Draws {DRAWN} samples from the checkpoint that comes with the package, and shows those that move
most and some that move least: before, their first-order change, the counterfactual sample, and the
added images nearest to it (report.png); the same samples as the share grows (strip.png); and the
training images that make each of them what it is, and those that work against it
(attribution.png).

With --data, the same of a table, of the windows of a series, or of points in a plane (a .csv,
.parquet or .npy file, or a name): a small network is trained on them first, in half a minute. Data
without classes get more of those that are like one of them (--near).""",
    example="scoresens demo --class 3 --mass 0.2\n  scoresens demo --data wine",
    writes={
        "report.png": "samples before, first-order changes, counterfactual samples",
        "strip.png": "the same samples at growing masses",
        "attribution.png": "their most helpful and most harmful training images",
        "model.safetensors": "the network that was trained, of other data than digits",
        "result.json": "displacements, cosines, classes; scores of the images named",
    },
)

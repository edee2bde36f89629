"""`scoresens demo`: what more of one class does to samples of digits, and what decides them."""

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from scoresens.cli._command import Command, from_options
from scoresens.cli._common import Changed, change_data, norms_by_mass, picture, set_up, words, write
from scoresens.cli._functionals import FunctionalSettings
from scoresens.cli._progress import Stages, blaming
from scoresens.cli._settings import BumpSettings, at_least
from scoresens.cli.attribute import (
    attribute_samples,
    attributed_result,
    draw_attributed,
    question_of,
)
from scoresens.datasets.images import DataSettings
from scoresens.flow.solve import Solve
from scoresens.report.samples import Strip, draw_demo, draw_strip
from scoresens.report.tables import Rows, table
from scoresens.sensitivity.counterfactual import counterfactual
from scoresens.sensitivity.tangents import sample_sensitivity
from scoresens.statistics.displacements import (
    Batch,
    class_names,
    cosines,
    looks_like,
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

    class_name: str = "3"
    mass: float = 0.2
    count: int = 8
    seed: int = 0

    def __post_init__(self):
        at_least(1, count=self.count)

    @property
    def change(self) -> ChangeSettings:
        """The change of the data."""
        return ChangeSettings(kind="add", classes=(self.class_name,), mass=self.mass)


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
    """Write what more of one class does to samples of the bundled digits, and which images decide
    them; the table of the run."""
    stages = Stages()
    with blaming(where):
        settings = run.change
    drawn = max(DRAWN, run.count)
    setup = set_up(
        DataSettings("digits"),
        "digits",
        where,
        stages,
        count=drawn,
        seed=run.seed,
        bumps=BumpSettings(),
    )
    changed = change_data(setup, settings, where)
    moves = _moves(changed, stages)
    shown = spread(norms(moves.finite), run.count)
    with stages("attribution", f"compiling and integrating {len(shown)} paths and adjoints"):
        solve, noise = Solve(), setup.noise[shown]
        question = question_of(FunctionalSettings("itself"), setup, solve)
        found = attribute_samples(setup, question, noise, NAMED, solve, base=setup.data)
    shares = _shares(changed, run.class_name, moves)
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
    result = changed.about | {"class": run.class_name, "class_share": shares}
    result |= {"median": medians, "shown": shown, "samples": numbers | names}
    result["strip"] = {"masses": moves.masses, "norms": norms_by_mass(moves.strip, moves.before)}
    result["attribution"] = attributed_result(setup, found)
    write(out, result, run, stages)
    with stages("pictures", "drawing"):
        _draw_moves(out, run, changed, moves, shares)
        title = question.title(setup.dataset, len(shown))
        picture(
            draw_attributed, out / "attribution.png", setup, question, found, title, shown,
            f"{len(shown)} of {len(setup.noise)} samples, from the one that moves most (report.png)"
            " to the one that moves least",
        )  # fmt: skip
    says = ", ".join(f"{words(name)} {value:.1%}" for name, value in shares.items())
    rows = table(_rows(shown, numbers, names, medians))
    return f"{changed.title}\n\n{rows}\n\nshare of class {run.class_name}: {says}"


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
    out: Path, run: DemoRun, changed: Changed, moves: Moves, shares: Mapping[str, float]
) -> None:
    """Write report.png and strip.png."""
    picture(
        draw_demo,
        out / "report.png",
        changed.touched,
        *moves[:3],
        count=run.count,
        title=changed.title,
        remark=(
            f"The class's share: {shares['data_before']:.0%} → {shares['data_after']:.0%} of "
            f"the data, {shares['samples_before']:.0%} → {shares['samples_after']:.0%} of the "
            "samples. The same samples in strip.png, at growing masses, and in "
            "attribution.png, beside the images that decide them."
        ),
    )
    sizes = norms(moves.finite)
    picture(
        draw_strip,
        out / "strip.png",
        changed.touched,
        Strip(moves.before, moves.strip, moves.masses, sizes),
        count=run.count,
        title=f"digits: more and more of class {run.class_name}, "
        f"{min(run.count, len(sizes))} samples",
        remark=f"Ranked at mass {run.mass:g}, as in report.png.",
    )


def _shares(changed: Changed, class_name: str, moves: Moves) -> dict[str, float]:
    """The shares of one class in the samples and in the data."""
    setup, change, _ = changed
    label = setup.dataset.class_names.index(class_name)
    return {
        "samples_before": float(np.mean(looks_like(moves.before, setup.named) == label)),
        "samples_after": float(np.mean(looks_like(moves.after, setup.named) == label)),
        "data_before": float(change.touched.mean()),
        "data_after": float(change.weights[change.touched].sum()),
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
            "class": f"{names['class_before'][i]} -> {names['class_after'][i]}",
            **{words(name): f"{values[i]:.2f}" for name, values in numbers.items()},
        }
        for i in shown
    }
    median = {words(name): f"{value:.2f}" for name, value in medians.items()}
    return rows | {"median of all": median}


def _add_arguments(parser: ArgumentParser) -> None:
    for flag, field, kind, what in (
        ("--class", "class_name", str, "the digit to add"),
        ("--mass", "mass", float, "its additional share of the changed data, in (0, 1]"),
        ("--count", "count", int, "samples to show"),
        ("--seed", "seed", int, "of the noise"),
    ):
        default = getattr(DemoRun, field)
        about = f"{what} (default: {default})"
        parser.add_argument(flag, dest=field, type=kind, default=default, help=about)


COMMAND = Command(
    name="demo",
    run=run_demo,
    settings=DemoRun,
    arguments=_add_arguments,
    read=from_options,
    brief="see what more of one class does to samples of digits",
    about=f"""\
What do samples of the digits become, when a share of one class is added to the training data?

Draws {DRAWN} samples from the checkpoint that comes with the package, and shows those that move
most and some that move least: before, their first-order change, the counterfactual sample, and the
added images nearest to it (report.png); the same samples as the share grows (strip.png); and the
training images that make each of them what it is, and those that work against it
(attribution.png).""",
    example="scoresens demo --class 3 --mass 0.2",
    writes={
        "report.png": "samples before, first-order changes, counterfactual samples",
        "strip.png": "the same samples at growing masses",
        "attribution.png": "their most helpful and most harmful training images",
        "result.json": "displacements, cosines, classes; scores of the images named",
    },
)

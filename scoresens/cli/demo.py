"""`scoresens demo`: what more of one class does to samples of digits, and who made them so."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from scoresens.cli.attribute import (
    attribute_samples,
    attributed_result,
    draw_attributed,
)
from scoresens.cli.common import (
    about_change,
    norms_by_mass,
    set_up_change,
    titled,
    words,
    write,
)
from scoresens.cli.functionals import FunctionalSettings, make_question
from scoresens.cli.progress import Stages, blaming
from scoresens.cli.settings import DemoRun, SensitivityRun
from scoresens.datasets.images import DataSettings
from scoresens.flow.solve import Solve
from scoresens.report.samples import Rows, draw_demo, draw_strip, table
from scoresens.sensitivity.counterfactual import counterfactual
from scoresens.sensitivity.tangents import sample_sensitivity
from scoresens.statistics.displacements import cosines, looks_like, norms, spread

DRAWN = 128  # samples, of which some are shown
STRIP = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # masses of the strip, beside the one asked for
NAMED = 10  # images of either kind that result.json names of each sample


def run_demo(run: DemoRun, out: Path, where: str) -> str:
    """Write what more of one class does to samples of the bundled digits, and which images made
    them what they are; the table of the run."""
    stages = Stages()
    with blaming(where):
        asked = run.change
    drawn = max(DRAWN, run.count)
    digits = DataSettings("digits")
    whole = SensitivityRun(data=digits, change=asked, count=drawn, seed=run.seed)
    setup, change = set_up_change(whole, where, stages)
    process, score, direction = setup.process, setup.score, change.perturbation
    with stages("first_order", f"compiling and integrating {drawn} paths and tangents"):
        first = sample_sensitivity(process, score, direction, setup.noise, base=setup.data)
    masses = sorted({*STRIP, run.mass})
    with stages("counterfactual", f"compiling and integrating them at {len(masses)} masses"):
        finite = counterfactual(
            process, score, direction, setup.noise, mass=jnp.asarray(masses), base=setup.data
        )
    strip = np.asarray(finite.x[:, :, 0])
    before, after = np.asarray(first.x), strip[:, masses.index(run.mass)]
    moved, jumped = run.mass * np.asarray(first.tangent[:, 0]), after - before
    shown = spread(norms(jumped), run.count)
    with stages("attribution", f"compiling and integrating {len(shown)} paths and adjoints"):
        itself = FunctionalSettings("itself")
        question = make_question(itself, setup.dataset, setup.data, process, score, Solve())
        found = attribute_samples(
            setup, question, setup.noise[shown], NAMED, Solve(), base=setup.data
        )
    data = setup.named
    shares = _shares(setup, change, run.class_name, before, after)
    title, pictures = titled(setup, change, asked), "samples, from the one that moves most"
    with stages("pictures", "drawing"):
        draw_demo(
            out / "report.png",
            data,
            change.touched,
            before,
            moved,
            after,
            count=run.count,
            title=title,
            remark=(
                f"The class's share: {shares['data_before']:.0%} → {shares['data_after']:.0%} of "
                f"the data, {shares['samples_before']:.0%} → {shares['samples_after']:.0%} of the "
                "samples. The same samples in strip.png, at growing masses, and in "
                "attribution.png, beside the images that made them what they are."
            ),
        )
        draw_strip(
            out / "strip.png",
            data,
            change.touched,
            before,
            strip,
            masses,
            sizes=norms(jumped),
            count=run.count,
            title=f"digits: more and more of class {run.class_name}, {len(shown)} samples",
            verb="added",
            remark=f"Ranked at mass {run.mass:g}, as in report.png.",
        )
        draw_attributed(
            out / "attribution.png",
            setup,
            question,
            found,
            question.title(setup.dataset, len(shown)),
            shown,
            f"{len(shown)} of {drawn} {pictures} (report.png) to the one that moves least",
        )
    numbers = {
        "first_order_norm": norms(moved),
        "counterfactual_norm": norms(jumped),
        "cosine": cosines(moved, jumped),
    }
    was, became = (looks_like(x, data) for x in (before, after))
    names = {
        "class_before": [data.class_names[i] for i in was],
        "class_after": [data.class_names[i] for i in became],
    }
    medians = {name: float(np.median(values)) for name, values in numbers.items()}
    result = about_change(setup, change, whole) | {"class": run.class_name, "class_share": shares}
    result |= {"median": medians, "shown": shown, "samples": numbers | names}
    result["strip"] = {"masses": masses, "norms": norms_by_mass(strip, before)}
    result["attribution"] = attributed_result(setup, found)
    write(out, result, run, stages)
    says = [f"{words(name)} {value:.1%}" for name, value in shares.items()]
    rows = _rows(shown, numbers, names, medians)
    return f"{title}\n\n{table(rows)}\n\nshare of class {run.class_name}: {', '.join(says)}"


def _shares(setup, change, class_name, before, after):
    """The shares of one class in the samples and in the data."""
    label = setup.dataset.class_names.index(class_name)
    was, became = (looks_like(x, setup.named) for x in (before, after))
    return {
        "samples_before": float(np.mean(was == label)),
        "samples_after": float(np.mean(became == label)),
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
    return rows | {
        "median of all": {words(name): f"{value:.2f}" for name, value in medians.items()}
    }

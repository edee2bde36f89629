"""`scoresens validate` with experiment = "finetune": predictions against fine-tuning."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from scoresens._pytrees import fingerprint
from scoresens.cli._command import Experiment
from scoresens.cli._common import (
    Changed,
    about_agreement,
    about_measures,
    agreement,
    as_json,
    bound_cosines,
    in_own_units,
    picture,
    set_up_change,
    trainable,
    write,
    write_arrays,
)
from scoresens.cli._progress import Stages, blaming, shown
from scoresens.cli._settings import ComparisonRun, at_least, trace_of
from scoresens.flow.solve import Solve
from scoresens.laws.measures import spacing_of
from scoresens.models import Denoiser
from scoresens.report.samples import Comparison, draw_validation
from scoresens.report.tables import cell, table, validation_table
from scoresens.statistics.displacements import cosines
from scoresens.statistics.estimates import Estimate
from scoresens.studies import finetuning
from scoresens.studies.store import of_study
from scoresens.training.denoising import TrainSettings

STUDY = ("data", "change", "finetune", "after", "count", "seed", "steps")
Results = dict[str, dict[str, Estimate]]


@dataclass(frozen=True, kw_only=True)
class FinetuneRun(ComparisonRun):
    """Settings of `scoresens validate` with experiment = "finetune", explained in its help."""

    experiment: Literal["finetune"] = "finetune"
    finetune: TrainSettings
    after: tuple[int, ...] = ()
    checkpoint: str = "digits"
    repeats: int = 1

    def __post_init__(self):
        super().__post_init__()
        at_least(1, repeats=self.repeats)
        steps = (*self.after, self.finetune.steps)
        if list(steps) != sorted(set(steps)) or steps[0] < 1:
            raise ValueError(
                f"after must rise from 1 or more to below the {self.finetune.steps} steps of "
                f"finetune, got {list(self.after)}"
            )


def run_finetune(run: FinetuneRun, out: Path, where: str) -> str:
    """Write how well predicted changes match what fine-tuning does; the table of the run."""
    stages, solve = Stages(), Solve(steps=run.steps)
    changed = set_up_change(run, run.checkpoint, where, stages)
    setup, change, title = changed.setup, changed.change, changed.title
    model = trainable(setup.model, where)
    with blaming(where):
        of_study(out, run, STUDY, checkpoint=fingerprint(model))
    with stages("predict", f"compiling and integrating {run.count} paths by each method"):
        predicted = finetuning.predict_change(
            model, setup.data, change, run.change.mass, setup.noise, solve, trace_of(run.trace)
        )
    before = predicted.pop("before")
    with stages("steps", "predicting what so many steps learn of the change"):
        learnt = _by_number(run, changed, model, before, solve)
    predicted |= learnt.get(run.finetune.steps, {})
    with stages("finetune", f"{run.repeats} x on unchanged and on changed data", bars=True):
        key = jax.random.fold_in(jax.random.key(run.seed), 1)
        how = finetuning.Finetuning(
            out / "models", run.finetune, key, run.repeats, run.after, solve, shown
        )
        reals = finetuning.real_changes(model, setup.data, change, setup.noise, how)
    with stages("compare", f"comparing, {run.resamples} bootstrap resamples"):
        found = {
            steps: _compared(predicted | learnt.get(steps, {}), real, run)
            for steps, real in reals.items()
        }
    real, results = reals[run.finetune.steps], found[run.finetune.steps]
    arrays = {"before": before, "control": real.control, "changed": real.changed}
    write_arrays(out / "displacements.npz", **arrays, **predicted)
    drift = np.concatenate(real.control - before)
    moves = {"real": real.displacement, "control_drift": drift, **predicted}
    result = about_agreement(changed, results, moves)
    form = setup.dataset.form
    finite = predicted["counterfactual_data"]
    trust = finetuning.reliability(finite, change.moved, spacing_of(setup.data))
    options = {"resamples": run.resamples, "seed": run.seed}
    worth = finetuning.calibration(trust, finite, real.displacement, **options)
    result |= {"moved": change.moved, "reliability": about_calibration(worth)}
    bound = bound_cosines(run, setup, before, finite, stages)
    held = None if bound is None else np.mean(cosines(finite, real.displacement) >= bound)
    result |= {} if bound is None else {"cosine_bound": bound, "bound_held": held}
    result |= as_json({"reach": real.reach})
    result |= in_own_units(form, before, real=real.displacement, predicted=finite)
    result["after"] = {str(steps): about_measures(rows) for steps, rows in found.items()}
    write(out, result, run, stages)
    with stages("pictures", "drawing"):
        one, other, moved = real.control[0], real.changed[0], real.displacement
        shown_pair = Comparison(before, one, other, moved, predicted, results)
        says = {"title": f"{title}, predicted and real", "trained": "the checkpoint fine-tuned"}
        says |= {"form": form}
        picture(draw_validation, out / "report.png", setup.dataset.images, shown_pair, **says)
    parts = [f"{title}, {run.count} samples", validation_table(results)]
    if np.isfinite(real.reach):
        parts += [f"the effect that all pairs share would reach a Pearson of {real.reach:.2f}"]
    parts += ["counterfactual_data, by its reliability", _by_reliability(worth)]
    if bound is not None:
        middle = f"{np.median(bound):.2f} at the median sample"
        parts += [f"the bound of the cosine ({middle}) held for {held:.0%} of the samples"]
    if run.after:
        parts += ["pooled Pearson, by the number of steps of fine-tuning", _by_steps(found)]
    return "\n\n".join(parts)


def _by_number(
    run: FinetuneRun, changed: Changed, model: Denoiser, before: np.ndarray, solve: Solve
) -> dict[int, dict[str, np.ndarray]]:
    """What each number of steps learns of the change; of a model that is added, nothing is said."""
    if run.change.kind == "model":
        return {}
    asked = model, changed.setup.data, changed.change, run.change.mass, changed.setup.noise
    steps = (*run.after, run.finetune.steps)
    found = finetuning.predict_steps(*asked, run.finetune, steps, solve)
    return {count: {"counterfactual_steps": after - before} for count, after in found.items()}


def _compared(
    predicted: Mapping[str, np.ndarray], real: finetuning.RealChange, run: FinetuneRun
) -> Results:
    """Every method against the truth, and one pair of fine-tunings against the others."""
    results = agreement(predicted, real.displacement, run)
    if run.repeats > 1:
        options = {"resamples": run.resamples, "seed": run.seed}
        results["another_finetuning"] = finetuning.compare(*real.ceiling, **options)
    return results


def about_calibration(worth: finetuning.Calibration) -> dict[str, Any]:
    """What a reliability was worth, to write down."""
    cosines = [[value if np.isfinite(value) else None for value in row] for row in worth.cosine]
    return {
        "spearman": worth.spearman._asdict(),
        "groups": [
            {"from": low, "count": count, "cosine": cosine}
            for low, count, cosine in zip(worth.low, worth.count, cosines, strict=True)
        ],
    }


def _by_reliability(worth: finetuning.Calibration) -> str:
    rows = {
        f"from {low:g}": {"samples": str(count), "cosine, median [10 %, 90 %]": cell(list(ends))}
        for low, count, ends in zip(worth.low, worth.count, worth.cosine[:, [1, 0, 2]], strict=True)
        if count
    }
    found = f"rank correlation with the cosine: {cell(worth.spearman)}"
    return f"{table(rows, 'reliability')}\n\n{found}"


def _by_steps(found: Mapping[int, Results]) -> str:
    rows = {
        method: {f"{steps:,}": cell(row[method]["pooled_pearson"]) for steps, row in found.items()}
        for method in next(iter(found.values()))
    }
    return table(rows, "method")


EXPERIMENT = Experiment(
    name="finetune",
    run=run_finetune,
    settings=FinetuneRun,
    about="""\
experiment = "finetune" (or left out): fine-tunes the checkpoint on the changed data and, as
control, on the unchanged data with the same randomness, and compares the real with the predicted
changes of the same samples: first order (all bases), counterfactual, and baselines. A run that was
stopped goes on where it was. Settings: checkpoint, count (8 or more), seed, steps, bandwidth,
temperature, width, resolution, spectral_bias, trace (of the black boxes) as for sensitivity; after
(steps of fine-tuning after which to look as well: what so few learn is predicted too), repeats
(pairs of fine-tunings to average; from 2 on, another fine-tuning is compared too), resamples;
[data] as for train; [change] as for sensitivity; [finetune] as [train] for train.""",
    writes={"displacements.npz": "finetune: all samples and predicted changes, to look at again"},
)

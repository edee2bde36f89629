"""`scoresens validate` with experiment = "finetune": predictions against fine-tuning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scoresens.cli.common import (
    about_agreement,
    about_measures,
    agreement,
    as_json,
    set_up_change,
    titled,
    trace_of,
    trainable,
    write,
    write_arrays,
)
from scoresens.cli.progress import Stages
from scoresens.cli.settings import ValidateRun
from scoresens.cli.studies import fingerprint, same_study, shown
from scoresens.flow.solve import Solve
from scoresens.report.samples import draw_validation, interval, table, validation_table
from scoresens.studies.finetuning import (
    Calibration,
    Interval,
    RealChange,
    calibration,
    compare,
    predict_change,
    real_changes,
    reliability,
)

STUDY = ("data", "change", "finetune", "after", "count", "seed", "steps")
Results = dict[str, dict[str, Interval]]


def run_finetune(run: ValidateRun, out: Path, where: str) -> str:
    """Write how well predicted changes match what fine-tuning does; the table of the run."""
    stages, solve = Stages(), Solve(steps=run.steps)
    setup, change = set_up_change(run, where, stages)
    model = trainable(setup.model, where)
    same_study(out, run, where, STUDY, checkpoint=fingerprint(model))
    with stages("predict", f"compiling and integrating {run.count} paths by each method"):
        predicted = predict_change(
            model, setup.data, change, run.change.mass, setup.noise, solve, trace_of(run)
        )
    before = predicted.pop("before")
    with stages("finetune", f"{run.repeats} x on unchanged and on changed data", bars=True):
        reals = real_changes(
            model,
            setup.data,
            change,
            setup.noise,
            out / "models",
            key=jax.random.fold_in(jax.random.key(run.seed), 1),
            settings=run.finetune,
            after=run.after,
            repeats=run.repeats,
            solve=solve,
            shown=shown,
        )
    with stages("compare", f"comparing, {run.resamples} bootstrap resamples"):
        found = {steps: _compared(predicted, real, run) for steps, real in reals.items()}
    real, results = reals[run.finetune.steps], found[run.finetune.steps]
    title = titled(setup, change, run.change)
    with stages("pictures", "drawing"):
        draw_validation(
            out / "report.png",
            setup.dataset.images,
            predicted,
            before,
            real.control[0],
            real.changed[0],
            real.displacement,
            results,
            title=f"{title}, predicted and real",
            trained="the checkpoint fine-tuned",
        )
        arrays = {"before": before, "control": real.control, "changed": real.changed}
        write_arrays(out / "displacements.npz", **arrays, **predicted)
    drift = np.concatenate(real.control - before)
    moves = {"real": real.displacement, "control_drift": drift, **predicted}
    told = about_agreement(setup, change, run, results, moves)
    finite = predicted["counterfactual_data"]
    trust = reliability(finite, change.moved, float(setup.data.bandwidth))
    worth = calibration(trust, finite, real.displacement, resamples=run.resamples, seed=run.seed)
    told |= {"moved": change.moved, "reliability": about_calibration(worth)}
    told |= as_json({"reach": real.reach})
    told["after"] = {str(steps): about_measures(rows) for steps, rows in found.items()}
    write(out, told, run, stages)
    parts = [f"{title}, {run.count} samples", validation_table(results)]
    if np.isfinite(real.reach):
        parts += [f"the effect that all pairs share would reach a Pearson of {real.reach:.2f}"]
    parts += ["counterfactual_data, by its reliability", _by_reliability(worth)]
    if run.after:
        parts += ["pooled Pearson, by the number of steps of fine-tuning", _by_steps(found)]
    return "\n\n".join(parts)


def _compared(predicted: Mapping[str, np.ndarray], real: RealChange, run: ValidateRun) -> Results:
    """Every method against the truth, and one pair of fine-tunings against the others."""
    results = agreement(predicted, real.displacement, run)
    if run.repeats > 1:
        ceiling = compare(*real.ceiling, resamples=run.resamples, seed=run.seed)
        results["another_finetuning"] = ceiling
    return results


def about_calibration(worth: Calibration) -> dict[str, Any]:
    """What a reliability was worth, to write down."""
    cosines = [[value if np.isfinite(value) else None for value in row] for row in worth.cosine]
    return {
        "spearman": worth.spearman._asdict(),
        "groups": [
            {"from": low, "count": count, "cosine": cosine}
            for low, count, cosine in zip(worth.low, worth.count, cosines, strict=True)
        ],
    }


def _by_reliability(worth: Calibration) -> str:
    rows = {
        f"from {low:g}": {
            "samples": str(count),
            "cosine, median [10 %, 90 %]": f"{middle:.2f} [{bad:.2f}, {good:.2f}]",
        }
        for low, count, (bad, middle, good) in zip(
            worth.low, worth.count, worth.cosine, strict=True
        )
        if count
    }
    value, low, high = worth.spearman
    found = f"rank correlation with the cosine: {value:.2f} [{low:.2f}, {high:.2f}]"
    return f"{table(rows, 'reliability')}\n\n{found}"


def _by_steps(found: Mapping[int, Results]) -> str:
    rows = {
        method: {
            f"{steps:,}": interval(*results[method]["pooled_pearson"])
            for steps, results in found.items()
        }
        for method in next(iter(found.values()))
    }
    return table(rows, "method")

"""`scoresens validate` with experiment = "retrain": predictions against training from scratch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from scoresens.cli._command import Experiment
from scoresens.cli._common import (
    Changed,
    Setup,
    about_agreement,
    agreement,
    picture,
    points_of,
    write,
)
from scoresens.cli._progress import Stages, blaming, shown
from scoresens.cli._settings import ComparisonRun, TrainedRun, at_least, trace_of
from scoresens.datasets.images import prepare
from scoresens.flow.solve import Solve
from scoresens.laws.measures import Points
from scoresens.report.samples import Comparison, draw_validation
from scoresens.report.tables import validation_table
from scoresens.studies.changes import make_change
from scoresens.studies.finetuning import predict_change
from scoresens.studies.retraining import Queries, Retraining, Trial
from scoresens.studies.store import of_study

STUDY = ("data", "change", "model", "train", "seeds", "count", "seed", "steps")


@dataclass(frozen=True, kw_only=True)
class RetrainRun(ComparisonRun, TrainedRun):
    """Settings of `scoresens validate` with experiment = "retrain", explained in its help."""

    experiment: Literal["retrain"] = "retrain"
    seeds: int = 3

    def __post_init__(self):
        super().__post_init__()
        at_least(1, seeds=self.seeds)


def run_retrain(run: RetrainRun, out: Path, where: str) -> str:
    """Write how well predicted changes match what training from scratch on changed data does, with
    the parameters, noise and draws of training on the unchanged data; the table of the run."""
    stages, solve = Stages(), Solve(steps=run.steps)
    with stages("data", f"reading {run.data.name}"), blaming(f"{where}: data"):
        dataset = prepare(run.data)
        plain = Points(jnp.asarray(dataset.images))
    with blaming(f"{where}: change"):
        change = make_change(dataset, plain, run.change)
    with blaming(where):
        of_study(out, run, STUDY)
    study = Retraining(out, dataset.images, run.model, run.train, solve, shown)
    own = {"images": change.images, "base_weights": change.base_weights}
    still = own if change.base_weights is not None else {}
    seeds = range(run.seeds)
    controls = {f"control-{seed}": Trial(seed, **still) for seed in seeds}
    trials = controls | {f"changed-{seed}": Trial(seed, change.weights, **own) for seed in seeds}
    with stages("base", f"{run.seeds} models of the unchanged data", bars=True):
        models = study.models(controls)
    model = next(iter(models.values()))
    data = points_of(dataset, run, model, where, stages)
    change = make_change(dataset, data, run.change)
    noise = model.process.sample_prior((run.count, *data.shape), key=jax.random.key(run.seed))
    none = jnp.asarray(dataset.images[:0])
    queries = Queries(noise, none, jnp.ones(1, none.dtype), jax.random.key(0))
    with stages("train", f"{len(trials)} trainings", bars=True):
        found = study.outputs(trials, models, queries)
    control, changed = (
        np.stack([found[f"{name}-{seed}"].samples for seed in seeds])
        for name in ("control", "changed")
    )
    real = changed - control
    with stages("predict", f"{run.count} paths of {run.seeds} models by each method"):
        each = [
            predict_change(model, data, change, run.change.mass, noise, solve, trace_of(run.trace))
            for model in models.values()
        ]
    predicted = {name: np.stack([one[name] for one in each]) for name in each[0]}
    before = predicted.pop("before")
    with stages("compare", f"comparing, {run.resamples} bootstrap resamples"):
        pooled = {method: _pooled(moves) for method, moves in predicted.items()}
        others = {"another_seed": _pooled(np.roll(real, 1, 0))} if run.seeds > 1 else {}
        results = agreement(pooled | others, _pooled(real), run)
    whole = Changed(Setup(dataset, data, models["control-0"], noise), change, run.change)
    title = f"{whole.title}, trained from scratch"
    first = {method: moves[0] for method, moves in predicted.items()}
    moves = {"real": _pooled(real), **pooled}
    write(out, about_agreement(whole, results, moves), run, stages)
    with stages("pictures", "drawing"):
        pair = Comparison(before[0], control[0], changed[0], real[0], first, results)
        says = {"title": f"{title}, predicted and real", "trained": "a model trained from scratch"}
        says |= {"form": dataset.form}
        picture(draw_validation, out / "report.png", dataset.images, pair, **says)
    return f"{title}, {run.count} samples, {run.seeds} seeds\n\n{validation_table(results)}"


def _pooled(moves: np.ndarray) -> np.ndarray:
    """All samples of all seeds, `[R M, *shape]`."""
    return moves.reshape(-1, *moves.shape[2:])


EXPERIMENT = Experiment(
    name="retrain",
    run=run_retrain,
    settings=RetrainRun,
    about="""\
experiment = "retrain": predictions against training from scratch, on changed and on unchanged data
by several seeds, each pair of one seed's parameters and draws, beside what another seed's training
says. A run that was stopped goes on where it was. Settings: [data], [model], [train] as for train;
[change] as for sensitivity; seeds (pairs), resamples (of the bootstrap); count, seed, steps,
bandwidth, temperature, width, resolution, spectral_bias, trace as for sensitivity.""",
)

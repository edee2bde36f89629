"""`scoresens validate` with experiment = "removal": training without what matters to a sample."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist

from scoresens.cli._command import Experiment
from scoresens.cli._common import bumps_on, calibrated, picture, write
from scoresens.cli._progress import Stages, blaming, shown
from scoresens.cli._settings import BumpSettings, TrainedRun, at_least
from scoresens.datasets.images import prepare
from scoresens.flow.solve import Solve
from scoresens.models import Denoiser
from scoresens.report.removal import EFFECTS, draw_removal, removal_tables
from scoresens.sensitivity import functionals
from scoresens.sensitivity.attribution import attribute
from scoresens.statistics.bootstrap import percentiles, resampled_rows
from scoresens.statistics.components import principal_components
from scoresens.studies.predictions import loss_scores
from scoresens.studies.retraining import (
    Outputs,
    Queries,
    Retraining,
    Trial,
    baselines,
    training_levels,
)
from scoresens.studies.store import of_study

STUDY = ("data", "model", "train", "queries", "shares", "seeds", "levels", "seed", "steps")
AXES = 8  # principal components along which a sample's movement is attributed


@dataclass(frozen=True, kw_only=True)
class RemovalRun(TrainedRun, BumpSettings):
    """Settings of `scoresens validate` with experiment = "removal", explained in its help."""

    experiment: Literal["removal"] = "removal"
    queries: int = 8
    shares: tuple[float, ...] = (0.005, 0.01, 0.05, 0.1)
    seeds: int = 1
    levels: int = 32
    seed: int = 0
    resamples: int = 1000

    def __post_init__(self):
        super().__post_init__()
        at_least(2, queries=self.queries)
        at_least(1, seeds=self.seeds, levels=self.levels, steps=self.steps)
        at_least(1, resamples=self.resamples)
        if not self.shares or list(self.shares) != sorted(set(self.shares)):
            raise ValueError(f"shares must rise, got {list(self.shares)}")
        if not (self.shares[0] > 0 and self.shares[-1] < 1):
            raise ValueError(f"shares must lie between 0 and 1, got {list(self.shares)}")


def run_removal(run: RemovalRun, out: Path, where: str) -> str:
    """Write what training without the images that matter most to a sample does to it; the table of
    the run."""
    stages, solve = Stages(), Solve(steps=run.steps)
    with stages("data", f"reading {run.data.name}"), blaming(f"{where}: data"):
        dataset = prepare(run.data)
    images, nouns = dataset.images, dataset.form.nouns
    with blaming(where):
        of_study(out, run, STUDY)
    study, bases = Retraining(out, images, run.model, run.train, solve, shown), baselines(run.seeds)
    with stages("base", f"{run.seeds} models of all {nouns}", bars=True):
        models = study.models(bases)
        queries = _queries(run, study, models["all-0"])
    with stages("rank", f"ranking the {nouns} by what they do to {run.queries} samples"):
        orders = _orders(run, models["all-0"], images, queries, solve)
    trials = bases | _trials(run, orders, len(images))
    with stages("train", f"{len(trials)} trainings", bars=True):
        found = study.outputs(trials, models, queries)
    effects = _effects(run, list(orders), found)
    title = f"{dataset.name}: trained without the {nouns} that matter to a sample"
    write(out, {"effects": effects, "images": len(images)}, run, stages)
    with stages("pictures", "drawing"):
        picture(draw_removal, out / "report.png", effects, title=title, nouns=nouns)
    return f"{title}, {run.queries} samples, {run.seeds} seeds\n\n{removal_tables(effects, nouns)}"


# ------------------------------------------------------------------ queries, and what is removed


def _queries(run: RemovalRun, study: Retraining, model: Denoiser) -> Queries:
    shape, dtype = study.images.shape[1:], study.images.dtype
    noise = model.process.sample_prior((run.queries, *shape), key=jax.random.key(run.seed))
    levels = jnp.asarray(training_levels(run.train, run.levels), dtype)
    drawn = jnp.asarray(study.generated(model, noise))
    return Queries(noise, drawn, levels, jax.random.key(run.seed + 1))


def _orders(run, model, images, queries, solve) -> dict[str, np.ndarray]:
    """By method, for each sample the images `[Q, N]` that matter most first."""
    data = calibrated(images, model) if run.calibrated else bumps_on(images, run)
    loss = loss_scores(model, data, queries, solve)
    axes = principal_components(images, AXES).reshape(-1, *images.shape[1:])
    along = functionals.components(jnp.asarray(axes, images.dtype))
    moved = attribute(model.process, model.score, data, along, queries.noise, solve=solve).scores
    x, y = (np.reshape(a, (len(a), -1)) for a in (queries.images, images))
    rng = np.random.default_rng(run.seed)
    return {
        "ours, by the loss": np.argsort(loss, 1),
        "ours, by movement": np.argsort(-np.linalg.norm(np.asarray(moved), axis=1), 1),
        "ours, least first": np.argsort(np.abs(loss), 1),
        "nearest": np.argsort(cdist(x, y), 1),
        "random": np.stack([rng.permutation(len(images)) for _ in range(run.queries)]),
    }


def _trials(run, orders, count) -> dict[str, Trial]:
    made = {}
    for method, ranked in orders.items():
        for query, order in enumerate(ranked):
            for share in run.shares:
                weights = np.ones(count)
                weights[order[: max(1, round(share * count))]] = 0
                for seed in range(run.seeds):
                    made[_name(method, query, share, seed)] = Trial(seed, weights)
    return made


def _name(method: str, query: int, share: float, seed: int) -> str:
    slug = method.replace(", ", "-").replace(" ", "-")
    return f"{slug}-{query:02d}-{share:g}-{seed}"


# ------------------------------------------------------------------ what it did


def _effects(
    run: RemovalRun, methods: list[str], found: dict[str, Outputs]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By effect and method, the mean over samples and seeds at each share, with the 95 % interval
    of a bootstrap over samples."""
    rows = resampled_rows(run.queries, run.resamples, run.seed)
    made: dict[str, dict[str, list[dict[str, Any]]]] = {effect: {} for effect in EFFECTS}
    for method in methods:
        for share in run.shares:
            each = np.array([_effect(run, found, method, q, share) for q in range(run.queries)])
            for effect, values in zip(EFFECTS, each.T, strict=True):
                mean = percentiles(values.mean(), values[rows].mean(1))
                made[effect].setdefault(method, []).append(
                    {"share": share, **mean._asdict(), "each": values}
                )
    return made


def _effect(run, found, method, query, share) -> tuple[float, float]:
    """The rise of the loss at one sample and how far it moved, the mean over seeds."""
    rises, moves = [], []
    for seed in range(run.seeds):
        base, without = found[f"all-{seed}"], found[_name(method, query, share, seed)]
        rises.append(without.losses[query] - base.losses[query])
        moves.append(np.linalg.norm(without.samples[query] - base.samples[query]))
    return float(np.mean(rises)), float(np.mean(moves))


EXPERIMENT = Experiment(
    name="removal",
    run=run_removal,
    settings=RemovalRun,
    about="""\
experiment = "removal": trains from scratch without the images that matter most to a sample, by our
attribution of its loss and of its movement, against the nearest, the least and random images: how
the loss at the sample rises and how far it moves. A run that was stopped goes on where it was.
Settings: [data], [model], [train] as for train; queries (samples), shares (of the images left out),
seeds, levels, seed, steps, bandwidth, temperature, width, resolution, spectral_bias, resamples.""",
)

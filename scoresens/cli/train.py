"""`scoresens train`: a network from a data set."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from scoresens.cli._command import Command
from scoresens.cli._common import GRID, in_own_units, picture, write
from scoresens.cli._progress import Stages, blaming
from scoresens.datasets.images import DataSettings, prepare
from scoresens.flow import sample_ode
from scoresens.models import ModelSettings, build
from scoresens.report.page import draw_grid, draw_loss
from scoresens.report.tables import table
from scoresens.training.denoising import TrainSettings, train_to_file
from scoresens.training.loop import LOSS_EVERY


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """Settings of `scoresens train`, explained in its help."""

    seed: int = 0
    data: DataSettings
    model: ModelSettings
    train: TrainSettings


def run_train(run: TrainRun, out: Path, where: str) -> str:
    """Train a network and write it with its loss and some samples; the table of the run."""
    stages = Stages()
    with stages("data", f"reading {run.data.name}"), blaming(f"{where}: data"):
        dataset = prepare(run.data)
    with blaming(f"{where}: model"):
        shape = dataset.images.shape[1:]
        jax.eval_shape(lambda: build(run.model, shape, 1.0, key=jax.random.key(0)))
    nouns = dataset.form.nouns
    with stages("train", f"training on {len(dataset.images)} {nouns}", bars=True):
        path = out / "model.safetensors"
        trained = train_to_file(path, dataset, run.model, run.train, seed=run.seed)
    with stages("sample", f"compiling and integrating {GRID} paths"):
        process, score = trained.model.process, trained.model.score
        noise = process.sample_prior((GRID, *shape), key=jax.random.key(run.seed))
        x = np.asarray(sample_ode(process, score, noise).x)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trained.model))
    loss = {"first": float(trained.losses[0]), "last": float(trained.losses[-1])}
    result = {"parameters": parameters, "images": len(dataset.images), "loss": loss}
    result |= in_own_units(dataset.form, x)
    write(out, result | {"losses": trained.losses}, run, stages)
    with stages("pictures", "drawing"):
        steps = np.minimum(LOSS_EVERY * (1 + np.arange(len(trained.losses))), run.train.steps)
        title = f"{dataset.name}: {run.model.kind} of width {run.model.width}"
        says = f"The mean of the denoising loss over each {LOSS_EVERY} steps."
        path = out / "loss.png"
        picture(draw_loss, path, steps, trained.losses, title=title, caption=says)
        says = f"{GRID} samples after {run.train.steps} steps, by the probability flow."
        named = {"title": title, "caption": says, "form": dataset.form}
        beside = dataset.images if dataset.form.columns else None
        picture(draw_grid, out / "samples.png", x, data=beside, **named)
    row = {nouns: f"{len(dataset.images)}", "parameters": f"{parameters}"}
    row |= {"steps": f"{run.train.steps}"} | {f"{k} loss": f"{v:.4f}" for k, v in loss.items()}
    return table({dataset.name: row}, "data")


COMMAND = Command(
    name="train",
    run=run_train,
    settings=TrainRun,
    brief="train a network on a data set",
    about="""\
How is a checkpoint made? Trains a denoising network on a data set: images, a table, windows of a
series, or points of a plane (docs/data.md).

Settings: seed (of parameters, batches and samples); [data] name, path, classes, count, size, seed,
label, window, stride; [model] kind ("mlp", "unet"), width, depth, degrees_of_freedom (of Student-t
noise, as PFGM++; left out: Gaussian); [train] steps, batch_size, learning_rate, warmup, decay,
ema_halflife, p_mean, p_std.""",
    example="scoresens train configs/digits.toml --out runs/digits",
    writes={
        "model.safetensors": "the checkpoint; name its path in the other settings",
        "samples.png": f"{GRID} samples",
        "loss.png": "the loss while training",
        "result.json": "losses, number of parameters",
    },
)

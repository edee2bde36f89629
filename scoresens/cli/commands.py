"""What each command does: settings and a folder in, files and a table out.

Each takes the settings, the folder (which exists), and where the settings came from, for errors to
name; and returns the table to print. `demo`, `attribute`, `gap`, `residual` and
the experiments of `validate` have files of their own.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scoresens.cli.common import (
    PROCESS,
    TRACES,
    VERBS,
    about_change,
    black_box,
    checkpoint,
    norms_by_mass,
    quantiles,
    set_up_change,
    titled,
    write,
    write_arrays,
)
from scoresens.cli.progress import Stages, blaming
from scoresens.cli.settings import (
    CounterfactualRun,
    SampleRun,
    SensitivityRun,
    TrainRun,
)
from scoresens.datasets.images import prepare
from scoresens.flow import sample_ode, sample_sde
from scoresens.flow.solve import Solve
from scoresens.laws.scores import from_denoiser
from scoresens.models import build
from scoresens.report.page import draw_grid, draw_loss
from scoresens.report.samples import (
    SHOWN,
    draw_sensitivity,
    draw_strip,
    table,
)
from scoresens.sensitivity.counterfactual import counterfactual
from scoresens.sensitivity.tangents import sample_sensitivity
from scoresens.statistics.displacements import looks_like, norms
from scoresens.studies.finetuning import reliability
from scoresens.training.denoising import LOSS_EVERY, train_to_file

GRID = 64  # samples shown at most
DOUBTFUL = 0.5  # reliability below which the median cosine with fine-tunings was 0.34 to 0.75


def run_train(run: TrainRun, out: Path, where: str) -> str:
    """Train a network and write it with its loss and some samples; the table of the run."""
    stages = Stages()
    with stages("data", f"reading {run.data.name}"), blaming(f"{where}: data"):
        dataset = prepare(run.data)
    with blaming(f"{where}: model"):
        shape = dataset.images.shape[1:]
        jax.eval_shape(lambda: build(run.model, shape, 1.0, key=jax.random.key(0)))
    with stages("train", f"training on {len(dataset.images)} images", bars=True):
        path = out / "model.safetensors"
        trained = train_to_file(path, dataset, run.model, run.train, seed=run.seed)
    count = GRID
    with stages("sample", f"compiling and integrating {count} paths"):
        noise = PROCESS.sample_prior((count, *shape), key=jax.random.key(run.seed))
        x = np.asarray(sample_ode(PROCESS, from_denoiser(PROCESS, trained.model), noise).x)
    with stages("pictures", "drawing"):
        steps = np.minimum(LOSS_EVERY * (1 + np.arange(len(trained.losses))), run.train.steps)
        title = f"{dataset.name}: {run.model.kind} of width {run.model.width}"
        says = f"The mean of the denoising loss over each {LOSS_EVERY} steps."
        draw_loss(out / "loss.png", steps, trained.losses, title=title, caption=says)
        says = f"{count} samples after {run.train.steps} steps, by the probability flow."
        draw_grid(out / "samples.png", x, title=title, caption=says)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trained.model))
    loss = {"first": float(trained.losses[0]), "last": float(trained.losses[-1])}
    result = {
        "parameters": parameters,
        "images": len(dataset.images),
        "loss": loss,
        "losses": trained.losses,
    }
    write(out, result, run, stages)
    row = {"images": f"{len(dataset.images)}", "parameters": f"{parameters}"}
    row |= {"steps": f"{run.train.steps}"} | {f"{k} loss": f"{v:.4f}" for k, v in loss.items()}
    return table({dataset.name: row}, "data")


def run_sample(run: SampleRun, out: Path, where: str) -> str:
    """Draw samples of a checkpoint and write them; the table of the run."""
    stages = Stages()
    with blaming(f"{where}: checkpoint"):
        model, about = checkpoint(run.checkpoint)
    key, other = jax.random.split(jax.random.key(run.seed))
    process, score, solve = model.process, model.score, Solve(steps=run.steps)
    noise = process.sample_prior((run.count, *model.shape), key=key)
    with stages("sample", f"compiling and integrating {run.count} paths"):
        draw = sample_sde if run.sampler == "sde" else sample_ode
        trace = None if run.log_density is None else TRACES[run.log_density]
        path = draw(process, score, noise, trace=trace, key=other, solve=solve)
    x, density = jax.device_get((path.x, path.log_density))
    arrays = {"x": x, "noise": np.asarray(noise)}
    result: dict[str, Any] = {"count": run.count, "trained_on": about.get("data")}
    row = {"samples": f"{run.count}", "mean": f"{x.mean():.3f}", "std": f"{x.std():.3f}"}
    result |= {"mean": float(x.mean()), "std": float(x.std())}
    if density is not None:
        arrays["log_density"] = density
        summary = {"mean": float(density.mean()), "std": float(density.std())}
        result["log_density"] = summary
        row |= {f"log-density {name}": f"{value:.1f}" for name, value in summary.items()}
    with stages("pictures", "drawing"):
        kind = "probability flow" if run.sampler == "ode" else "reverse SDE"
        says = f"By the {kind} in {run.steps} steps, seed {run.seed}."
        says += "" if density is None else " Below each sample its log-density in nats."
        notes = [] if density is None else [f"{value:.1f}" for value in density[:GRID]]
        shown = "" if run.count <= GRID else f"{GRID} of "
        title = f"{shown}{run.count} samples of {run.checkpoint}"
        draw_grid(out / "samples.png", x[:GRID], title=title, caption=says, notes=notes)
        write_arrays(out / "samples.npz", **arrays)
    write(out, result, run, stages)
    return table({run.checkpoint: row}, "checkpoint")


def run_sensitivity(run: SensitivityRun, out: Path, where: str) -> str:
    """Write the first-order change of samples under a change of the data; the table of the run."""
    stages = Stages()
    setup, change = set_up_change(run, where, stages)
    process, score = setup.process, setup.score
    with stages("sensitivity", f"compiling and integrating {run.count} paths and tangents"):
        found = sample_sensitivity(
            process,
            score,
            change.perturbation,
            setup.noise,
            solve=Solve(steps=run.steps),
            **black_box(run, setup),
        )
    x, tangent, density = jax.device_get((found.x, found.tangent[:, 0], found.log_density))
    moved = run.change.mass * tangent
    title = titled(setup, change, run.change)
    with stages("pictures", "drawing"):
        draw_sensitivity(
            out / "report.png",
            setup.named,
            change.touched,
            x,
            moved,
            title=title,
            verb=VERBS.get(run.change.kind, "removed"),
            log_density=density,
        )
        arrays = {"x": x, "tangent": tangent}
        arrays |= {} if density is None else {"log_density": density}
        write_arrays(out / "tangents.npz", **arrays)
    sizes = norms(moved)
    spread = quantiles(sizes)
    result = about_change(setup, change, run) | {"first_order_norm": spread, "norms": sizes}
    write(out, result, run, stages)
    row = {f"|change| {name}": f"{value:.3f}" for name, value in spread.items()}
    return f"{title}\n\n" + table({f"first order ({run.base})": row}, "method")


def run_counterfactual(run: CounterfactualRun, out: Path, where: str) -> str:
    """Write samples after a change of the data, at growing masses; the table of the run."""
    stages, solve, masses = Stages(), Solve(steps=run.steps), run.ladder
    setup, change = set_up_change(run, where, stages)
    process, score = setup.process, setup.score
    with stages("sample", f"compiling and integrating {run.count} paths"):
        before = np.asarray(sample_ode(process, score, setup.noise, solve=solve).x)
    with stages("counterfactual", f"compiling and integrating them at {len(masses)} masses"):
        found = counterfactual(
            process,
            score,
            change.perturbation,
            setup.noise,
            mass=jnp.asarray(masses),
            solve=solve,
            **black_box(run, setup),
        )
    after, bounded = np.asarray(found.x[:, :, 0]), np.asarray(found.bounded[:, :, 0])
    sizes = norms_by_mass(after, before)
    was = looks_like(before, setup.named)
    turned = [float(np.mean(looks_like(x, setup.named) != was)) for x in np.moveaxis(after, 1, 0)]
    title = titled(setup, change, replace(run.change, mass=masses[-1]))
    with stages("pictures", "drawing"):
        draw_strip(
            out / "report.png",
            setup.named,
            change.touched,
            before,
            after,
            masses,
            sizes=sizes[:, -1],
            count=SHOWN,
            title=title,
            verb=VERBS.get(run.change.kind, "removed"),
            bounded=bounded,
        )
        write_arrays(out / "samples.npz", before=before, x=after, masses=masses, bounded=bounded)
    result = about_change(setup, change, run) | {"masses": masses, "norms": sizes}
    moved = change.moved * masses[-1] / run.change.mass
    trust = reliability(after[:, -1] - before, moved, float(setup.data.bandwidth))
    result |= {"reliability": trust}
    result |= {"norm": [quantiles(column) for column in sizes.T], "other_class": turned}
    result |= {"bounded_samples": np.sum(bounded > 0, 0), "bounded_steps": bounded.sum(0)}
    write(out, result, run, stages)
    rows = {
        f"{mass:g}": {f"|change| {name}": f"{value:.3f}" for name, value in spread.items()}
        | {"other class": f"{share:.0%}", "bounded": f"{count}"}
        for mass, spread, share, count in zip(
            masses, result["norm"], turned, result["bounded_samples"], strict=True
        )
    }
    doubtful = np.mean(trust < DOUBTFUL)
    note = (
        f"reliability below {DOUBTFUL:g}, where even the direction is doubtful: {doubtful:.0%} of "
        "the samples (docs/validation.md)"
    )
    return f"{title}, {run.count} samples\n\n{table(rows, 'mass')}\n\n{note}"

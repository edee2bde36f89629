"""What each command does: settings and a folder in, files and a table out.

Each takes the settings, the folder (which exists), and where the settings came from, for errors to
name; and returns the table to print.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoresens.changes import Change, ChangeSettings, make_change
from scoresens.cli.progress import Stages, blaming, tell
from scoresens.cli.settings import DemoRun, SampleRun, SensitivityRun, TrainRun, ValidateRun
from scoresens.config import ConfigError
from scoresens.counterfactual import counterfactual
from scoresens.datasets import Dataset, DataSettings, prepare
from scoresens.drawing import draw_grid, draw_loss, replacing
from scoresens.measures import Points, default_bandwidth
from scoresens.models import Denoiser, build, load, pretrained
from scoresens.paths import sample_ode, sample_sde
from scoresens.processes import EDM
from scoresens.report import (
    NAMES,
    Named,
    Rows,
    cosines,
    draw_demo,
    draw_sensitivity,
    draw_validation,
    looks_like,
    norms,
    spread,
    table,
    validation_table,
)
from scoresens.results import write_result
from scoresens.scores import from_denoiser
from scoresens.sensitivity import sample_sensitivity
from scoresens.solve import Solve
from scoresens.traces import Exact, Hutchinson
from scoresens.training import LOSS_EVERY, train_to_file
from scoresens.validation import compare, predict_change, real_change

PROCESS = EDM()  # denoisers are of the canonical frame
TRACES = {"exact": Exact(), "hutchinson": Hutchinson(1)}
BUNDLED = ("digits",)  # checkpoints that come with the package
DRAWN = 128  # samples of the demo
GRID = 64  # samples shown at most


class Setup(NamedTuple):
    """What sensitivities and validations start from."""

    dataset: Dataset
    data: Points
    model: Denoiser
    change: Change
    noise: jax.Array


# ------------------------------------------------------------------ commands


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
        noise = PROCESS.sample_prior(jax.random.key(run.seed), (count, *shape))
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
    _write(out, result, run, stages)
    row = {"images": f"{len(dataset.images)}", "parameters": f"{parameters}"}
    row |= {"steps": f"{run.train.steps}"} | {f"{k} loss": f"{v:.4f}" for k, v in loss.items()}
    return table({dataset.name: row}, "data")


def run_sample(run: SampleRun, out: Path, where: str) -> str:
    """Draw samples of a checkpoint and write them; the table of the run."""
    stages = Stages()
    with blaming(f"{where}: checkpoint"):
        model, about = _checkpoint(run.checkpoint)
    key, other = jax.random.split(jax.random.key(run.seed))
    noise = PROCESS.sample_prior(key, (run.count, *model.network.shape))
    score, solve = from_denoiser(PROCESS, model), Solve(steps=run.steps)
    with stages("sample", f"compiling and integrating {run.count} paths"):
        if run.sampler == "sde":
            path = sample_sde(PROCESS, score, noise, key=other, solve=solve)
        else:
            trace = None if run.log_density is None else TRACES[run.log_density]
            path = sample_ode(PROCESS, score, noise, log_density=trace, key=other, solve=solve)
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
        _write_arrays(out / "samples.npz", **arrays)
    _write(out, result, run, stages)
    return table({run.checkpoint: row}, "checkpoint")


def run_sensitivity(run: SensitivityRun, out: Path, where: str) -> str:
    """Write the first-order change of samples under a change of the data; the table of the run."""
    stages = Stages()
    setup = _setup(run, where, stages)
    options: dict[str, Any] = {"base": setup.data}
    if run.base == "model":
        key = jax.random.fold_in(jax.random.key(run.seed), 1)
        options = {"trace": TRACES[run.trace], "prior": setup.data, "key": key}
    score = from_denoiser(PROCESS, setup.model)
    with stages("sensitivity", f"compiling and integrating {run.count} paths and tangents"):
        found = sample_sensitivity(
            PROCESS,
            score,
            setup.change.perturbation,
            setup.noise,
            solve=Solve(steps=run.steps),
            **options,
        )
    x, tangent, density = jax.device_get((found.x, found.tangent[:, 0], found.log_density))
    change = run.change.mass * tangent
    title = _title(setup, run.change)
    with stages("pictures", "drawing"):
        draw_sensitivity(
            out / "report.png",
            _named(setup.dataset),
            setup.change.touched,
            x,
            change,
            title=title,
            verb="added" if run.change.kind == "add" else "removed",
            log_density=density,
        )
        arrays = {"x": x, "tangent": tangent}
        arrays |= {} if density is None else {"log_density": density}
        _write_arrays(out / "tangents.npz", **arrays)
    sizes = norms(change)
    low, middle, high = (float(q) for q in np.percentile(sizes, (10, 50, 90)))
    quantiles = {"p10": low, "median": middle, "p90": high, "max": float(sizes.max())}
    result = _about(setup, run) | {"first_order_norm": quantiles, "norms": sizes}
    _write(out, result, run, stages)
    row = {f"|change| {name}": f"{value:.3f}" for name, value in quantiles.items()}
    return f"{title}\n\n" + table({f"first order ({run.base})": row}, "method")


def run_demo(run: DemoRun, out: Path, where: str) -> str:
    """Write what more of one class does to samples of the bundled digits; the table of the run."""
    stages = Stages()
    with blaming(where):
        change = run.change
    drawn = max(DRAWN, run.count)
    digits = DataSettings("digits")
    whole = SensitivityRun(data=digits, change=change, count=drawn, seed=run.seed)
    setup = _setup(whole, where, stages)
    score, direction = from_denoiser(PROCESS, setup.model), setup.change.perturbation
    with stages("first_order", f"compiling and integrating {drawn} paths and tangents"):
        first = sample_sensitivity(PROCESS, score, direction, setup.noise, base=setup.data)
    with stages("counterfactual", f"compiling and integrating {drawn} changed paths"):
        finite = counterfactual(
            PROCESS, score, direction, setup.noise, mass=run.mass, base=setup.data
        )
    before, after = np.asarray(first.x), np.asarray(finite.x[:, 0])
    moved, jumped = run.mass * np.asarray(first.tangent[:, 0]), after - before
    data, shown = _named(setup.dataset), spread(norms(jumped), run.count)
    label = data.class_names.index(run.class_name)
    was, became = (looks_like(x, data) for x in (before, after))
    shares = {
        "samples_before": float(np.mean(was == label)),
        "samples_after": float(np.mean(became == label)),
        "data_before": float(setup.change.touched.mean()),
        "data_after": float(setup.change.weights[setup.change.touched].sum()),
    }
    title = _title(setup, change)
    with stages("pictures", "drawing"):
        draw_demo(
            out / "report.png",
            data,
            setup.change.touched,
            before,
            moved,
            after,
            count=run.count,
            title=title,
            remark=(
                f"The class's share: {shares['data_before']:.0%} → {shares['data_after']:.0%} of "
                f"the data, {shares['samples_before']:.0%} → {shares['samples_after']:.0%} of the "
                "samples."
            ),
        )
    numbers = {
        "first_order_norm": norms(moved),
        "counterfactual_norm": norms(jumped),
        "cosine": cosines(moved, jumped),
    }
    names = {
        "class_before": [data.class_names[i] for i in was],
        "class_after": [data.class_names[i] for i in became],
    }
    medians = {name: float(np.median(values)) for name, values in numbers.items()}
    result = _about(setup, whole) | {"class": run.class_name, "class_share": shares}
    result |= {"median": medians, "shown": shown, "samples": numbers | names}
    _write(out, result, run, stages)
    says = [f"{_words(name)} {value:.1%}" for name, value in shares.items()]
    rows = _demo_rows(shown, numbers, names, medians)
    return f"{title}\n\n{table(rows)}\n\nshare of class {run.class_name}: {', '.join(says)}"


def _demo_rows(
    shown: np.ndarray,
    numbers: dict[str, np.ndarray],
    names: dict[str, list[str]],
    medians: dict[str, float],
) -> Rows:
    """A row for each sample in the picture, and one for the medians of all."""
    rows = {
        f"sample {i}": {
            "class": f"{names['class_before'][i]} -> {names['class_after'][i]}",
            **{_words(name): f"{values[i]:.2f}" for name, values in numbers.items()},
        }
        for i in shown
    }
    return rows | {
        "median of all": {_words(name): f"{value:.2f}" for name, value in medians.items()}
    }


def run_validate(run: ValidateRun, out: Path, where: str) -> str:
    """Write how well predicted changes match what fine-tuning does; the table of the run."""
    stages, solve = Stages(), Solve(steps=run.steps)
    setup = _setup(run, where, stages)
    with stages("predict", f"compiling and integrating {run.count} paths by each method"):
        predicted = predict_change(
            setup.model, setup.data, setup.change, run.change.mass, setup.noise, solve
        )
    before = predicted.pop("before")
    with stages(
        "finetune", f"fine-tuning {run.repeats} x on unchanged and on changed data", bars=True
    ):
        real = real_change(
            setup.model,
            setup.data,
            setup.change,
            setup.noise,
            key=jax.random.fold_in(jax.random.key(run.seed), 1),
            settings=run.finetune,
            repeats=run.repeats,
            solve=solve,
        )
    truth = real.displacement
    methods = sorted(predicted, key=[*NAMES, *predicted].index)
    with stages("compare", f"comparing, {run.resamples} bootstrap resamples"):
        results = {
            method: compare(predicted[method], truth, resamples=run.resamples, seed=run.seed)
            for method in methods
        }
        if run.repeats > 1:
            ceiling = compare(*real.ceiling, resamples=run.resamples, seed=run.seed)
            results["another_finetuning"] = ceiling
    title = _title(setup, run.change)
    with stages("pictures", "drawing"):
        draw_validation(
            out / "report.png",
            setup.dataset.images,
            predicted,
            before,
            real.control[0],
            real.changed[0],
            truth,
            results,
            title=f"{title}, predicted and real",
        )
        arrays = {"before": before, "control": real.control, "changed": real.changed}
        _write_arrays(out / "displacements.npz", **arrays, **predicted)
    result = {
        method: {measure: _json(found._asdict()) for measure, found in row.items()}
        for method, row in results.items()
    }
    sizes = {"real": truth, "control_drift": np.concatenate(real.control - before), **predicted}
    result |= _about(setup, run) | {"methods": list(results)}
    result["mean_norm"] = {name: float(norms(change).mean()) for name, change in sizes.items()}
    _write(out, result, run, stages)
    return f"{title}, {run.count} samples\n\n{validation_table(results)}"


# ------------------------------------------------------------------ what the commands share


def _setup(run: SensitivityRun | ValidateRun, where: str, stages: Stages) -> Setup:
    """Data, model, change and noise, or an error that names the setting to mend."""
    with stages("data", f"reading {run.data.name} and the checkpoint {run.checkpoint}"):
        with blaming(f"{where}: data"):
            dataset = prepare(run.data)
        with blaming(f"{where}: checkpoint"):
            model, about = _checkpoint(run.checkpoint)
        if dataset.images.shape[1:] != model.network.shape:
            raise ConfigError(
                f"{where}: data: images of shape {dataset.images.shape[1:]}, where the checkpoint "
                f"{run.checkpoint} takes {model.network.shape}: choose the data that it was "
                f"trained on ({about.get('data')}), or their size"
            )
        with blaming(f"{where}: bandwidth"):
            images, own = jnp.asarray(dataset.images), run.bandwidth
            data = Points(images, bandwidth=default_bandwidth(images) if own is None else own)
        with blaming(f"{where}: change"):
            change = make_change(dataset, data, run.change)
        noise = PROCESS.sample_prior(jax.random.key(run.seed), (run.count, *data.shape))
    trained_on = about.get("data"), about.get("count")
    if trained_on != (dataset.name, len(dataset.images)):
        tell(f"note: {run.checkpoint} was trained on {trained_on[1]} images of {trained_on[0]}")
    return Setup(dataset, data, model, change, noise)


def _checkpoint(name: str) -> tuple[Denoiser, dict]:
    """A bundled checkpoint by its name, or the one in a file."""
    return pretrained(name) if name in BUNDLED else load(name)


def _about(setup: Setup, run: SensitivityRun | ValidateRun) -> dict[str, Any]:
    """What every result about a change tells of it."""
    return {
        "change": run.change.title,
        "mass": run.change.mass,
        "count": run.count,
        "images": len(setup.dataset.images),
        "touched_images": int(setup.change.touched.sum()),
        "bandwidth": float(setup.data.bandwidth),
    }


def _title(setup: Setup, change: ChangeSettings) -> str:
    touched, total = int(setup.change.touched.sum()), len(setup.dataset.images)
    return f"{setup.dataset.name}: {change.title} ({touched} of {total} images)"


def _named(dataset: Dataset) -> Named:
    return Named(dataset.images, dataset.labels, dataset.class_names)


def _words(name: str) -> str:
    return name.replace("_", " ").replace("first order", "first-order")


def _json(numbers: dict[str, float]) -> dict[str, float | None]:
    """Numbers that do not exist, such as the correlation of constants, are written as null."""
    return {name: value if np.isfinite(value) else None for name, value in numbers.items()}


def _write(out: Path, result: dict[str, Any], run: Any, stages: Stages) -> None:
    whole = {**result, "stages": stages.seconds}
    write_result(out, whole, settings=run, seconds=stages.total)


def _write_arrays(path: Path, **arrays: Any) -> None:
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)

"""`scoresens validate` with experiment = "halves": predictions against training on halves."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from scoresens.cli._command import Experiment
from scoresens.cli._common import calibrated, kernel_of, picture, write
from scoresens.cli._progress import Stages, blaming, shown, tell
from scoresens.cli._settings import Trace, TrainedRun, at_least, check_trace, trace_of
from scoresens.datasets.images import Dataset, prepare
from scoresens.flow.solve import Solve
from scoresens.laws.measures import Points, default_bandwidth
from scoresens.models import Denoiser
from scoresens.report.halves import draw_halves, halves_table
from scoresens.statistics.components import principal_components
from scoresens.statistics.estimates import Estimate
from scoresens.studies import halves as lds
from scoresens.studies.halves import HalvesSettings
from scoresens.studies.predictions import LOSSES, MOVES, PATCHES, Case, Choice, Patches, Prediction
from scoresens.studies.retraining import Queries, Retraining, baselines, training_levels
from scoresens.studies.store import ARRAY, Store, arrays, of_study

STUDY = ("data", "model", "train", "halves", "steps")
TARGETS = {"displacement": MOVES, "loss": LOSSES}
FACTORS = ("0.6", "0.8", "1", "1.2", "1.5", "2")  # bandwidths to choose from, over the default one
DEFAULT, CALIBRATED = "1", "calibrated"
SETTINGS: dict[Choice, tuple[str, ...]] = {  # by what there is to choose
    "kernel": (*FACTORS, CALIBRATED),
    "bandwidth": FACTORS,
    "patches": tuple(PATCHES),
    "none": (DEFAULT,),
}
KERNEL = arrays("bandwidth", "width", "resolution")


@dataclass(frozen=True, kw_only=True)
class HalvesRun(TrainedRun):
    """Settings of `scoresens validate` with experiment = "halves", explained in its help."""

    experiment: Literal["halves"] = "halves"
    halves: HalvesSettings = field(default_factory=HalvesSettings)
    trace: Trace = "exact"
    resamples: int = 300

    def __post_init__(self):
        at_least(1, steps=self.steps, resamples=self.resamples)
        check_trace(self.trace)


class Study(NamedTuple):
    """What all models of a study share."""

    images: np.ndarray  # [N, *shape], trained on
    halves: np.ndarray  # [S + C, N]; the last C are for choosing
    queries: Queries
    models: dict[str, Denoiser]  # of all images, `all-SEED`
    retraining: Retraining

    def points(self, **bumps: Any) -> Points:
        """The images with such bumps on them."""
        return Points(jnp.asarray(self.images), **bumps)


def run_halves(run: HalvesRun, out: Path, where: str) -> str:
    """Write how well predictions agree with training on halves of the data; the run's table."""
    stages = Stages()
    with stages("data", f"reading {run.data.name}"), blaming(f"{where}: data"):
        dataset = prepare(run.data)
        if run.halves.held_out > len(dataset.images) - 4:
            raise ValueError(f"{len(dataset.images)} images leave nothing to train on")
    with blaming(where):
        of_study(out, run, STUDY)
    with stages("base", f"{run.halves.seeds} models of all images", bars=True):
        study = _study(out, run, dataset)
    trainings = run.halves.seeds * (len(study.halves) + 1)
    with stages("train", f"{trainings} trainings", bars=True):
        truth = _truth(run, study)
    with stages("calibration", "the kernel that each model of all images is nearest to"):
        kernels = _kernels(out, study)
    with stages("predict", "predictions of each method", bars=True):
        predicted = _predictions(out, run, study, truth, kernels)
    with stages("compare", f"comparing, {run.resamples} bootstrap resamples"):
        result = _judge(run, study, truth, predicted)
    title = (
        f"{dataset.name}: {run.halves.subsets} random halves of {len(study.images)} images, "
        f"{run.halves.seeds} seeds"
    )
    result |= {"bandwidth": default_bandwidth(study.images), "kernels": kernels}
    write(out, result, run, stages)
    with stages("pictures", "drawing"):
        picture(draw_halves, out / "report.png", result, title=title)
    return f"{title}\n\n{halves_table(result)}"


# ------------------------------------------------------------------ the truth


def _study(out: Path, run: HalvesRun, dataset: Dataset) -> Study:
    """Images, halves, queries, and the models of all images, which are trained if missing."""
    settings = run.halves
    order = np.random.default_rng(settings.seed).permutation(len(dataset.images))
    held, kept = np.sort(order[: settings.held_out]), np.sort(order[settings.held_out :])
    images = dataset.images[kept]
    retraining = Retraining(out, images, run.model, run.train, Solve(steps=run.steps), shown)
    models = retraining.models(baselines(settings.seeds))
    key, query_key = jax.random.key(settings.seed), jax.random.key(settings.seed + 1)
    process = models["all-0"].process
    noise = process.sample_prior((settings.samples, *images.shape[1:]), key=key)
    levels = jnp.asarray(training_levels(run.train, settings.levels), images.dtype)
    drawn = retraining.generated(models["all-0"], noise, held=held, kept=kept)
    points = jnp.concatenate([jnp.asarray(drawn), jnp.asarray(dataset.images[held])])
    halves = lds.halves(len(images), settings.subsets + settings.choosing, settings.seed)
    return Study(images, halves, Queries(noise, points, levels, query_key), models, retraining)


def _truth(run: HalvesRun, study: Study) -> lds.Truth:
    trials = lds.plan(study.halves, run.halves.seeds)
    found = study.retraining.outputs(trials, study.models, study.queries)
    return lds.truth(found, len(study.halves), run.halves.seeds)


def stored(out: Path, run: HalvesRun) -> tuple[Study, lds.Truth]:
    """A study and its truth, from a folder that holds them; what it lacks is trained."""
    study = _study(out, run, prepare(run.data))
    return study, _truth(run, study)


# ------------------------------------------------------------------ predictions


def _kernels(out: Path, study: Study) -> list[dict[str, float]]:
    """Bandwidth, width and resolution that are calibrated for each model of all images."""
    store, found = Store(out / "predictions", KERNEL), []
    for seed, model in enumerate(study.models.values()):

        def make(model=model):
            kernel = kernel_of(calibrated(study.images, model))
            return {name: np.asarray(kernel[name]) for name in ("bandwidth", "width", "resolution")}

        kept = store.result(f"kernel-{seed}", make)
        found.append({name: float(value) for name, value in kept.items()})
    return found


def _predictions(
    out: Path, run: HalvesRun, study: Study, truth: lds.Truth, kernels: list[dict[str, float]]
) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """By target, method and setting: `[R, S + C, ...]`."""
    solve, trace = Solve(steps=run.steps), trace_of(run.trace)
    width = default_bandwidth(study.images)
    given: dict[str, list[Points] | list[Patches]] = {
        s: [study.points(bandwidth=float(s) * width)] * len(kernels) for s in FACTORS
    }
    given[CALIBRATED] = [study.points(**kernel) for kernel in kernels]
    given |= {name: [patches] * len(kernels) for name, patches in PATCHES.items()}
    jobs = [
        (target, method, predict, setting)
        for target, methods in TARGETS.items()
        for method, (predict, choice) in methods.items()
        for setting in SETTINGS[choice]
    ]
    cases = [
        Case(model, study.images, study.halves, study.queries, truth.samples[seed], solve, trace)
        for seed, model in enumerate(study.models.values())
    ]
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {target: {} for target in TARGETS}
    store = Store(out / "predictions", ARRAY)
    for target, method, predict, setting in tqdm(jobs, desc="predictions", unit="method"):
        make = functools.partial(_predicted, predict, cases, given[setting])
        try:
            made = store.result(f"{target}-{_slug(method)}-{_slug(setting)}", make)
        except FloatingPointError as error:  # a density ratio of the sharp black box, as a rule
            tell(f"note: {target}, {method}, at {setting} is left out: {error}")
            continue
        found[target].setdefault(method, {})[setting] = made
    for file in sorted((out / "rivals").glob("*.npz")):
        if not file.stem[-1].isdigit():  # METHOD-SEED.npz are its parts
            found["loss"][file.stem] = rival(file, study.halves)
    return found


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in name).split())


def _predicted(
    predict: Prediction, cases: list[Case], given: list[Points] | list[Patches]
) -> np.ndarray:
    each = zip(cases, given, strict=True)
    return np.stack([np.asarray(predict(case, one), np.float32) for case, one in each])


def rival(file: Path, halves: np.ndarray) -> dict[str, np.ndarray]:
    """Another method's scores of the points, `[R, D, Q, N]` for D dampings, as changes of the loss
    of halves, `[R, S + C, Q]` by damping."""
    change = halves / halves.sum(1, keepdims=True) - 1 / halves.shape[1]
    kept = arrays("scores", "dampings").read(file)
    return {
        f"{damping:g}": np.einsum("sn,rqn->rsq", change, kept["scores"][:, place])
        for place, damping in enumerate(kept["dampings"])
    }


# ------------------------------------------------------------------ judgement


def _judge(
    run: HalvesRun,
    study: Study,
    truth: lds.Truth,
    predicted: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
) -> dict[str, Any]:
    """Every method with its default, the calibrated kernel or the default bandwidth, and with the
    bandwidth that is best on the halves kept for choosing, judged on the others."""
    flat = truth.displacements.reshape(*truth.displacements.shape[:3], -1)
    axes = principal_components(study.images, run.halves.components)
    true = {"displacement": flat, "loss": truth.losses}
    report, choose = slice(run.halves.subsets), slice(run.halves.subsets, None)
    result: dict[str, Any] = {}
    for target, methods in predicted.items():
        judge = lds.Judge(true[target][:, report], axes if target == "displacement" else None,
                          run.resamples, run.halves.seed)  # fmt: skip
        chooser = lds.Judge(true[target][:, choose], judge.axes, 0, 0)
        rows = {}
        for method, settings in methods.items():
            flatter = {  # in double precision: a black box's squares may overflow the single one
                s: p.reshape(*true[target].shape).astype(float) for s, p in settings.items()
            }
            rows[method] = chosen(flatter, judge, chooser)
            default = CALIBRATED if CALIBRATED in flatter else DEFAULT
            is_ours = method in TARGETS[target]  # a rival's "1" is a damping
            if is_ours and len(flatter) > 1 and default in flatter:
                rows[method]["default"] = judge.all(flatter[default][:, report])
        result[target] = {"methods": rows, "ceiling": judge.ceiling()}
    settings = {method: row["setting"] for method, row in result["loss"]["methods"].items()}
    result["generated"] = {
        method: of_queries(run, truth.losses[:, report], found[settings[method]][:, report])
        for method, found in predicted["loss"].items()
    }
    return result


def chosen(
    settings: Mapping[str, np.ndarray], judge: lds.Judge, chooser: lds.Judge
) -> dict[str, Any]:
    """The setting that is best on the halves for choosing, the last of `[R, S + C, ...]`, with what
    each came to there, judged on the others."""
    report = judge.true.shape[1]
    curve = {s: chooser.rank(p[:, report:]) for s, p in settings.items()}
    best = max((s for s in curve if s != CALIBRATED), key=lambda s: curve[s])
    row = {"setting": best, "choosing": [[s, v] for s, v in curve.items()]}
    return row | {"chosen": judge.all(settings[best][:, :report])}


def of_queries(run: HalvesRun, losses: np.ndarray, best: np.ndarray) -> dict[str, Estimate]:
    """The loss's LDS apart, of true and predicted changes `[R, S, Q]`: at queries drawn from the
    model, and at held-out images."""
    count = run.halves.samples
    parts = {"generated": slice(count), "held_out": slice(count, None)}
    return {
        name: lds.Judge(losses[..., part], None, run.resamples, 0).all(best[..., part])["lds"]
        for name, part in parts.items()
    }


EXPERIMENT = Experiment(
    name="halves",
    run=run_halves,
    settings=HalvesRun,
    about="""\
experiment = "halves": trains models from scratch on all images and on random halves of them, by
several seeds, and compares how samples and denoising losses really changed with what is predicted
from the models of all images: the linear datamodeling score (LDS), beside baselines and what
another seed's training says; by the bandwidth that is best on other halves, and by default, which
is the kernel that each model is nearest to (calibrate). A run that was stopped goes on where it
was, and several processes may share DIR. Settings: [data], [model], [train] as for train; [halves]
seeds, subsets, choosing (halves on which bandwidths are chosen), samples, held_out (queries),
levels, components, seed; steps, trace, resamples.""",
    writes={"predictions/": "halves: what each method predicted"},
)

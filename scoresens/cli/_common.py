"""What the commands share: where they start from, and how they say and write what they found."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scoresens import importers
from scoresens._files import replacing
from scoresens.cli._config import ConfigError
from scoresens.cli._progress import Stages, blaming, tell
from scoresens.cli._results import write_result
from scoresens.cli._settings import (
    Base,
    BumpSettings,
    ChangeRun,
    ComparisonRun,
    PathSettings,
    Trace,
    trace_of,
)
from scoresens.datasets.forms import Dataset, Form, form_of
from scoresens.datasets.images import DataSettings, prepare
from scoresens.importers import Foreign
from scoresens.laws.learned import Smoothed
from scoresens.laws.measures import Points, default_bandwidth
from scoresens.laws.processes import Process
from scoresens.laws.scores import Score
from scoresens.models import Denoiser, load, pretrained
from scoresens.models.checkpoints import read_header
from scoresens.report.samples import Touched
from scoresens.report.tables import NAMES
from scoresens.sensitivity.calibration import calibrate
from scoresens.statistics.displacements import Batch, Named, norms
from scoresens.statistics.estimates import Estimate
from scoresens.studies.changes import Change, ChangeSettings, make_change
from scoresens.studies.finetuning import compare
from scoresens.studies.trust import cosine_bound, mismatch

GRID = 64  # samples shown at most
BUNDLED = ("digits",)  # checkpoints that come with the package
VERBS = {"add": "added", "model": "added", "shift": "moved"}  # images of a change; else removed

Model = Denoiser | Foreign  # trained here, or converted


class Setup(NamedTuple):
    """What every run that has data starts from."""

    dataset: Dataset
    data: Points
    model: Model
    noise: jax.Array

    @property
    def process(self) -> Process:
        """The process of the model."""
        return self.model.process

    @property
    def score(self) -> Score:
        """The model's score."""
        return self.model.score

    @property
    def named(self) -> Named:
        """The data as pictures need them."""
        dataset = self.dataset
        return Named(dataset.images, dataset.labels, dataset.class_names, dataset.form)

    @property
    def about(self) -> dict[str, Any]:
        """What every result records of its data."""
        return {
            "count": len(self.noise),
            "images": len(self.dataset.images),
            **unit_of(self.dataset.form),
        } | kernel_of(self.data)


class Changed(NamedTuple):
    """What every run about a change of the data starts from."""

    setup: Setup
    change: Change
    settings: ChangeSettings

    @property
    def title(self) -> str:
        """The data and what changes in them, in one line."""
        touched, dataset = int(self.change.touched.sum()), self.setup.dataset
        share = f" ({touched} of {len(dataset.images)} {dataset.form.nouns})" if touched else ""
        return f"{dataset.name}: {self.words}{share}"

    @property
    def words(self) -> str:
        """What changes."""
        return self.settings.words(self.setup.dataset.form.noun)

    @property
    def touched(self) -> Touched:
        """The data and what the change does to them, as pictures need it."""
        verb = VERBS.get(self.settings.kind, "removed")
        return Touched(self.setup.named, self.change.touched, verb)

    @property
    def about(self) -> dict[str, Any]:
        """What every result about a change records of it."""
        record = {"change": self.words, "mass": self.settings.mass}
        return record | self.setup.about | {"touched_images": int(self.change.touched.sum())}


def set_up(
    data: DataSettings,
    checkpoint: str,
    where: str,
    stages: Stages,
    *,
    count: int,
    seed: int,
    bumps: BumpSettings = BumpSettings(resolution=0.0),
) -> Setup:
    """The data with their bumps, the model of a checkpoint, by its name
    or path, and `count` draws of noise by `seed`; or an error that names the setting to mend, in
    the file or command `where`."""
    with stages("data", f"reading {data.name} and the checkpoint {checkpoint}"):
        dataset, model, about = data_and_model(data, checkpoint, where, prepare)
        shape = dataset.images.shape[1:]
        noise = model.process.sample_prior((count, *shape), key=jax.random.key(seed))
    points = points_of(dataset, bumps, model, where, stages)
    trained_on = about.get("data"), about.get("count")
    if isinstance(model, Foreign):
        tell(f"note: {checkpoint} was converted: nothing tells what it was trained on")
    elif trained_on != (dataset.name, len(dataset.images)):
        nouns = dataset.form.nouns
        tell(f"note: {checkpoint} was trained on {trained_on[1]} {nouns} of {trained_on[0]}")
    return Setup(dataset, points, model, noise)


def data_and_model(
    data: DataSettings, checkpoint: str, where: str, read: Callable[[DataSettings], Dataset]
) -> tuple[Dataset, Model, dict]:
    """The data, the model and its record, or an error that names the setting to mend."""
    with blaming(f"{where}: data"):
        dataset = read(data)
    with blaming(f"{where}: checkpoint"):
        model, about = load_checkpoint(checkpoint)
        trained = form_of(about)
    if dataset.images.shape[1:] != model.shape:
        raise ConfigError(
            f"{where}: data: {dataset.form.nouns} of shape {dataset.images.shape[1:]}, where the "
            f"checkpoint {checkpoint} takes {model.shape}: choose the data that it was "
            f"trained on ({about.get('data')}), or their size"
        )
    _check_scale(trained, dataset, f"{where}: data", checkpoint)
    return dataset, model, about


def _check_scale(trained: Form, dataset: Dataset, where: str, checkpoint: str) -> None:
    """Refuse columns that are not those that a checkpoint was trained on, in its scale; one that
    records none is believed."""
    form = dataset.form
    if not trained.columns:
        return
    scales = [np.array([each.mean, each.std]) for each in (trained, form)]
    if trained[:2] != form[:2] or not np.allclose(*scales, rtol=1e-6):
        raise ConfigError(
            f"{where}: the checkpoint {checkpoint} was trained on {trained.nouns} of other columns "
            f"or of another mean and spread, than {dataset.name} has: choose the data that it was "
            "trained on, whole, and change them by [change]"
        )


def points_of(
    dataset: Dataset, bumps: BumpSettings, model: Model, where: str, stages: Stages
) -> Points:
    """The data as points with their bumps, those that the model is nearest to where none are named;
    or an error that names the settings."""
    if bumps.calibrated:
        with stages("calibration", "finding the kernel that the model is nearest to"):
            points, bias = calibrated(dataset.images, model), bumps.spectral_bias
            return points.with_spectral_bias(bias) if bias else points
    with blaming(f"{where}: bandwidth, temperature, width, resolution, spectral_bias"):
        return bumps_on(dataset.images, bumps)


def calibrated(images: np.ndarray, model: Model) -> Points:
    """Images with the bumps that a model is nearest to, the same at every call."""
    return calibrate(model.process, model.score, images, key=jax.random.key(0)).points


def bumps_on(images: np.ndarray, bumps: BumpSettings) -> Points:
    """Images with the bumps that are named."""
    h = default_bandwidth(images) if bumps.bandwidth is None else bumps.bandwidth
    return Points(jnp.asarray(images), bandwidth=h, **bumps.kernel)


def kernel_of(data: Points) -> dict[str, Any]:
    """What a result records of the kernel of its data."""
    kernel = data.kernel
    return {
        "bandwidth": float(data.bandwidth),
        "temperature": float(kernel.temperature),
        "width": None if kernel.width is None else float(kernel.width),
        "resolution": float(kernel.resolution),
        "spectral_bias": float(kernel.spectral_bias or 0.0),
    }


def set_up_run(run: PathSettings, checkpoint: str, where: str, stages: Stages) -> Setup:
    """What `set_up` returns, of the settings of a run."""
    options = {"count": run.count, "seed": run.seed, "bumps": run}
    return set_up(run.data, checkpoint, where, stages, **options)


def set_up_change(run: ChangeRun, checkpoint: str, where: str, stages: Stages) -> Changed:
    """What `set_up` returns, and the change of the data."""
    return change_data(set_up_run(run, checkpoint, where, stages), run.change, where)


def change_data(setup: Setup, settings: ChangeSettings, where: str) -> Changed:
    """A change of the data, or an error that names it."""
    with blaming(f"{where}: change"):
        return Changed(setup, make_change(setup.dataset, setup.data, settings), settings)


def black_box(setup: Setup, base: Base, trace: Trace, seed: int) -> dict[str, Any]:
    """Against whose law a verb is to work, as its options: the data's, or the model's own, smoothed
    as much."""
    options = options_of_base(setup.data, base, trace)
    if base == "model":
        options["key"] = jax.random.fold_in(jax.random.key(seed), 1)
    return options


def options_of_base(data: Points, base: Base, trace: Trace) -> dict[str, Any]:
    """`black_box`, without the key."""
    if base == "data":
        return {"base": data}
    return {"base": Smoothed(data.bandwidth), "trace": trace_of(trace), "prior": data.sharp()}


def load_checkpoint(name: str) -> tuple[Model, dict]:
    """A bundled checkpoint by its name, or the one in a file: trained here, or converted."""
    if name in BUNDLED:
        return pretrained(name)
    converted = "foreign" in read_header(Path(name))
    return importers.load(name) if converted else load(name)


def trainable(model: Model, where: str) -> Denoiser:
    """The model, if it was trained here: others cannot be trained further."""
    if isinstance(model, Foreign):
        raise ConfigError(
            f"{where}: checkpoint: a converted model cannot be fine-tuned here; choose one of "
            "scoresens train"
        )
    return model


def bound_cosines(
    run: ChangeRun, setup: Setup, before: Batch, predicted: Batch, stages: Stages
) -> Float[np.ndarray, " M"] | None:
    """What the cosines of predicted displacements with those of fine-tunings are above; None for
    predictions that are not like those that it was measured on: by the data, with the kernel that
    `calibrate` finds for a network of `scoresens train`."""
    if not run.calibrated or run.spectral_bias or isinstance(setup.model, Foreign):
        return None
    asked = setup.process, setup.score, setup.data, jnp.asarray(before)
    with stages("trust", "comparing the model with its data"):
        return cosine_bound(norms(predicted) / mismatch(*asked, key=jax.random.key(0)))


def agreement(
    predicted: Mapping[str, Batch], real: Batch, run: ComparisonRun
) -> dict[str, dict[str, Estimate]]:
    """Every measure of every method, in the order of their names."""
    return {
        method: compare(predicted[method], real, resamples=run.resamples, seed=run.seed)
        for method in sorted(predicted, key=[*NAMES, *predicted].index)
    }


def about_agreement(
    changed: Changed, results: Mapping[str, Mapping[str, Estimate]], moves: Mapping[str, Batch]
) -> dict[str, Any]:
    """What a comparison of changes, predicted and real, records: measures, mean sizes of moves."""
    record = about_measures(results) | changed.about | {"methods": list(results)}
    return record | {"mean_norm": {name: float(norms(x).mean()) for name, x in moves.items()}}


def about_measures(results: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    """Every measure of every method, to write down."""
    return {
        method: {measure: as_json(found._asdict()) for measure, found in row.items()}
        for method, row in results.items()
    }


def quantiles(sizes: np.ndarray) -> dict[str, float]:
    """The spread of a batch of sizes."""
    low, middle, high = (float(q) for q in np.percentile(sizes, (10, 50, 90)))
    return {"p10": low, "median": middle, "p90": high, "max": float(sizes.max())}


def norms_by_mass(
    after: Float[np.ndarray, "M E *shape"], before: Batch
) -> Float[np.ndarray, "M E"]:
    """How far each sample is from before at each mass."""
    return np.stack([norms(x - before) for x in np.moveaxis(after, 1, 0)], 1)


def words(name: str) -> str:
    """The name of a number as text."""
    return name.replace("_", " ").replace("first order", "first-order")


def unit_of(form: Form) -> dict[str, str]:
    """What a result records of the unit of norms and of noise levels; nothing of images."""
    return {"unit_of_norms": form.unit} if form.columns else {}


def in_own_units(form: Form, x: Batch, **changes: Batch) -> dict[str, Any]:
    """What a result records of each column, in its own units: mean and spread of the samples, mean
    and root mean square of each of their changes; nothing of images."""
    if not form.columns:
        return {}
    rows, numbers = tuple(range(x.ndim - 1)), {}
    restored = form.restored(x)
    numbers |= {"sample_mean": restored.mean(rows), "sample_std": restored.std(rows)}
    for name, change in changes.items():
        moved = form.restored_change(change)
        numbers[f"{name}_mean"] = moved.mean(rows)
        numbers[f"{name}_rms"] = np.sqrt(np.mean(moved**2, rows))
    return {
        "columns_in_own_units": {
            column: {name: float(values[place]) for name, values in numbers.items()}
            for place, column in enumerate(form.columns)
        }
    }


def arrays_in_own_units(form: Form, **samples: np.ndarray) -> dict[str, np.ndarray]:
    """Samples by column, in its own units, as arrays of an npz file; nothing of images."""
    if not form.columns:
        return {}
    return {f"{name}_in_own_units": form.restored(x) for name, x in samples.items()}


def as_json(numbers: dict[str, float]) -> dict[str, float | None]:
    """Numbers that do not exist, such as the correlation of constants, are written as null."""
    return {name: value if np.isfinite(value) else None for name, value in numbers.items()}


def write(out: Path, result: dict[str, Any], run: Any, stages: Stages) -> None:
    """Write result.json."""
    result = {**result, "stages": stages.seconds}
    write_result(out, result, settings=run, seconds=stages.total)


def picture(draw: Callable[..., Path], path: Path, *given: Any, **named: Any) -> None:
    """Draw a picture to a path, after the numbers are written; an error costs it and a line."""
    try:
        draw(path, *given, **named)
    except Exception as error:  # whatever fonts, disks and matplotlib come upon
        path.unlink(missing_ok=True)  # of an earlier run
        tell(f"\nnote: {path.name} is not drawn: {type(error).__name__}: {error}")


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write an npz file, whole or not at all."""
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)

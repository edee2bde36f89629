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
from scoresens.cli.config import ConfigError
from scoresens.cli.progress import Stages, blaming, tell
from scoresens.cli.results import write_result
from scoresens.cli.settings import (
    AttributeRun,
    CounterfactualRun,
    HalvesRun,
    RetrainRun,
    SensitivityRun,
    SweepRun,
    ValidateRun,
)
from scoresens.datasets.images import Dataset, DataSettings, prepare
from scoresens.flow.riders import Smoothed
from scoresens.flow.traces import Exact, Hutchinson
from scoresens.importers import Foreign
from scoresens.laws.measures import Points, default_bandwidth
from scoresens.laws.processes import EDM, Process
from scoresens.laws.scores import Score
from scoresens.models import Denoiser, load, pretrained
from scoresens.models.checkpoints import read_header
from scoresens.report.samples import NAMES
from scoresens.statistics.displacements import Batch, Named, norms
from scoresens.studies.changes import Change, ChangeSettings, make_change
from scoresens.studies.finetuning import Interval, compare

PROCESS = EDM()  # denoisers are of the canonical frame
TRACES = {"exact": Exact(), "hutchinson": Hutchinson(1)}
BUNDLED = ("digits",)  # checkpoints that come with the package
VERBS = {
    "add": "added",
    "model": "added",
    "shift": "moved",
}  # what happens to the images of a change; else removed

Model = Denoiser | Foreign  # made here, or converted
ChangeRun = SensitivityRun | CounterfactualRun | ValidateRun


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
        return Named(self.dataset.images, self.dataset.labels, self.dataset.class_names)


def set_up(run: ChangeRun | AttributeRun, where: str, stages: Stages) -> Setup:
    """Data, model and noise, or an error that names the setting to mend."""
    with stages("data", f"reading {run.data.name} and the checkpoint {run.checkpoint}"):
        dataset, model, about = data_and_model(run, where, prepare)
        data = points_of(run, where, dataset)
        noise = model.process.sample_prior((run.count, *data.shape), key=jax.random.key(run.seed))
    trained_on = about.get("data"), about.get("count")
    if isinstance(model, Foreign):
        tell(f"note: {run.checkpoint} was converted: nothing tells what it was trained on")
    elif trained_on != (dataset.name, len(dataset.images)):
        tell(f"note: {run.checkpoint} was trained on {trained_on[1]} images of {trained_on[0]}")
    return Setup(dataset, data, model, noise)


def data_and_model(
    run: ChangeRun | AttributeRun | SweepRun, where: str, read: Callable[[DataSettings], Dataset]
) -> tuple[Dataset, Model, dict]:
    """The data, the model and what is told of it, or an error that names the setting to mend."""
    with blaming(f"{where}: data"):
        dataset = read(run.data)
    with blaming(f"{where}: checkpoint"):
        model, about = checkpoint(run.checkpoint)
    if dataset.images.shape[1:] != model.shape:
        raise ConfigError(
            f"{where}: data: images of shape {dataset.images.shape[1:]}, where the checkpoint "
            f"{run.checkpoint} takes {model.shape}: choose the data that it was "
            f"trained on ({about.get('data')}), or their size"
        )
    return dataset, model, about


def points_of(run: ChangeRun | AttributeRun | SweepRun, where: str, dataset: Dataset) -> Points:
    """The data as points of the bandwidth asked for, or of the default one."""
    with blaming(f"{where}: bandwidth"):
        images, own = jnp.asarray(dataset.images), run.bandwidth
        return Points(images, bandwidth=default_bandwidth(images) if own is None else own)


def set_up_change(run: ChangeRun, where: str, stages: Stages) -> tuple[Setup, Change]:
    """What `set_up` returns, and the change of the data."""
    setup = set_up(run, where, stages)
    with blaming(f"{where}: change"):
        return setup, make_change(setup.dataset, setup.data, run.change)


def black_box(run: SensitivityRun | CounterfactualRun | AttributeRun, setup: Setup) -> dict:
    """Against whose law a verb is to work, as its options: the data's, or the model's own, smoothed
    as much."""
    options = options_of_base(run, setup.data)
    if run.base == "model":
        options["key"] = jax.random.fold_in(jax.random.key(run.seed), 1)
    return options


def options_of_base(
    run: SensitivityRun | CounterfactualRun | AttributeRun | SweepRun, data: Points
) -> dict[str, Any]:
    """`black_box`, without the key."""
    if run.base == "data":
        return {"base": data}
    return {"base": Smoothed(data.bandwidth), "trace": TRACES[run.trace], "prior": data}


def trace_of(run: ValidateRun | RetrainRun | HalvesRun) -> Exact | Hutchinson:
    """How the black boxes take their traces."""
    return Exact() if run.probes is None else Hutchinson(run.probes)


def checkpoint(name: str) -> tuple[Model, dict]:
    """A bundled checkpoint by its name, or the one in a file: trained here, or converted."""
    if name in BUNDLED:
        return pretrained(name)
    converted = "foreign" in read_header(Path(name))
    return importers.load(name) if converted else load(name)


def trainable(model: Model, where: str) -> Denoiser:
    """The model, if it was made here: others cannot be trained further."""
    if isinstance(model, Foreign):
        raise ConfigError(
            f"{where}: checkpoint: a converted model cannot be fine-tuned here; choose one of "
            "scoresens train"
        )
    return model


def about(setup: Setup, run: ChangeRun | AttributeRun | RetrainRun) -> dict[str, Any]:
    """What every result tells of its data."""
    return {
        "count": run.count,
        "images": len(setup.dataset.images),
        "bandwidth": float(setup.data.bandwidth),
    }


def about_change(setup: Setup, change: Change, run: ChangeRun | RetrainRun) -> dict[str, Any]:
    """What every result about a change tells of it."""
    said = {"change": run.change.title, "mass": run.change.mass}
    return said | about(setup, run) | {"touched_images": int(change.touched.sum())}


def agreement(
    predicted: Mapping[str, Batch], real: Batch, run: ValidateRun | RetrainRun
) -> dict[str, dict[str, Interval]]:
    """Every measure of every method, in the order of their names."""
    return {
        method: compare(predicted[method], real, resamples=run.resamples, seed=run.seed)
        for method in sorted(predicted, key=[*NAMES, *predicted].index)
    }


def about_agreement(
    setup: Setup,
    change: Change,
    run: ValidateRun | RetrainRun,
    results: Mapping[str, Mapping[str, Interval]],
    moves: Mapping[str, Batch],
) -> dict[str, Any]:
    """What a comparison of predicted with real changes tells: measures, and mean sizes of moves."""
    told: dict[str, Any] = about_measures(results)
    told |= about_change(setup, change, run) | {"methods": list(results)}
    return told | {"mean_norm": {name: float(norms(x).mean()) for name, x in moves.items()}}


def about_measures(results: Mapping[str, Mapping[str, Interval]]) -> dict[str, Any]:
    """Every measure of every method, to write down."""
    return {
        method: {measure: as_json(found._asdict()) for measure, found in row.items()}
        for method, row in results.items()
    }


def titled(setup: Setup, change: Change, settings: ChangeSettings) -> str:
    """The data and what changes in them, in one line."""
    touched, total = int(change.touched.sum()), len(setup.dataset.images)
    share = f" ({touched} of {total} images)" if touched else ""
    return f"{setup.dataset.name}: {settings.title}{share}"


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


def as_json(numbers: dict[str, float]) -> dict[str, float | None]:
    """Numbers that do not exist, such as the correlation of constants, are written as null."""
    return {name: value if np.isfinite(value) else None for name, value in numbers.items()}


def write(out: Path, result: dict[str, Any], run: Any, stages: Stages) -> None:
    """Write result.json."""
    whole = {**result, "stages": stages.seconds}
    write_result(out, whole, settings=run, seconds=stages.total)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write an npz file, whole or not at all."""
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)

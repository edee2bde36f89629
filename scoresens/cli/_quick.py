"""A small network of any table, series or set of points, trained at once, for a first look."""

from pathlib import Path

import numpy as np

from scoresens.cli._progress import Stages
from scoresens.datasets.forms import Dataset
from scoresens.models import ModelSettings
from scoresens.statistics.displacements import nearest
from scoresens.studies.changes import ChangeSettings
from scoresens.training.denoising import TrainSettings, train_to_file

MODEL = ModelSettings("mlp", width=64, depth=2)
TRAIN = TrainSettings(steps=1_500, batch_size=128, warmup=150, ema_halflife=300.0)
SHARE = 0.05  # of the data, that is near to one of them
USUAL = {"digits": "3"}  # classes that are added where none is named; of other data the last


def train_quickly(dataset: Dataset, out: Path, seed: int, stages: Stages) -> str:
    """The path of a network of these data, which is trained.

    Raises:
        ValueError: for images, which want a network of their own.
    """
    if dataset.form.kind == "images":
        raise ValueError(
            f"{dataset.name} has images, for which a network takes longer to train: use scoresens "
            "train, and then counterfactual and attribute; or choose a table, a series or points"
        )
    path = out / "model.safetensors"
    says = f"training a small network on {len(dataset.images)} {dataset.form.nouns}"
    with stages("train", says, bars=True):
        train_to_file(path, dataset, MODEL, TRAIN, seed=seed)
    return str(path)


def usual_class(dataset: Dataset) -> str | None:
    """The class that is added where none is named; None of data without classes."""
    if len(dataset.class_names) < 2:
        return None
    return USUAL.get(dataset.name, dataset.class_names[-1])


def more_like(dataset: Dataset, near: int | None, mass: float) -> tuple[int, ChangeSettings]:
    """More of the twentieth of the data that is nearest to one of them, and which one that is; left
    out, the one farthest from the mean of all.

    Raises:
        ValueError: for one that the data do not have.
    """
    rows, noun = dataset.images, dataset.form.noun
    if near is None:
        far = np.sum((rows - rows.mean(0)).reshape(len(rows), -1) ** 2, 1)
        near = int(np.argmax(far))
    if not 0 <= near < len(rows):
        raise ValueError(f"{noun} {near} lies outside the data's {len(rows)} {dataset.form.nouns}")
    count = max(1, round(SHARE * len(rows)))
    chosen = nearest(rows[near : near + 1], rows, count)[0]
    images = tuple(sorted(map(int, chosen)))
    return near, ChangeSettings(kind="add", images=images, mass=mass)

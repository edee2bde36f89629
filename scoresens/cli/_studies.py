"""What experiments that train many models share: one folder a study, which nothing else may use."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from scoresens._files import write_text
from scoresens.cli._common import write_arrays
from scoresens.cli._config import ConfigError
from scoresens.cli._settings import TrainedRun
from scoresens.flow import sample_ode
from scoresens.flow.solve import Solve
from scoresens.laws.scores import from_denoiser
from scoresens.models import Denoiser, load, save
from scoresens.studies.retraining import (
    PROCESS,
    Answers,
    Questions,
    Trial,
    answers,
    ask,
    train_trial,
)


def same_study(out: Path, run: Any, where: str, names: Sequence[str], **also: str) -> None:
    """Refuse a folder that holds models of another study: of other settings of these names, or with
    other things beside them."""
    file, whole = out / "study.json", asdict(run)
    asked = json.loads(json.dumps({name: whole[name] for name in names} | also, default=str))
    if not file.exists():
        write_text(file, json.dumps(asked, indent=2) + "\n")
        return
    kept = json.loads(file.read_text(encoding="utf-8"))
    if changed := [name for name in asked if kept.get(name) != asked[name]]:
        raise ConfigError(
            f"{where}: {out} holds a study with other settings of {', '.join(changed)}: choose "
            "another --out, or remove that folder"
        )


def fingerprint(tree: Any) -> str:
    """A digest of all the numbers of a model, or of another pytree."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def kept_models(
    out: Path, trials: Mapping[str, Trial], images: np.ndarray, run: TrainedRun
) -> dict[str, Denoiser]:
    """The models of the trials by name, in files once made."""
    models = {}
    for name, trial in shown(list(trials.items())):
        file = out / f"{name}.safetensors"
        if not file.exists():
            save(file, train_trial(trial, images, run.model, run.train), {"seed": trial.seed})
        models[name], _ = load(file)
    return models


def all_answers(
    out: Path,
    trials: Mapping[str, Trial],
    models: Mapping[str, Denoiser],
    images: np.ndarray,
    asked: Questions,
    run: TrainedRun,
) -> dict[str, Answers]:
    """What every trial's model answers, in files once asked; `models` are there already, and are
    not trained again."""

    def make(name):
        model = models.get(name) or train_trial(trials[name], images, run.model, run.train)
        return ask(model, asked, Solve(steps=run.steps))

    return answers(out / "models", trials, make, shown)


def generated(
    file: Path,
    model: Denoiser,
    noise: jax.Array,
    images: np.ndarray,
    solve: Solve,
    beside: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Samples of a model, clipped to the data's range, in a file once drawn: no machine draws the
    same to the last digit, and a study asks all its models the same. `beside`: what else the file
    is to hold."""
    if not file.exists():
        drawn = sample_ode(PROCESS, from_denoiser(PROCESS, model), noise, solve=solve).x
        x = np.clip(np.asarray(drawn), images.min(), images.max())
        write_arrays(file, generated=x, noise=noise, **(beside or {}))
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
        return found["generated"]


def shown(items: Iterable) -> Iterator:
    """The same, with a progress bar."""
    yield from tqdm(items, desc="models", unit="model")

"""What experiments that train many models share: one folder a study, which nothing else may use."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scoresens._files import replacing
from scoresens.cli.settings import HalvesRun, RetrainRun
from scoresens.config import ConfigError
from scoresens.models import Denoiser, load, save
from scoresens.retraining import Trial, train_trial


def same_study(out: Path, run: HalvesRun | RetrainRun, where: str, names: Sequence[str]) -> None:
    """Refuse a folder that holds models of another study: of other settings of these names."""
    file, whole = out / "study.json", asdict(run)
    asked = json.loads(json.dumps({name: whole[name] for name in names}, default=str))
    if not file.exists():
        with replacing(file) as beside:
            beside.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
        return
    kept = json.loads(file.read_text(encoding="utf-8"))
    if changed := [name for name in names if kept.get(name) != asked[name]]:
        raise ConfigError(
            f"{where}: {out} holds a study with other settings of {', '.join(changed)}: choose "
            "another --out, or remove that folder"
        )


def kept_models(
    out: Path, trials: Mapping[str, Trial], images: np.ndarray, run: HalvesRun | RetrainRun
) -> list[Denoiser]:
    """The models of the trials, in files once made."""
    models = []
    for name, trial in shown(list(trials.items())):
        file = out / f"{name}.safetensors"
        if not file.exists():
            save(file, train_trial(trial, images, run.model, run.train), {"seed": trial.seed})
        models.append(load(file)[0])
    return models


def shown(items: Iterable) -> Iterator:
    """The same, with a progress bar."""
    yield from tqdm(items, desc="models", unit="model")

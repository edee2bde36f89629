"""`scoresens convert`: a model of PyTorch, diffusers or EDM becomes a checkpoint here."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scoresens import importers
from scoresens.cli.common import write
from scoresens.cli.config import ConfigError
from scoresens.cli.progress import Stages, blaming
from scoresens.cli.settings import ConvertRun
from scoresens.importers import Foreign, Schedule
from scoresens.importers.files import CONTINUOUS
from scoresens.models.checkpoints import read_tensors
from scoresens.report.samples import table


def run_convert(run: ConvertRun, out: Path, where: str) -> str:
    """Write a model of another library as a checkpoint; the table of what it is."""
    stages = Stages()
    with stages("convert", f"converting {run.source}"):
        foreign = MAKERS[run.kind](run, where)
    with stages("write", "writing, and reading it again"):
        path = out / "model.safetensors"
        importers.save(path, foreign, {"data": None, "source": run.source, "kind": run.kind})
        importers.load(path)
    schedule, process = foreign.schedule, foreign.process
    leaves = jax.tree.leaves(foreign.network)
    parameters = sum(leaf.size for leaf in leaves)
    highest = float(process.noise_level(process.t_max))
    about = {
        "shape": list(foreign.shape),
        "parameters": parameters,
        "process": type(process).__name__,
        "predicts": schedule.prediction,
        "sees": schedule.clock,
        "highest_noise_level": highest,
        "conditioning": [list(c.shape) for c in foreign.conditioning],
        "network": type(foreign.network).__name__.lower(),
    }
    write(out, about, run, stages)
    row = {
        "sample": " x ".join(map(str, foreign.shape)),
        "parameters": f"{parameters}",
        "process": about["process"],
        "predicts": schedule.prediction,
        "sees": schedule.clock.replace("_", " "),
        "noise up to": f"{highest:.4g}",
    }
    told = f"use it: scoresens sample, attribute, ... with checkpoint = {json.dumps(str(path))}"
    return f"{table({Path(run.source).name: row}, 'model')}\n\n{told}"


def _from_diffusers(run: ConvertRun, where: str) -> Foreign:
    return importers.from_diffusers(
        run.source, conditioning=_given(run, where), size=run.size, native=not run.exported
    )


def _from_edm(run: ConvertRun, where: str) -> Foreign:
    return importers.from_edm(run.source, trust=run.trust_pickle, label=run.label)


def _from_torch(run: ConvertRun, where: str) -> Foreign:
    with blaming(f"{where}: schedule"):
        schedule = _schedule(run)
    module = _module(run, where)
    return importers.from_torch(module, schedule, run.shape, conditioning=_given(run, where))


MAKERS = {"diffusers": _from_diffusers, "edm": _from_edm, "torch": _from_torch}


def _schedule(run: ConvertRun) -> Schedule:
    if run.scheduler is not None:
        return importers.schedule(json.loads(run.scheduler.read_text(encoding="utf-8")))
    process = CONTINUOUS[run.process]()
    return Schedule(process, run.predicts, run.sees, run.scale)


def _module(run: ConvertRun, where: str) -> Any:
    """What the function named returns, with the weights of a file if one is named."""
    name, _, function = run.source.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = getattr(importlib.import_module(name), function)()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{where}: {run.source} cannot be found from {Path.cwd()}: {error}; give "
            "package.module:function, a function without arguments that returns the torch module"
        ) from error
    finally:
        sys.path.pop(0)
    if run.weights is not None:
        with blaming(f"{where}: weights"):
            _load(module, run.weights)
    return module


def _load(module: Any, path: Path) -> None:
    """Fills a torch module from a safetensors file, with every tensor in its place."""
    import torch  # pyright: ignore[reportMissingImports]

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    tensors = {name: torch.from_numpy(x) for name, x in read_tensors(path).items()}
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the module: {error}") from error


def _given(run: ConvertRun, where: str) -> list[np.ndarray]:
    """What the network is conditioned on: a label, then what a file holds."""
    given = [] if run.label is None else [np.asarray(run.label)]
    if run.conditioning is not None:
        with blaming(f"{where}: conditioning"):
            given.append(np.load(run.conditioning, allow_pickle=False))
    return given

"""`scoresens convert`: a model of PyTorch, diffusers or EDM becomes a checkpoint here."""

import importlib
import json
import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scoresens import importers
from scoresens._reading import NPY, start_of
from scoresens.cli._command import Command, from_options
from scoresens.cli._common import write
from scoresens.cli._config import ConfigError
from scoresens.cli._progress import Stages, blaming
from scoresens.importers import Foreign, Schedule
from scoresens.importers.configs import read_config
from scoresens.importers.files import CONTINUOUS
from scoresens.importers.schedules import CLOCKS, PREDICTIONS
from scoresens.models.checkpoints import read_tensors
from scoresens.report.tables import table


@dataclass(frozen=True, kw_only=True)
class ConvertRun:
    """Options of `scoresens convert`, explained in its help."""

    kind: str
    source: str
    size: int | None = None
    label: int | None = None
    conditioning: Path | None = None
    exported: bool = False
    trust_pickle: bool = False
    degrees_of_freedom: float | None = None
    scheduler: Path | None = None
    process: str = "EDM"
    predicts: str = "denoiser"
    sees: str = "noise_level"
    scale: float = 1.0
    shape: tuple[int, ...] = ()
    weights: Path | None = None

    def __post_init__(self):
        if self.kind == "torch" and not self.shape:
            raise ValueError("a torch module needs --shape, of one sample, such as --shape 32 32 3")
        if self.kind == "torch" and ":" not in self.source:
            raise ValueError(
                f"a torch module is named package.module:function, got {self.source!r}"
            )
        if self.shape and min(self.shape) < 1:
            raise ValueError(f"shape must be of numbers of at least 1, got {self.shape}")


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
    parameters = sum(leaf.size for leaf in jax.tree.leaves(foreign.network))
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
    hint = f"use it: scoresens sample, attribute, ... with checkpoint = {json.dumps(str(path))}"
    return f"{table({Path(run.source).name: row}, 'model')}\n\n{hint}"


def _from_diffusers(run: ConvertRun, where: str) -> Foreign:
    given = _conditioning(run, where)[::-1]  # its networks take a text before a label
    return importers.from_diffusers(
        run.source, conditioning=given, size=run.size, native=not run.exported
    )


def _from_edm(run: ConvertRun, where: str) -> Foreign:
    return importers.from_edm(
        run.source,
        trust=run.trust_pickle,
        label=run.label,
        degrees_of_freedom=run.degrees_of_freedom,
    )


def _from_torch(run: ConvertRun, where: str) -> Foreign:
    with blaming(f"{where}: schedule"):
        schedule = _schedule(run)
    module = _module(run, where)
    return importers.from_torch(module, schedule, run.shape, conditioning=_conditioning(run, where))


MAKERS = {"diffusers": _from_diffusers, "edm": _from_edm, "torch": _from_torch}


def _schedule(run: ConvertRun) -> Schedule:
    if run.scheduler is not None:
        return importers.schedule(read_config(run.scheduler))
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
        lacking, extra = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the module: {error}") from error
    held = module.state_dict()
    filled = {held[name].data_ptr() for name in tensors.keys() & held.keys()}
    lacking = [name for name in lacking if held[name].data_ptr() not in filled]  # but for tied ones
    if lacking or extra:
        raise ValueError(
            f"{path} does not fit the module: it lacks {lacking}, and has more in {list(extra)}"
        )


def _conditioning(run: ConvertRun, where: str) -> list[np.ndarray]:
    """What the network is conditioned on: a label, then what a file holds."""
    arrays = [] if run.label is None else [np.asarray(run.label)]
    if run.conditioning is not None:
        with blaming(f"{where}: conditioning"):
            arrays.append(_array(run.conditioning))
    return arrays


def _array(path: Path) -> np.ndarray:
    start = start_of(path, len(NPY))
    if start != NPY:
        raise ValueError(
            f"{path} is no .npy file: it begins with {start!r}, where those have {NPY!r}"
        )
    return np.load(path, allow_pickle=False)


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("kind", choices=tuple(MAKERS), help="the kind of source")
    parser.add_argument(
        "source", metavar="SOURCE", help="the source: a folder, a file, or module:function"
    )
    for flag, kind, metavar, what in (
        ("--size", int, "N", "pixels a side, where a pipeline does not say"),
        ("--label", int, "N", "the class to condition on"),
        ("--conditioning", Path, "FILE", "a .npy file: the embedding of a text, for example"),
        ("--degrees-of-freedom", float, "D", "edm: of PFGM++, whose pickles do not say it"),
        ("--scheduler", Path, "FILE", "torch: a scheduler_config.json of how it was trained"),
        ("--weights", Path, "FILE", "torch: safetensors to fill the module with"),
    ):
        parser.add_argument(flag, type=kind, metavar=metavar, help=what)
    for flag, choices, what in (
        ("--process", tuple(CONTINUOUS), "torch: the forward process"),
        ("--predicts", PREDICTIONS, "torch: what the module returns"),
        ("--sees", CLOCKS, "torch: what it sees for time"),
    ):
        default = getattr(ConvertRun, flag[2:])
        about = f"{what}, one of {', '.join(choices)} (default: {default})"
        parser.add_argument(flag, metavar="NAME", choices=choices, default=default, help=about)
    parser.add_argument("--scale", type=float, default=1.0, help="torch: a factor on that time")
    parser.add_argument(
        "--shape", type=int, nargs="+", default=(), metavar="N", help="torch: one sample, H W C"
    )
    for flag, what in (
        ("--exported", "diffusers: through torch, also where a network of JAX is at hand"),
        ("--trust-pickle", "edm: run what the author of the pickle wrote"),
    ):
        parser.add_argument(flag, action="store_true", help=what)


COMMAND = Command(
    name="convert",
    run=run_convert,
    settings=ConvertRun,
    arguments=_add_arguments,
    read=from_options,
    brief="bring a model from PyTorch, diffusers or EDM",
    about="""\
How does a model of another library become a checkpoint here? Writes one safetensors file that the
other commands take as checkpoint, and that needs neither torch nor the library it came from.

  diffusers FOLDER      a pipeline, or its name on the hub; safetensors weights only
  edm FILE.pkl          a pickle of EDM, or of PFGM++ with its --degrees-of-freedom; reading one
                        runs what its author wrote: --trust-pickle
  torch MODULE:FUNCTION a function that returns a torch module, called as module(x [1, C, H, W],
                        time [1]); say how it was trained by --scheduler, or by --process,
                        --predicts and --sees""",
    example="scoresens convert diffusers my-pipeline --out runs/mine",
    writes={
        "model.safetensors": "the checkpoint; name its path in the other settings",
        "result.json": "shape, parameters, process, what the network predicts and sees",
    },
)

"""`scoresens sweep`: many samples, many directions or data points, on disk block by block."""

import json
import os
import resource
import signal
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from scoresens import sweeps
from scoresens._pytrees import fingerprint
from scoresens.cli._command import Command, add_config, from_config
from scoresens.cli._common import (
    Model,
    data_and_model,
    kernel_of,
    options_of_base,
    points_of,
    write,
)
from scoresens.cli._config import ConfigError
from scoresens.cli._functionals import FunctionalSettings, make_question
from scoresens.cli._progress import Stages, blaming
from scoresens.cli._settings import (
    Base,
    BumpSettings,
    Sampler,
    Trace,
    at_least,
    check_trace,
    route_of,
)
from scoresens.cli.status import status
from scoresens.datasets.images import Dataset, DataSettings, prepare
from scoresens.datasets.streams import mark, stream
from scoresens.flow.solve import Solve
from scoresens.laws.measures import Points
from scoresens.laws.perturbations import Perturbation, reweight
from scoresens.sweeps.store import Block, Layout, Store, progress

UNFINISHED = 75  # the exit code of a sweep that SIGTERM stopped and that can go on (EX_TEMPFAIL)
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class DirectionSettings:
    """Directions of a sweep, explained in its help."""

    classes: bool = True
    images: int = 0


@dataclass(frozen=True, kw_only=True)
class SweepRun(BumpSettings):
    """Settings of `scoresens sweep`, explained in its help."""

    question: Literal["attribution", "sensitivity"] = "attribution"
    data: DataSettings
    stream: bool = False
    functional: FunctionalSettings = field(default_factory=FunctionalSettings)
    top: int | None = None
    directions: DirectionSettings = field(default_factory=DirectionSettings)
    samples: int = 256
    seeds: tuple[int, ...] = (0,)
    memory: float | None = None
    rows: int | None = None
    columns: int | None = None
    mesh: tuple[int, ...] = ()
    checkpoint: str = "digits"
    steps: int = 40
    sampler: Sampler = "ode"
    base: Base = "data"
    trace: Trace = 1

    def __post_init__(self):
        super().__post_init__()
        at_least(1, samples=self.samples, steps=self.steps, seeds=len(self.seeds))
        counts = {"top": self.top, "rows": self.rows, "columns": self.columns}
        at_least(1, **{name: count for name, count in counts.items() if count is not None})
        check_trace(self.trace)
        if self.memory is not None and not self.memory > 0:
            raise ValueError(f"memory must be more than 0 GiB, got {self.memory}")
        if self.mesh and (len(self.mesh) != 2 or min(self.mesh) < 1):
            raise ValueError(f"mesh is [along samples, along directions], got {list(self.mesh)}")
        if self.stream and self.question != "attribution":
            raise ValueError("stream goes with question = 'attribution'")
        if self.stream and (self.data.classes or self.data.count or self.data.size):
            raise ValueError("stream reads the data as they are: leave out classes, count and size")
        if self.stream and self.functional.kind not in ("itself", "closeness", "pixel"):
            raise ValueError("stream goes with functional kind itself, closeness or pixel")


class Unfinished(Exception):
    """A sweep that SIGTERM stopped; its message is the table so far."""


class Start(NamedTuple):
    """All that a sweep starts from."""

    model: Model
    data: Points
    question: sweeps.Question
    names: list[str]  # of the directions


def run_sweep(run: SweepRun, out: Path, where: str) -> str:
    """Make the blocks that a folder lacks; the table of the sweep.

    Raises:
        Unfinished: if SIGTERM stopped it before its end.
    """
    stages = Stages()
    with blaming(f"{where}: mesh"):
        mesh = sweeps.mesh_of((run.mesh[0], run.mesh[1])) if run.mesh else None
    start = _start(run, out, where, mesh, stages)
    rank, count = jax.process_index(), jax.process_count()
    with stages("layout", "how large a block may be"):
        layout = _layout(run, start, out)
    with blaming(f"{where}"):
        if count > 1:
            if rank == 0:
                _store(run, start, out, layout)
            multihost_utils.sync_global_devices("the store is there")
        store = _store(run, start, out, layout)
    file = out / f"log-{rank}.jsonl"
    with _written(out), _catching_sigterm() as stop, file.open("a") as log:
        ran = sweeps.run(
            start.question,
            [jax.random.key(seed) for seed in run.seeds],
            store,
            share=(rank, count),
            shown=lambda blocks: _shown(blocks, layout, rank, log),
            stopping=lambda: bool(stop),
        )
    printed = status(out)
    if rank == 0:
        found = progress(out)
        about = {name: found[name] for name in ("done", "blocks")} | found["layout"]._asdict()
        write(out, about | {"seconds_a_block": found["seconds"] / found["done"]}, run, stages)
    if ran.left:
        raise Unfinished(f"{printed}\n\nstopped with {ran.left} blocks left: run it again to go on")
    return printed


# ------------------------------------------------------------------ the question


def _start(run: SweepRun, out: Path, where: str, mesh: Any, stages: Stages) -> Start:
    with stages("data", f"reading {run.data.name} and the checkpoint {run.checkpoint}"):
        read = unread if run.stream else prepare
        dataset, model, _ = data_and_model(run.data, run.checkpoint, where, read)
    if run.stream:
        data = _streamed(dataset, run, out, where)
    else:
        data = points_of(dataset, run, model, where, stages)
    process, score, solve = model.process, model.score, Solve(steps=run.steps)
    options = options_of_base(data, run.base, run.trace) | {"mesh": mesh, "solve": solve}
    options["route"] = route_of(run.sampler, 0)  # a sample's path hangs on its own seed besides
    if run.question == "attribution":
        with blaming(f"{where}: functional"):
            asked = make_question(run.functional, dataset, data, process, score, solve).functional
            question = sweeps.attributions(process, score, data, asked, top=run.top, **options)
        return Start(model, data, question, ["all"])
    with blaming(f"{where}: directions"):
        perturbation, names = _directions(run, dataset, data)
    question = sweeps.sensitivities(process, score, perturbation, **options)
    return Start(model, data, question, names)


def unread(settings: DataSettings) -> Dataset:
    """The data where they are, of one class."""
    images = stream(_source(settings))
    return Dataset(settings.name, images, np.zeros(len(images), int), ("all",))  # type: ignore


def _source(settings: DataSettings) -> Path:
    return Path(settings.path or settings.name)


def _streamed(dataset: Dataset, run: SweepRun, out: Path, where: str) -> Points:
    """The data where they are, read through unless the sweep in the folder was begun with them."""
    begun = (out / "study.json").is_file()
    checked = begun and progress(out)["study"].get("data") == mark(_source(run.data))
    with blaming(f"{where}: bandwidth, temperature, width, resolution, spectral_bias"):
        if run.bandwidth is None:
            raise ValueError("stream needs bandwidth: the default one compares all points")
        return Points.on_host(
            dataset.images, bandwidth=run.bandwidth, checked=checked, **run.kernel
        )


def _directions(run: SweepRun, dataset: Dataset, data: Points) -> tuple[Perturbation, list[str]]:
    """Toward more of each class, and toward more of each of the first images."""
    rows, names = [], []
    if run.directions.classes:
        for label in np.unique(dataset.labels):
            rows.append(dataset.labels == label)
            names.append(f"class {dataset.class_names[label]}")
    if run.directions.images > len(dataset.images):
        raise ValueError(f"images is {run.directions.images}, of {len(dataset.images)}")
    for image in range(run.directions.images):
        rows.append(np.arange(len(dataset.images)) == image)
        names.append(f"image {image}")
    if not rows:
        raise ValueError("directions has neither classes nor images")
    return reweight(data, np.stack(rows).astype(np.float32)), names


# ------------------------------------------------------------------ layout and store


def _layout(run: SweepRun, start: Start, out: Path) -> Layout:
    """That of the store, if there is one, else one that fits the memory."""
    named = (run.rows, run.columns, run.memory) != (None, None, None)
    if (out / "study.json").is_file() and not named:
        return progress(out)["layout"]
    memory = _free_memory() / 2 if run.memory is None else run.memory * GIB
    return sweeps.layout_of(
        start.question, seeds=len(run.seeds), samples=run.samples, memory=memory,
        rows=run.rows, columns=run.columns,
    )  # fmt: skip


def _free_memory() -> float:
    """Bytes that the process's devices have left together, or the host if they do not say."""
    memory = [device.memory_stats() for device in jax.local_devices()]
    if all(memory):
        return float(sum(t["bytes_limit"] - t["bytes_in_use"] for t in memory if t))
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _store(run: SweepRun, start: Start, out: Path, layout: Layout) -> Store:
    fields = sweeps.fields_of(start.question, layout)
    coordinates: dict[str, np.ndarray] = {"seed": np.array(run.seeds)}
    coordinates["sample"] = np.arange(run.samples)
    if run.question == "sensitivity":
        coordinates["direction"] = np.array(start.names, np.dtypes.StringDType())
    return Store(out, fields, layout, coordinates, _study(run, start))


def _study(run: SweepRun, start: Start) -> dict[str, Any]:
    """What the numbers hang on: settings, model and data. Memory, blocks and devices are not."""
    usual = {
        "sampler": "ode", "temperature": 1.0, "width": None, "resolution": 0.0,
        "spectral_bias": 0.0,
    }  # fmt: skip
    unusual = {"sampler": run.sampler} | kernel_of(start.data)
    return {
        "question": run.question,
        "model": fingerprint(start.model),
        "data": mark(_source(run.data)) if run.stream else fingerprint(start.data),
        "functional": run.functional if run.question == "attribution" else None,
        "top": run.top,
        "directions": start.names,
        "samples": run.samples,
        "seeds": list(run.seeds),
        "steps": run.steps,
        "base": run.base,
        "trace": run.trace if run.base == "model" else None,
        "bandwidth": float(start.data.bandwidth),
    } | {name: unusual[name] for name in usual if unusual[name] != usual[name]}


# ------------------------------------------------------------------ while it runs


@contextmanager
def _written(out: Path) -> Iterator[None]:
    """What cannot be written, a full disk for example, says where and what is left."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{error} (in {out}): blocks that are whole are kept; mend that, then run it again"
        ) from error


def _log(file: TextIO, **line: Any) -> None:
    """Write one JSON text on a line, at once."""
    print(json.dumps({"time": round(time.time(), 3), **line}), file=file, flush=True)


def _shown(blocks: list[Block], layout: Layout, rank: int, log: TextIO) -> Iterator[Block]:
    """The blocks, with a bar on the first process and a line in the log after each."""
    _log(log, event="start", blocks=len(blocks), process=rank, rows=layout.rows)
    with tqdm(blocks, desc="blocks", unit="block", disable=rank > 0, file=sys.stderr) as bar:
        for block in bar:
            yield block
            memory = _memory_in_use()
            _log(log, event="block", name=block.name, memory=memory)
            bar.set_postfix(memory=f"{memory / GIB:.2f} GiB")


def _memory_in_use() -> int:
    """Bytes on the devices, or of this process at its highest if they do not say."""
    memory = [device.memory_stats() for device in jax.local_devices()]
    if all(memory):
        return sum(t["bytes_in_use"] for t in memory if t)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _catching_sigterm() -> Iterator[list[int]]:
    """Within it, SIGTERM fills the list that it yields, and does nothing else."""
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, before)


# ------------------------------------------------------------------ the command


def _add_arguments(parser: ArgumentParser) -> None:
    add_config(parser)
    for flag, kind, metavar, what in (
        ("--coordinator", str, "HOST:PORT", "of the first process, for several that share a sweep"),
        ("--processes", int, "N", "how many there are"),
        ("--process", int, "I", "which of them this is, from 0"),
    ):
        parser.add_argument(flag, type=kind, metavar=metavar, help=what)


def _read(given: Namespace, settings: type[SweepRun]) -> tuple[SweepRun, str]:
    """The settings; this process has then joined the others, if there are some."""
    run = from_config(given, settings)
    place = given.coordinator, given.processes, given.process
    if place != (None, None, None):
        if None in place:
            raise ConfigError("sweep: --coordinator, --processes and --process go together")
        jax.distributed.initialize(*place)
    return run


COMMAND = Command(
    name="sweep",
    run=run_sweep,
    settings=SweepRun,
    arguments=_add_arguments,
    read=_read,
    brief="many samples, many directions or data points, on many devices",
    about="""\
Which images are thousands of samples attributed to ("attribution"), or how does each change along
many directions ("sensitivity"), for one seed after another? The work is cut into blocks that fit
the memory; each is on disk as soon as it is computed, so that a run that was killed goes on where
it was. SIGTERM ends the block at hand and leaves with code 75: run the same command again.

Settings: question ("attribution", "sensitivity"), samples (a seed), seeds (of the noise, one after
another), memory (GiB for a block; left out, half of what is free), rows, columns (samples and
directions a block, instead), mesh (devices along samples, and along directions or data points; left
out, all along samples), top (images named; left out, the scores of all), stream (the data are read
in blocks from a .npy file, a Zarr array or a folder of images), trace (as for sensitivity; left
out: 1 random probe), sampler ("ode", or "sde", each sample's Brownian path its own); [functional]
as for attribute; [directions] classes (true, or false), images (this many of the first); [data],
checkpoint, steps, base, bandwidth, temperature, width, resolution, spectral_bias as for
sensitivity.

Several processes, on one host or on many, share DIR: give each --coordinator HOST:PORT (the first
one's), --processes N and --process I.""",
    example="scoresens sweep configs/sweep.toml --out runs/sweep",
    writes={
        "store.zarr": "the arrays, with named dimensions; xarray.open_zarr reads them",
        "blocks": "a mark for each block that is whole, with a checksum",
        "study.json": "what the numbers are of",
        "log-*.jsonl": "a line a block, a file a process",
        "result.json": "how many blocks, how large, and the seconds of one",
    },
)

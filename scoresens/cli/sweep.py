"""`scoresens sweep` and `scoresens status`: many samples, many directions, on disk as they come."""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from scoresens import sweeps
from scoresens.cli.common import (
    Model,
    data_and_model,
    options_of_base,
    points_of,
    write,
)
from scoresens.cli.functionals import make_question
from scoresens.cli.progress import Stages, blaming
from scoresens.cli.settings import StatusRun, SweepRun
from scoresens.cli.studies import fingerprint
from scoresens.datasets.images import Dataset, DataSettings, prepare
from scoresens.datasets.streams import mark, stream
from scoresens.flow.solve import Solve
from scoresens.laws.measures import Points
from scoresens.laws.perturbations import Perturbation, reweight
from scoresens.report.samples import table
from scoresens.sweeps.store import Block, Layout, Store, progress

UNFINISHED = 75  # the exit code of a sweep that was asked to stop and can go on (EX_TEMPFAIL)
GIB = 2**30


class Unfinished(Exception):
    """A sweep that was asked to stop; its message is the table so far."""


class Asked(NamedTuple):
    """All that a sweep starts from."""

    model: Model
    dataset: Dataset
    data: Points
    question: sweeps.Question
    names: list[str]  # of the directions


def run_sweep(run: SweepRun, out: Path, where: str) -> str:
    """Make the blocks that a folder lacks; the table of the sweep.

    Raises:
        Unfinished: if it was asked to stop (SIGTERM) before its end.
    """
    stages = Stages()
    with blaming(f"{where}: mesh"):
        mesh = sweeps.mesh_of((run.mesh[0], run.mesh[1])) if run.mesh else None
    asked = _asked(run, where, mesh, stages)
    rank, count = jax.process_index(), jax.process_count()
    with stages("layout", "how large a block may be"):
        layout = _layout(run, asked, out)
    with blaming(f"{where}"):
        if rank == 0:
            store = _store(run, asked, out, layout)
        if count > 1:
            multihost_utils.sync_global_devices("the store is there")
            store = _store(run, asked, out, layout)
    file = out / f"log-{rank}.jsonl"
    with _written(out), _until_told_to_stop() as stop, file.open("a") as log:
        ran = sweeps.run(
            asked.question,
            [jax.random.key(seed) for seed in run.seeds],
            store,
            share=(rank, count),
            shown=lambda blocks: _shown(blocks, layout, rank, log),
            stopping=lambda: bool(stop),
        )
    told = status(out)
    if rank == 0:
        found = progress(out)
        about = {name: found[name] for name in ("done", "blocks")} | found["layout"]._asdict()
        write(out, about | {"seconds_a_block": found["seconds"] / found["done"]}, run, stages)
    if ran.left:
        raise Unfinished(f"{told}\n\nstopped with {ran.left} blocks left: run it again to go on")
    return told


def run_status(run: StatusRun, out: Path, where: str) -> str:
    """The table of how far a sweep is."""
    return status(run.folder)


def status(folder: Path) -> str:
    """How far the sweep in a folder is, as a table."""
    found = progress(folder)
    layout, done = found["layout"], found["done"]
    each = found["seconds"] / done if done else float("nan")
    left = found["blocks"] - done
    row = {
        "blocks": f"{done} of {found['blocks']}",
        "of samples x directions": f"{layout.rows} x {layout.columns}",
        "samples": f"{layout.seeds} x {layout.samples}",
        "a block": f"{each:.2f} s" if done else "",
        "left": f"{left * each / 60:.1f} min" if done and left else "" if left else "none",
    }
    return table({found["study"]["question"]: row}, "sweep")


# ------------------------------------------------------------------ the question


def _asked(run: SweepRun, where: str, mesh: Any, stages: Stages) -> Asked:
    with stages("data", f"reading {run.data.name} and the checkpoint {run.checkpoint}"):
        if run.stream:
            dataset, model, _ = data_and_model(run, where, unread)
            data = _streamed(run, where, dataset)
        else:
            dataset, model, _ = data_and_model(run, where, prepare)
            data = points_of(run, where, dataset)
    process, score, solve = model.process, model.score, Solve(steps=run.steps)
    options = options_of_base(run, data) | {"mesh": mesh, "solve": solve}
    if run.question == "attribution":
        with blaming(f"{where}: functional"):
            functional = make_question(
                run.functional, dataset, data, process, score, solve
            ).functional
            question = sweeps.attributions(process, score, data, functional, top=run.top, **options)
        return Asked(model, dataset, data, question, ["all"])
    with blaming(f"{where}: directions"):
        perturbation, names = _directions(run, dataset, data)
    question = sweeps.sensitivities(process, score, perturbation, **options)
    return Asked(model, dataset, data, question, names)


def unread(settings: DataSettings) -> Dataset:
    """The data where they are, of one class."""
    images = stream(Path(settings.path or settings.name))
    return Dataset(settings.name, images, np.zeros(len(images), int), ("all",))  # type: ignore


def _streamed(run: SweepRun, where: str, dataset: Dataset) -> Points:
    with blaming(f"{where}: bandwidth"):
        if run.bandwidth is None:
            raise ValueError("stream needs bandwidth: the default one compares all points")
        return Points.on_host(dataset.images, bandwidth=run.bandwidth)


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


def _layout(run: SweepRun, asked: Asked, out: Path) -> Layout:
    """That of the store, if there is one, else one that fits the memory."""
    study = out / "study.json"
    if study.is_file() and run.rows is None and run.columns is None and run.memory is None:
        return progress(out)["layout"]
    memory = _free_memory() / 2 if run.memory is None else run.memory * GIB
    return sweeps.layout_of(
        asked.question, seeds=len(run.seeds), samples=run.samples, memory=memory,
        rows=run.rows, columns=run.columns,
    )  # fmt: skip


def _free_memory() -> float:
    """Bytes that the process's devices have left together, or the host if they do not say."""
    told = [device.memory_stats() for device in jax.local_devices()]
    if all(told):
        return float(sum(t["bytes_limit"] - t["bytes_in_use"] for t in told if t))
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _store(run: SweepRun, asked: Asked, out: Path, layout: Layout) -> Store:
    fields = sweeps.fields_of(asked.question, layout)
    coordinates: dict[str, np.ndarray] = {"seed": np.array(run.seeds)}
    coordinates["sample"] = np.arange(run.samples)
    if run.question == "sensitivity":
        coordinates["direction"] = np.array(asked.names, np.dtypes.StringDType())
    return Store(out, fields, layout, coordinates, _study(run, asked))


def _study(run: SweepRun, asked: Asked) -> dict[str, Any]:
    """What the numbers hang on: settings, model and data. Memory, blocks and devices are not."""
    return {
        "question": run.question,
        "model": fingerprint(asked.model),
        "data": fingerprint(asked.data)
        if not run.stream
        else mark(Path(run.data.path or run.data.name)),
        "functional": run.functional if run.question == "attribution" else None,
        "top": run.top,
        "directions": asked.names,
        "samples": run.samples,
        "seeds": list(run.seeds),
        "steps": run.steps,
        "base": run.base,
        "trace": run.trace if run.base == "model" else None,
        "bandwidth": float(asked.data.bandwidth),
    }


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
    told = [device.memory_stats() for device in jax.local_devices()]
    if all(told):
        return sum(t["bytes_in_use"] for t in told if t)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _until_told_to_stop() -> Iterator[list[int]]:
    """Within it, SIGTERM fills the list that it yields, and does nothing else."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)

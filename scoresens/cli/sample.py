"""`scoresens sample`: samples of a checkpoint, and their log-densities."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scoresens.cli._command import Command, add_optional_config
from scoresens.cli._common import (
    GRID,
    arrays_in_own_units,
    in_own_units,
    load_checkpoint,
    picture,
    unit_of,
    write,
    write_arrays,
)
from scoresens.cli._progress import Stages, blaming
from scoresens.cli._settings import Sampler, Trace, at_least, check_trace, trace_of
from scoresens.datasets.forms import form_of
from scoresens.flow import sample_ode, sample_sde
from scoresens.flow.solve import Solve
from scoresens.report.page import at_most, draw_grid
from scoresens.report.tables import table


@dataclass(frozen=True, kw_only=True)
class SampleRun:
    """Settings of `scoresens sample`, explained in its help."""

    checkpoint: str = "digits"
    count: int = 64
    seed: int = 0
    sampler: Sampler = "ode"
    steps: int = 40
    trace: Trace | None = None

    def __post_init__(self):
        at_least(1, count=self.count, steps=self.steps)
        check_trace(self.trace)


def run_sample(run: SampleRun, out: Path, where: str) -> str:
    """Draw samples of a checkpoint and write them; the table of the run."""
    stages = Stages()
    with blaming(f"{where}: checkpoint"):
        model, about = load_checkpoint(run.checkpoint)
        form = form_of(about)
    key, other = jax.random.split(jax.random.key(run.seed))
    process, score, solve = model.process, model.score, Solve(steps=run.steps)
    noise = process.sample_prior((run.count, *model.shape), key=key)
    with stages("sample", f"compiling and integrating {run.count} paths"):
        draw = sample_sde if run.sampler == "sde" else sample_ode
        trace = None if run.trace is None else trace_of(run.trace)
        path = draw(process, score, noise, trace=trace, key=other, solve=solve)
    x, density = jax.device_get((path.x, path.log_density))
    arrays = {"x": x, "noise": np.asarray(noise)} | arrays_in_own_units(form, x=x)
    result: dict[str, Any] = {"count": run.count, "trained_on": about.get("data")}
    row = {"samples": f"{run.count}", "mean": f"{x.mean():.3f}", "std": f"{x.std():.3f}"}
    result |= {"mean": float(x.mean()), "std": float(x.std())}
    result |= unit_of(form) | in_own_units(form, x)
    if density is not None:
        arrays["log_density"] = density
        summary = {"mean": float(density.mean()), "std": float(density.std())}
        result["log_density"] = summary
        row |= {f"log-density {name}": f"{value:.1f}" for name, value in summary.items()}
    write_arrays(out / "samples.npz", **arrays)
    write(out, result, run, stages)
    with stages("pictures", "drawing"):
        kind = "probability flow" if run.sampler == "ode" else "reverse SDE"
        says = f"By the {kind} in {run.steps} steps, seed {run.seed}."
        most = at_most(form)
        noted = [] if density is None or most != GRID else density[:GRID]
        says += " Below each sample its log-density in nats." if len(noted) else ""
        notes = [f"{value:.1f}" for value in noted]
        shown = "" if run.count <= most else f"{most} of "
        title = f"{shown}{run.count} samples of {run.checkpoint}"
        path, named = out / "samples.png", {"title": title, "caption": says, "notes": notes}
        picture(draw_grid, path, x[:most], form=form, **named)
    return table({run.checkpoint: row}, "checkpoint")


COMMAND = Command(
    name="sample",
    run=run_sample,
    settings=SampleRun,
    arguments=add_optional_config,
    brief="draw samples from a checkpoint",
    about="""\
What does a checkpoint draw, and how likely does it find its own samples?

Settings, all optional (without CONFIG, the bundled digits): checkpoint ("digits", or the path of a
model.safetensors), count, seed (of the noise), sampler ("ode": the probability flow, or "sde": the
reverse SDE), steps (of the solver, two network evaluations each), trace (of the log-density:
"exact", or a number of random probes; left out: no log-density).""",
    example="scoresens sample configs/sample.toml",
    writes={
        "samples.npz": "x and noise [M, *shape], log_density [M] with trace;\n"
        f"{'':22}x_in_own_units, of columns",
        "samples.png": f"the first {GRID} samples; of tables and points, all",
        "result.json": "their mean, spread and log-density",
    },
)

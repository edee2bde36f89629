"""`scoresens sensitivity`: first-order changes of samples."""

from dataclasses import dataclass
from pathlib import Path

import jax

from scoresens.cli._command import Command
from scoresens.cli._common import (
    arrays_in_own_units,
    black_box,
    in_own_units,
    picture,
    quantiles,
    set_up_change,
    write,
    write_arrays,
)
from scoresens.cli._progress import Stages
from scoresens.cli._settings import Base, ChangeRun
from scoresens.flow.solve import Solve
from scoresens.report.samples import draw_sensitivity
from scoresens.report.tables import table
from scoresens.sensitivity.tangents import sample_sensitivity
from scoresens.statistics.displacements import norms


@dataclass(frozen=True, kw_only=True)
class SensitivityRun(ChangeRun):
    """Settings of `scoresens sensitivity`, explained in its help."""

    checkpoint: str = "digits"
    base: Base = "data"


def run_sensitivity(run: SensitivityRun, out: Path, where: str) -> str:
    """Write the first-order change of samples under a change of the data; the table of the run."""
    stages = Stages()
    changed = set_up_change(run, run.checkpoint, where, stages)
    setup, title = changed.setup, changed.title
    start = setup.process, setup.score, changed.change.perturbation, setup.noise
    options = black_box(setup, run.base, run.trace, run.seed)
    with stages("sensitivity", f"compiling and integrating {run.count} paths and tangents"):
        found = sample_sensitivity(*start, solve=Solve(steps=run.steps), **options)
    x, tangent, density = jax.device_get((found.x, found.tangent[:, 0], found.log_density))
    moved = run.change.mass * tangent
    form = setup.dataset.form
    arrays = {"x": x, "tangent": tangent} | arrays_in_own_units(form, x=x)
    arrays |= {} if density is None else {"log_density": density}
    write_arrays(out / "tangents.npz", **arrays)
    sizes = norms(moved)
    spread = quantiles(sizes)
    result = changed.about | {"first_order_norm": spread, "norms": sizes}
    result |= in_own_units(form, x, first_order=moved)
    write(out, result, run, stages)
    with stages("pictures", "drawing"):
        path, says = out / "report.png", {"title": title, "log_density": density}
        picture(draw_sensitivity, path, changed.touched, x, moved, **says)
    row = {f"|change| {name}": f"{value:.3f}" for name, value in spread.items()}
    return f"{title}\n\n" + table({f"first order ({run.base})": row}, "method")


COMMAND = Command(
    name="sensitivity",
    run=run_sensitivity,
    settings=SensitivityRun,
    brief="first-order changes of samples",
    about="""\
How does each sample move, to first order, when the training data change?

Settings: checkpoint, count, seed, steps as for sample; base (whose law the ratio is taken against:
"data", better where the data are known, or "model", its own smoothed by the bandwidth: a black
box), trace (for base = "model": "exact", or a number of random probes), bandwidth (of the bump on
each data point), width (of its kernel: above the bandwidth it is less sharp than Bayes at small
noise), resolution (of its kernel: above 0 directions in which the data vary little count little),
temperature (of its kernel: above 1 it is less sharp everywhere; where none of the three others is
named, the model is asked for them: see calibrate), spectral_bias (above 0 a change is predicted as
a short training learns it, directions in which the data vary much first); [data] as for train;
[change] kind ("add", "remove", "half", "shift", "model"), classes, images, random, mass, seed,
checkpoint.""",
    example="scoresens sensitivity configs/sensitivity.toml",
    writes={
        "tangents.npz": "x and tangent [M, *shape] per unit of mass; log_density [M], nats,\n"
        f'{"":22}for base = "model"',
        "report.png": "samples, their change, the touched images nearest to them",
        "result.json": "the norms of the changes",
    },
)

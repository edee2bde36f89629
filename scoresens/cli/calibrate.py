"""`scoresens calibrate`: the kernel of the data that a model is nearest to."""

from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from scoresens.cli._command import Command, add_optional_config
from scoresens.cli._common import data_and_model, kernel_of, picture, write
from scoresens.cli._progress import Stages
from scoresens.cli._settings import at_least
from scoresens.datasets.images import DataSettings, prepare
from scoresens.report.calibration import calibration_table, draw_calibration
from scoresens.sensitivity.calibration import calibrate


@dataclass(frozen=True, kw_only=True)
class CalibrateRun:
    """Settings of `scoresens calibrate`, explained in its help."""

    data: DataSettings = field(default_factory=lambda: DataSettings("digits"))
    checkpoint: str = "digits"
    count: int = 128
    seed: int = 0

    def __post_init__(self):
        at_least(8, count=self.count)


def run_calibrate(run: CalibrateRun, out: Path, where: str) -> str:
    """Write the kernel that a model is nearest to; the table of the run."""
    stages = Stages()
    with stages("data", f"reading {run.data.name} and the checkpoint {run.checkpoint}"):
        dataset, model, _ = data_and_model(run.data, run.checkpoint, where, prepare)
    with stages("calibration", f"asking the model around {run.count} samples of its own"):
        key = jax.random.key(run.seed)
        found = calibrate(model.process, model.score, dataset.images, key=key, count=run.count)
    title = f"checkpoint {run.checkpoint}: how well does it resolve {dataset.name}?"
    by_level = ("levels", "energies", "errors", "sharp")
    result = kernel_of(found.points) | {name: np.asarray(getattr(found, name)) for name in by_level}
    result["nearest"] = {"width": found.width, "resolution": found.resolution}
    write(out, result | {"error": found.error, "images": len(dataset.images)}, run, stages)
    with stages("pictures", "drawing"):
        path = out / "report.png"
        picture(draw_calibration, path, found, title=title, count=run.count, form=dataset.form)
    return f"{title}\n\n{calibration_table(found)}"


COMMAND = Command(
    name="calibrate",
    run=run_calibrate,
    settings=CalibrateRun,
    arguments=add_optional_config,
    brief="how well a model resolves its data",
    about="""\
With which kernel of the training data is a change of them predicted best? With one about as sharp
as the model is, which it shows at noised samples of its own, without training. Finds width,
resolution and bandwidth, which the other commands find too where none of them is named: name them
there, and they need not.

Settings, all optional (without CONFIG, the bundled digits): [data] as for train; checkpoint as for
sample; count (samples of the model that it is asked around, 8 or more), seed.""",
    example="scoresens calibrate configs/calibrate.toml",
    writes={
        "report.png": "what the nearest kernel leaves unexplained, by noise level",
        "result.json": "bandwidth, width, resolution; the same numbers by noise level",
    },
)

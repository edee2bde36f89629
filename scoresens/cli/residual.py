"""`scoresens residual`: how far an image model is from being the score of any noised law."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from scoresens.cli._command import Command, add_optional_config
from scoresens.cli._common import picture, set_up, write
from scoresens.cli._config import ConfigError
from scoresens.cli._progress import Stages
from scoresens.cli._settings import Trace, at_least, check_trace, trace_of
from scoresens.datasets.images import DataSettings
from scoresens.flow.solve import Solve
from scoresens.flow.traces import TraceEstimator
from scoresens.fokker_planck.collocation import along_forward
from scoresens.fokker_planck.residuals import non_conservative_part, score_residual
from scoresens.laws.processes import Process
from scoresens.laws.scores import Score, to_denoiser
from scoresens.report.gap import draw_levels, levels_table
from scoresens.statistics import estimates
from scoresens.statistics.estimates import Estimate

LEVELS = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 2.0, 4.0, 10.0, 20.0)  # of noise, by default
SOLVE = Solve(batch_size=16)  # points side by side, each with all directions of its trace


@dataclass(frozen=True, kw_only=True)
class ResidualRun:
    """Settings of `scoresens residual`, explained in its help."""

    data: DataSettings = field(default_factory=lambda: DataSettings("digits"))
    checkpoint: str = "digits"
    levels: tuple[float, ...] = LEVELS
    count: int = 32
    seed: int = 0
    trace: Trace = "exact"

    def __post_init__(self):
        at_least(2, count=self.count)
        check_trace(self.trace)
        if not self.levels or not 0 < self.levels[0] < math.inf:
            raise ValueError(f"levels must be positive, got {list(self.levels)}")
        if list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"levels must rise, got {list(self.levels)}")


class Level(NamedTuple):
    """What a score does at one noise level, at M points; squares of norms."""

    residual: np.ndarray  # [M], of the residual of the score's equation
    rate: np.ndarray  # [M], of the score's derivative in time
    twist: np.ndarray  # [2, M], of the antisymmetric part of the Jacobian: score's, denoiser's
    whole: np.ndarray  # [2, M], of the Jacobian


def run_residual(run: ResidualRun, out: Path, where: str) -> str:
    """Write how well a checkpoint obeys the equations of a score, by noise level; the table."""
    stages = Stages()
    setup = set_up(run.data, run.checkpoint, where, stages, count=run.count, seed=run.seed)
    process, score = setup.process, setup.score
    highest = float(process.noise_level(process.t_max))
    if run.levels[-1] > highest * (1 + 1e-6):
        raise ConfigError(f"{where}: levels must be at most {highest:g}")
    for_data, key = jax.random.split(jax.random.key(run.seed))
    few = run.count > len(setup.data)
    chosen = jax.random.choice(for_data, len(setup.data), (run.count,), replace=few)
    x, rows, trace = jnp.asarray(setup.dataset.images)[chosen], {}, trace_of(run.trace)
    with stages("residual", f"{run.count} points at {len(run.levels)} noise levels", bars=True):
        for level in tqdm(run.levels, desc="residuals", unit="level"):
            rows[level] = _numbers(at_level(process, score, x, level, trace, key=key))
    title = f"checkpoint {run.checkpoint}: is it the score of noised {setup.dataset.name}?"
    levels = [
        {"level": level} | {name: found._asdict() for name, found in row.items()}
        for level, row in rows.items()
    ]
    write(out, {"levels": levels, "images": len(setup.data)}, run, stages)
    with stages("pictures", "drawing"):
        says = {"title": title, "count": run.count, "trace": run.trace}
        picture(draw_levels, out / "report.png", rows, **says)
    return f"{title}\n\n{levels_table(rows)}"


def at_level(
    process: Process,
    score: Score,
    x: jax.Array,
    level: float,
    trace: TraceEstimator,
    *,
    key: jax.Array,
) -> Level:
    """What a score and its denoiser do at data noised to a level.

    Args:
        process, score: the model.
        x: data `[M, *shape]`.
        level: tau.
        trace: how to take traces.
        key: of the noise, the same at each level, and of probes.
    """
    denoiser = to_denoiser(process, score)
    t, noised = along_forward(process, jnp.full(len(x), process.time(level)), x, key=key)
    of_residual, of_twist = jax.random.split(jax.random.fold_in(key, len(x)))
    how = {"trace": trace, "solve": SOLVE}
    residual = score_residual(process, score, t, noised, key=of_residual, **how)
    parts = [
        non_conservative_part(field, t, noised, key=of_twist, **how) for field in (score, denoiser)
    ]
    twist, whole = (
        np.square([np.asarray(norm, np.float64) for norm in norms])
        for norms in zip(*parts, strict=True)
    )
    return Level(_squares(residual), _squares(_rates(score, t, noised)), twist, whole)


@jax.jit
def _rates(score: Score, t: jax.Array, x: jax.Array) -> jax.Array:
    """The score's derivatives in time."""

    def one(t, x):
        return jax.jvp(lambda t: score(t, x), (t,), (jnp.ones_like(t),))[1]

    return jax.vmap(one)(t, x)


def _numbers(found: Level) -> dict[str, Estimate]:
    """The numbers of one level: root mean squares over its points."""
    return {
        "relative_residual": _ratio(found.residual, found.rate),
        "antisymmetric_share": _ratio(found.twist[0], found.whole[0]),
        "denoiser_antisymmetric_share": _ratio(found.twist[1], found.whole[1]),
        "residual_norm": _ratio(found.residual),
        "rate_norm": _ratio(found.rate),
    }


def _ratio(part: np.ndarray, whole: np.ndarray | float = 1.0) -> Estimate:
    """sqrt(E part / E whole) from M draws of both, with the ends of the square's interval, which
    is right to first order in 1 / sqrt(M)."""
    scale = np.mean(whole)
    square = part.mean() / scale
    draws = square + (part - square * whole) / scale  # of mean E part / E whole
    value, low, high = (float(end) for end in estimates.mean(jnp.asarray(draws)))
    return Estimate(*(max(end, 0.0) ** 0.5 for end in (value, low, high)))


def _squares(rows: jax.Array) -> np.ndarray:
    return np.sum(np.square(np.asarray(rows, np.float64)).reshape(len(rows), -1), 1)


COMMAND = Command(
    name="residual",
    run=run_residual,
    settings=ResidualRun,
    arguments=add_optional_config,
    brief="how far an image model is from being a score",
    about="""\
Is a network the score of any noised law? A score obeys the Fokker-Planck equation, and is the
gradient of a log-density. Measures both failings of a checkpoint at noised data, by noise level:
the residual of the score's equation relative to the score's rate of change (0: obeyed), and the
antisymmetric part of the score's Jacobian as a share of the whole (0: a gradient); and that of the
denoiser, where no identity hides it at high noise.

Settings, all optional (without CONFIG, the bundled digits): [data] as for train (what is noised:
the data that the checkpoint was trained on); checkpoint as for sample; levels (noise levels,
rising), count (noised data points a level), seed (of their choice, noise and probes), trace
("exact", or, for large images, a number of random probes a point, which add their own spread to the
numbers).""",
    example="scoresens residual configs/residual.toml",
    writes={
        "report.png": "residual and antisymmetric part over noise levels",
        "result.json": "the same numbers, with 95 % intervals",
    },
)

"""`scoresens residual`: how far an image model is from being the score of any noised law."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from scoresens.cli.common import TRACES, set_up, write
from scoresens.cli.config import ConfigError
from scoresens.cli.progress import Stages
from scoresens.cli.settings import AttributeRun, ResidualRun
from scoresens.flow.traces import TraceEstimator
from scoresens.fokker_planck.collocation import along_forward
from scoresens.fokker_planck.residuals import non_conservative_part, score_residual
from scoresens.laws.processes import Process
from scoresens.laws.scores import Score, to_denoiser
from scoresens.report.gap import draw_levels, levels_table
from scoresens.statistics import estimates
from scoresens.statistics.estimates import Estimate

BATCH = 16  # points side by side, each with all directions of its trace


class Level(NamedTuple):
    """What a score does at one noise level, at M points; squares of norms."""

    residual: np.ndarray  # [M], of the residual of the score's equation
    rate: np.ndarray  # [M], of the score's derivative in time
    twist: np.ndarray  # [2, M], of the antisymmetric part of the Jacobian: score's, denoiser's
    whole: np.ndarray  # [2, M], of the Jacobian


def run_residual(run: ResidualRun, out: Path, where: str) -> str:
    """Write how well a checkpoint obeys the equations of a score, by noise level; the table."""
    stages = Stages()
    start = AttributeRun(data=run.data, checkpoint=run.checkpoint, count=run.count, seed=run.seed)
    setup = set_up(start, where, stages)
    process, score = setup.process, setup.score
    highest = float(process.noise_level(process.t_max))
    if run.levels[-1] > highest * (1 + 1e-6):
        raise ConfigError(f"{where}: levels must be at most {highest:g}")
    for_data, key = jax.random.split(jax.random.key(run.seed))
    few = run.count > len(setup.data)
    chosen = jax.random.choice(for_data, len(setup.data), (run.count,), replace=few)
    x, rows = jnp.asarray(setup.dataset.images)[chosen], {}
    with stages("residual", f"{run.count} points at {len(run.levels)} noise levels", bars=True):
        for level in tqdm(run.levels, desc="residuals", unit="level"):
            rows[level] = _numbers(at_level(process, score, x, level, TRACES[run.trace], key=key))
    title = f"checkpoint {run.checkpoint}: is it the score of noised {setup.dataset.name}?"
    with stages("pictures", "drawing"):
        draw_levels(out / "report.png", rows, title=title, count=run.count, trace=run.trace)
    levels = [
        {"level": level} | {name: found._asdict() for name, found in row.items()}
        for level, row in rows.items()
    ]
    write(out, {"levels": levels, "images": len(setup.data)}, run, stages)
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
    how = {"trace": trace, "batch_size": BATCH}
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

r"""Gradients through training: what the outcome of a training owes to the weight of each image.

    python benchmarks/magic.py STUDY            # the groups of queries that are missing
    python benchmarks/magic.py STUDY --table    # the markdown of docs/attribution.md

STUDY is a folder of `scoresens validate` with experiment = "halves". Every draw k of a batch counts
N w_k in its loss, which at w = 1/N is the training of `scoresens.training`. With L_q(w) the loss at
query q of the averaged network after all its steps,

    scores[q, k] = dL_q / dw_k      at w = 1/N, the draws, noise and first parameters held fixed,

exact to rounding: reverse mode through the optimiser, step by step. States are kept every
sqrt(steps) steps, and those between computed again; a group of queries is pulled back at once.

It is what all influence functions approximate, and no attribution of a finished model: it wants the
whole training, twice, and many times that for its pull-back. A rise of the weights is no other
*draw* of the data, and Adam's steps are far from linear: whether the exact derivative predicts
training on halves is measured.

Of every group the scores are kept as STUDY/rivals/magic/SEED-GROUP.npy; when all of a study are
there, they are joined to STUDY/rivals/magic.npz, beside those of `benchmarks/rivals`. Costs and
agreement are rows of benchmarks/results/magic.json, ours beside them on the same queries.

Reference: Ilyas & Engstrom 2025, MAGIC, arXiv 2504.16430.
"""

import functools
import math
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from rows import Row, measure, options, table
from rows import read as read_rows

from scoresens.cli._common import calibrated
from scoresens.cli._config import read
from scoresens.cli.halves import HalvesRun, Study, stored
from scoresens.laws.measures import default_bandwidth
from scoresens.models import Denoiser
from scoresens.studies.halves import Judge
from scoresens.studies.predictions import loss_scores
from scoresens.studies.retraining import Queries, loss_at, start_of
from scoresens.studies.store import ARRAY, Store, arrays
from scoresens.training.denoising import (
    Coupling,
    TrainSettings,
    TrainState,
    advanced,
    begun,
    couple,
    denoising_loss,
    draw_batch,
)

CONFIGS = Path(__file__).parents[1] / "configs"
COSTS = ("preparation", "seconds a query", "kept MB")
SAYING = ("through training", "calibrated", "default bandwidth", "mean of the other seeds")
GROUPS = 12  # of queries; each holds every twelfth of them
LEAST = 1e-30  # of Adam's second moment: its root has a derivative, and is as good as 0


class Course(NamedTuple):
    """What the steps of one training take."""

    images: Float[Array, "N *shape"]
    draws: Coupling
    key: Array
    settings: TrainSettings


# ------------------------------------------------------------------ the derivative


def weighted_step(state: TrainState, weights: Float[Array, " N"], course: Course) -> TrainState:
    """The trainer's step, where every draw of image k counts N w_k."""
    images, draws, key, settings = course
    batch = draw_batch(images, draws, jax.random.fold_in(key, state.step), settings)

    def loss(model):
        def of_one(x, tau, noise):
            return denoising_loss(model, x[None], tau[None], noise[None])

        each = jax.vmap(of_one)(images[batch.drawn], batch.tau, batch.noise)
        return jnp.mean(len(images) * weights[batch.drawn] * each)

    moments = optax.tree_utils.tree_get(state.opt_state, "nu")
    moments = jax.tree.map(lambda nu: jnp.maximum(nu, LEAST), moments)
    state = state._replace(opt_state=optax.tree_utils.tree_set(state.opt_state, nu=moments))
    return advanced(state, jax.grad(loss)(state.model), settings)


@functools.cache
def _programs(settings: TrainSettings):
    """One step forward, and one back of many cotangents."""

    def course_of(images, draws, key):
        return Course(images, draws, key, settings)

    @jax.jit
    def forward(state, weights, *fixed):
        return weighted_step(state, weights, course_of(*fixed))

    @jax.jit
    def back(cotangents, scores, state, weights, *fixed):
        def step(floats, weights):
            return _floats(weighted_step(_filled(state, floats), weights, course_of(*fixed)))

        _, pull = jax.vjp(step, _floats(state), weights)
        cotangents, found = jax.vmap(pull)(cotangents)
        return cotangents, scores + found

    return forward, back


def gradients(
    start: Denoiser, course: Course, queries: Queries, asked: Float[np.ndarray, " G"]
) -> tuple[Denoiser, Float[np.ndarray, "G N"], dict[str, float]]:
    """The trained model, the scores of the queries asked for, and processor seconds and MB."""
    forward, back = _programs(course.settings)
    count, steps = len(course.images), course.settings.steps
    weights = jnp.full(count, 1 / count, course.images.dtype)
    fixed, stride = course[:3], math.isqrt(steps)
    began, state = time.process_time(), begun(start, course.settings)
    marks = [state]
    for number in range(1, steps + 1):
        state = forward(state, weights, *fixed)
        if number % stride == 0 and number < steps:
            marks.append(state)
    jax.block_until_ready(state)
    ready = time.process_time()
    of_losses = jax.vmap(lambda i: jax.grad(loss_at)(state.ema, queries, i))(jnp.asarray(asked))
    nothing = jax.tree.map(lambda leaf: jnp.zeros((len(asked), *leaf.shape), leaf.dtype), state)
    cotangents = _floats(nothing._replace(ema=of_losses))
    scores = jnp.zeros((len(asked), count), weights.dtype)
    for place in reversed(range(len(marks))):
        passed = [marks[place]]  # before each step from this mark to the next
        for _ in range(min(stride, steps - place * stride) - 1):
            passed.append(forward(passed[-1], weights, *fixed))
        for before in reversed(passed):
            cotangents, scores = back(cotangents, scores, before, weights, *fixed)
    scores = np.asarray(scores)
    cost = {
        "preparation": ready - began,
        "seconds a query": (time.process_time() - ready) / len(asked),
        "kept MB": sum(leaf.nbytes for leaf in jax.tree.leaves(marks)) / 1e6,
    }
    return state.ema, scores, cost


def _floats(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def _filled(tree, floats):
    """The tree with other floating leaves."""
    leaves, form = jax.tree.flatten(tree)
    given = iter(floats)
    leaves = [next(given) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in leaves]
    return jax.tree.unflatten(form, leaves)


# ------------------------------------------------------------------ a study


def pulled(folder: Path, study: Study, losses: np.ndarray, seed: int, group: int) -> Row:
    """What one seed's group of queries costs; its scores are kept."""
    run = study.retraining
    start, key = start_of(seed, study.images, run.model)
    images, asked = jnp.asarray(study.images), _asked(study, group)
    course = Course(images, couple(len(images)), key, run.settings)
    model, scores, cost = gradients(start, course, study.queries, asked)
    _kept(folder).result(f"{seed}-{group}", lambda: scores)
    again = [float(loss_at(model, study.queries, int(i))) for i in asked]
    before = [float(loss_at(study.models[f"all-{seed}"], study.queries, int(i))) for i in asked]
    off = np.sqrt(np.mean(np.subtract(again, before) ** 2)) / np.std(losses[seed][:, asked])
    row: Row = {name: float(f"{value:.4g}") for name, value in cost.items()}
    row["queries"] = len(asked)
    row["trained again, off by"] = float(f"{off:.2g}")  # the spread of a half's losses
    return row


def agreement(folder: Path, study: Study, losses: np.ndarray, run: HalvesRun, seed: int) -> Row:
    """How well the groups that are there predict a seed's halves, and on the same queries ours, by
    two kernels, and training with the other seeds."""
    there = [group for group in range(GROUPS) if _kept(folder).file(f"{seed}-{group}").exists()]
    asked = np.concatenate([_asked(study, group) for group in there])
    scores = np.concatenate([np.load(_kept(folder).file(f"{seed}-{group}")) for group in there])
    model, others = study.models[f"all-{seed}"], np.delete(losses, seed, 0).mean(0)
    bumps = calibrated(study.images, model), study.points(bandwidth=default_bandwidth(study.images))
    ours = (loss_scores(model, data, study.queries)[asked] for data in bumps)
    change = study.halves / study.halves.sum(1, keepdims=True) - 1 / len(study.images)
    said = [*(change @ each.T for each in (scores, *ours)), others[:, asked]]
    report = slice(run.halves.subsets)
    judge = Judge(losses[seed : seed + 1, report][..., asked], None, run.resamples, 0)
    row: Row = {"queries": len(asked)}
    for whose, each in zip(SAYING, said, strict=True):
        measured = judge.all(each[None, report])
        row |= {f"{whose}, {measure}": value for measure, value in measured.items()}
    return row


def join(folder: Path, study: Study, seeds: int) -> None:
    """One file in the form of the rivals', once all groups of all seeds are there."""
    found = {
        (seed, group): _kept(folder).find(f"{seed}-{group}")
        for seed in range(seeds) for group in range(GROUPS)
    }  # fmt: skip
    if any(scores is None for scores in found.values()):
        return
    shape = (seeds, 1, len(study.queries.images), len(study.images))
    scores = np.zeros(shape, np.float32)
    for (seed, group), part in found.items():
        scores[seed, 0, _asked(study, group)] = part
    whole = {"scores": scores, "dampings": np.array([np.inf]), "seeds": np.arange(seeds)}
    form = arrays(*whole)
    form.write(folder / "rivals" / "magic.npz", whole)


def _asked(study: Study, group: int) -> np.ndarray:
    return np.arange(len(study.queries.images))[group::GROUPS]


def _kept(folder: Path) -> Store[np.ndarray]:
    return Store(folder / "rivals" / "magic", ARRAY)


def costs() -> str:
    """The markdown of docs/attribution.md."""
    rows = read_rows("magic")
    lines = [
        [name, *(f"{row[column]:.2g}" for column in COSTS)]
        for name, row in rows.items() if "preparation" in row
    ]  # fmt: skip
    said = [f"{whose}, {measure}" for whose in SAYING for measure in ("lds", "pearson")]
    agreed = [
        [name, str(row["queries"]), *(_cell(row[column]) for column in said)]
        for name, row in rows.items() if said[0] in row
    ]  # fmt: skip
    return f"{table(['', *COSTS], lines)}\n\n{table(['', 'queries', *said], agreed)}"


def _cell(found):
    return "{:.2f} [{:.2f}, {:.2f}]".format(*found)


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("study", type=Path, nargs="?")
    args = parser.parse_args()
    if args.table or args.study is None:
        print(costs())
        return
    name, kept = args.study.resolve().name, _kept(args.study)
    run = read(CONFIGS / f"{name}-halves.toml", HalvesRun)
    study, truth = stored(args.study, run)
    given = args.study, study, truth.losses
    rows, missing = {}, {}
    for seed in range(run.halves.seeds):
        for group in range(GROUPS):
            row = f"{name}: seed {seed}, group {group:02d}"
            rows[row] = functools.partial(pulled, *given, seed, group)
            missing[row] = not kept.file(f"{seed}-{group}").exists()
    for row in rows:
        if args.only in row:
            measure("magic", rows, row, args.fresh or missing[row])
    for seed in range(run.halves.seeds):
        if any(kept.folder.glob(f"{seed}-*.npy")):
            row = f"{name}: agreement, seed {seed}"
            judged = functools.partial(agreement, *given, run, seed)
            measure("magic", {**rows, row: judged}, row, True)
    join(args.study, study, run.halves.seeds)


if __name__ == "__main__":
    main()

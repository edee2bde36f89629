"""Discrete states: predicted changes of log-probability beside what fine-tuning does.

Digits as 64 symbols of 4 grey levels; a residual MLP trained as a masked (and a uniform) model on
1,597 of them, 200 held out. From it four pairs of fine-tunings a change, each pair with one key:
on the changed data, and, as the control, on the data as they are. Asked is the change of the
log-probability, in nats, of the held-out digits (minus the denoising loss, with common draws of
noise) and of the chains of the model's own samples:

    real      = mean over pairs of log P(changed) - log P(control)
    predicted = mass d log P / d mass            first order, (11.2)
                log P(counterfactual) - log P    finite
                log rho'(x) - log rho(x)         of the data's laws alone, the baseline

Flips are chosen on the held-out digits and the first change, class '3' at mass 0.2.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rows import measure, options, read, table

from scoresens import discrete as dc
from scoresens.datasets import load
from scoresens.models import SymbolMLP
from scoresens.statistics import percentiles, resampled_rows
from scoresens.statistics.displacements import rank_correlation
from scoresens.training import TrainSettings, train_symbols

NAME, LEVELS, HELD, SAMPLES = "discrete", 4, 200, 128
FLIPS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
PAIRS, KEY = 4, jax.random.key(0)
BASE = TrainSettings(steps=5_000, batch_size=64, learning_rate=2e-3)
TUNE = TrainSettings(
    steps=600, batch_size=64, learning_rate=5e-4, warmup=0, decay=False, ema_halflife=100
)
PROCESSES = {"masked": dc.Masked(LEVELS), "uniform": dc.Uniform(LEVELS)}
CHANGES = ("class 3 added", "class 1 removed", "a random half")
ROOT = Path(__file__).parents[1]
OUT = ROOT / "out" / NAME  # networks, which are not committed
FIGURE = ROOT / "docs" / "figures" / f"{NAME}.png"


# ------------------------------------------------------------------ data and changes


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training sequences, their classes, and sequences held out."""
    found = load("digits")
    grey = np.rint((found.images.reshape(len(found.images), -1) + 1) * 8).astype(int)
    order = np.random.default_rng(0).permutation(len(grey))
    levels = (grey * LEVELS // 17)[order]
    return levels[HELD:], found.labels[order][HELD:], levels[:HELD]


def change(name: str, data: dc.Sequences) -> tuple[dc.Perturbation, float, np.ndarray]:
    """A direction, its mass, and the weights of the changed data."""
    points, labels, _ = digits()
    count = len(points)
    if name == "class 3 added":
        three = labels == 3
        weights = 0.8 / count + 0.2 * three / three.sum()
        return dc.add(dc.Sequences(points[three], LEVELS)), 0.2, weights
    chosen = np.random.default_rng(1).random(count) < 0.5 if "half" in name else labels == 1
    return dc.remove(data, chosen), 1.0, ~chosen / (~chosen).sum()


# ------------------------------------------------------------------ training


def network(kind: str) -> SymbolMLP:
    """The base model, trained once and kept."""
    process, file = PROCESSES[kind], OUT / f"{kind}.npz"
    fresh = SymbolMLP(64, LEVELS, process.states, width=128, depth=2, rngs=nnx.Rngs(0))
    leaves, structure = jax.tree.flatten(fresh)
    if not file.exists():
        trained, losses = train_symbols(
            fresh, process, digits()[0], key=KEY, settings=BASE, progress=False
        )
        OUT.mkdir(parents=True, exist_ok=True)
        np.savez(file, *jax.tree.leaves(trained), losses=losses)
    kept = np.load(file)
    return jax.tree.unflatten(structure, [kept[f"arr_{i}"] for i in range(len(leaves))])


def records(kind: str) -> dict[str, dc.Record]:
    """What log-probabilities are asked of: held-out digits and the base model's samples."""
    process = PROCESSES[kind]
    noise = process.sample_prior((SAMPLES, 64), key=KEY)
    denoiser = dc.from_denoiser(process, network(kind))
    return {
        "held": dc.noised(process, digits()[2], key=KEY, draws=32),
        "samples": dc.sample(process, denoiser, noise, key=KEY, steps=32),
    }


def asked(kind: str, denoiser: dc.Denoiser) -> dict[str, np.ndarray]:
    """The log-probabilities that a denoiser gives all records."""
    process = PROCESSES[kind]
    found = {name: dc.log_probability(process, denoiser, r) for name, r in records(kind).items()}
    return {name: np.asarray(value) for name, value in found.items()}


def tuned(kind: str, name: str, pair: int) -> dict:
    """Log-probabilities after one fine-tuning."""
    points, *_ = digits()
    process, data = PROCESSES[kind], dc.Sequences(points, LEVELS)
    weights = None if name == "control" else change(name, data)[2]
    found, losses = train_symbols(
        network(kind), process, points, key=jax.random.fold_in(KEY, 1 + pair),
        settings=TUNE, weights=weights, progress=False,
    )  # fmt: skip
    values = asked(kind, dc.from_denoiser(process, found))
    row = {which: rounded(value, 3) for which, value in values.items()}
    return {"loss": round(float(losses[-5:].mean()), 4), **row}


def rounded(values: np.ndarray, digits: int) -> list[float]:
    """Numbers as JSON holds them, short."""
    return np.round(values.astype(float), digits).tolist()


def base_row(kind: str) -> dict:
    """The base model itself."""
    model = network(kind)
    row = asked(kind, dc.from_denoiser(PROCESSES[kind], model))
    losses = np.load(OUT / f"{kind}.npz")["losses"]
    return {
        "loss": round(float(losses[-20:].mean()), 4),
        "held_nats": round(float(row["held"].mean()), 2),
        "sample_nats": round(float(row["samples"].mean()), 2),
    }


# ------------------------------------------------------------------ predictions


def predicted(kind: str, name: str, flip: float) -> dict[str, dict[str, np.ndarray]]:
    """Predicted changes by method and record."""
    process, (points, *_) = PROCESSES[kind], digits()
    denoiser = dc.from_denoiser(process, network(kind))
    data = dc.Sequences(points, LEVELS, flip=flip)
    perturbation, mass, weights = change(name, data)
    after = dc.counterfactual(process, denoiser, data, perturbation, mass)
    found = {"first order": {}, "finite": {}, "data alone": {}}
    for which, record in records(kind).items():
        first = dc.sensitivity(process, denoiser, data, perturbation, record)[:, 0]
        before, later = (dc.log_probability(process, d, record) for d in (denoiser, after))
        x = record.clean if which == "held" else record.x
        found["first order"][which] = np.asarray(mass * first)
        found["finite"][which] = np.asarray(later - before)
        found["data alone"][which] = data_alone(process, data, weights, x)
    return found


def data_alone(process, data, weights, x) -> np.ndarray:
    """The change of the log-density of the data's law, with flips and hardly any noise."""
    rows = jnp.stack([data.normalized_weights, jnp.asarray(weights, jnp.float32)])

    def one(x):
        own, new = data.posterior(process, 1e-3, x, rows).log_density
        return new - own

    return np.asarray(jax.lax.map(jax.jit(one), x))


def agreement(predicted: np.ndarray, real: np.ndarray) -> dict:
    """Pearson's and Spearman's correlation with 95 % intervals over queries, and the slope."""
    chosen = resampled_rows(len(real), 2000, 0)
    p, r = predicted.astype(float), real.astype(float)
    pearson = [np.corrcoef(p[rows], r[rows])[0, 1] for rows in chosen]
    spearman = rank_correlation(p[chosen], r[chosen], 1)
    whole = percentiles(np.corrcoef(p, r)[0, 1], np.array(pearson))
    ranks = percentiles(rank_correlation(p[None], r[None], 1)[0], spearman)
    return {
        "pearson": [round(float(v), 3) for v in whole],
        "spearman": [round(float(v), 3) for v in ranks],
        "slope": round(float(p @ r / (p @ p)), 2),
    }


def real_changes(kind: str, name: str, which: str) -> np.ndarray:
    """The real change of each pair `[R, Q]`."""
    done = read(NAME)
    sides = (np.array([done[f"{kind}: {side}, pair {r}"][which] for r in range(PAIRS)])
             for side in (name, "control"))  # fmt: skip
    after, before = sides
    return after - before


def judged(kind: str, name: str, flip: float) -> dict:
    """Agreement of every method with the mean of the pairs, and of one pair with the others."""
    found = predicted(kind, name, flip)
    row: dict = {"flip": flip}
    for which in ("held", "samples"):
        real = real_changes(kind, name, which)
        row[which] = {"size": round(float(np.abs(real.mean(0)).mean()), 3)}
        row[f"{which} finite"] = rounded(found["finite"][which], 3)
        row[which] |= {method: agreement(value[which], real.mean(0))
                       for method, value in found.items()}  # fmt: skip
        alone = [agreement(real[r], np.delete(real, r, 0).mean(0)) for r in range(PAIRS)]
        row[which]["another fine-tuning"] = {
            measure: [round(float(v), 3) for v in np.mean([a[measure] for a in alone], 0)]
            for measure in ("pearson", "spearman")
        }
    return row


def flip_of(kind: str) -> dict:
    """Which flips agree best with the first change, over the held-out digits."""
    real = real_changes(kind, CHANGES[0], "held").mean(0)
    found = {flip: agreement(predicted(kind, CHANGES[0], flip)["finite"]["held"], real)
             for flip in FLIPS}  # fmt: skip
    best = max(FLIPS, key=lambda flip: found[flip]["spearman"][0])
    return {"best": best, **{str(flip): value for flip, value in found.items()}}


def rows_of(kind: str) -> dict:
    """Every row of one process, in order."""
    rows = {f"{kind}: base": functools.partial(base_row, kind)}
    for pair in range(PAIRS):
        for name in ("control", *CHANGES):
            rows[f"{kind}: {name}, pair {pair}"] = functools.partial(tuned, kind, name, pair)
    rows[f"{kind}: flip"] = functools.partial(flip_of, kind)
    for name in CHANGES:
        rows[f"{kind}: {name}"] = lambda name=name: judged(
            kind, name, read(NAME)[f"{kind}: flip"]["best"]
        )
    return rows


def shown() -> str:
    """The table of docs/discrete.md."""
    done, lines = read(NAME), []
    for kind in PROCESSES:
        for name in CHANGES:
            row = done.get(f"{kind}: {name}", {})
            for which in ("held", "samples"):
                for method, found in row.get(which, {}).items():
                    if method == "size":
                        continue
                    cells = [f"{v:.2f} [{low:.2f}, {high:.2f}]"
                             for v, low, high in (found["spearman"], found["pearson"])]  # fmt: skip
                    lines.append([f"{kind}: {name}", which, method, *cells])
    return table(["change", "of", "prediction", "Spearman", "Pearson"], lines)


def draw() -> None:
    """docs/figures/discrete.png: every held-out digit, predicted beside real."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    held = load("digits").labels[np.random.default_rng(0).permutation(1797)][:HELD]
    for axis, name in zip(axes, CHANGES, strict=True):
        found = np.array(read(NAME)[f"masked: {name}"]["held finite"])
        real = real_changes("masked", name, "held").mean(0)
        special = held == {"class 3 added": 3, "class 1 removed": 1}.get(name, -1)
        axis.axline((0, 0), slope=1, color="0.8", zorder=0)
        axis.scatter(found[~special], real[~special], s=9, color="0.35", label="other digits")
        if special.any():
            axis.scatter(found[special], real[special], s=14, color="tab:orange", label="the class")
            axis.legend(frameon=False)
        axis.set(title=name, xlabel="predicted, nats")
    axes[0].set_ylabel("after fine-tuning, nats")
    figure.savefig(FIGURE, dpi=130)


def main() -> None:
    asked = options(__doc__)
    asked.add_argument("--figure", action="store_true", help="draw, measure nothing")
    given = asked.parse_args()
    if given.figure:
        return draw()
    if not given.table:
        for kind in PROCESSES:
            measure(NAME, rows_of(kind), given.only, given.fresh)
    print(shown())


if __name__ == "__main__":
    main()

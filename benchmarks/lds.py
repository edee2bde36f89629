r"""Does an attribution foretell what training on half of the data does to a sample?

Truth. The digits model (configs/digits.toml) is trained from scratch on each of 24 random halves of
the data and on all of them, with the same initial parameters and coupled draws (`training.couple`).
All are sampled from the same noise, 24 queries. A query's displacement `x_S - x_all` is read along
the 8 first principal components of the data. A second seed of parameters and draws does the same.

Predictions, from the model of all data alone (the shipped one, which is `full-0`), for bumps of
bandwidth h:

    attribution      sum_k c_k dphi/deps_k over all points (5.1), c = (weights of S) - 1/N;
                     data: the ratio of (6.3); smoothed: the model's own law blurred by h (6.5),
                     sharp: the model's own law, both with the exact trace
    counterfactual   x(S) - x, finite (6.3)

and baselines:

    without network  the counterfactual with the data's own denoiser in place of the network
    mean shift       D_h(x_0; S) - D_h(x_0), at the sample alone: its mean over near points moves
    others           each point pulls the sample, sum_k c_k w_k (y_k - x_0), with
                     kernel: w = N(x_0; y_k, h^2 I) / rho_h(x_0); subset mean: w = 1;
                     cosine: w that of x_0 and y_k, centred; distance: w = 1 / |x_0 - y_k|^2

Measures. LDS: Spearman's correlation over the halves of predicted and true displacement, the mean
over queries and components. Pearson: of all displacements pooled, each centred over the halves.
Size: the rms of the centred prediction over that of the truth. Intervals are 95 % of a bootstrap
over queries; `over halves`, 2 standard errors of a jackknife over the halves.

Ceiling. Were a displacement an effect m that all seeds share plus a seed's own, and r the
correlation of two seeds, then m itself would reach sqrt(r) against one seed and sqrt(2 r / (1 + r))
against the mean of two.

The samples of all models are in results/lds/samples.npz; without them, training takes 20 minutes.
"""

import functools
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rows import RESULTS, measure, options, read, table
from scipy.stats import rankdata

import scoresens as ss
from scoresens.datasets import load
from scoresens.models import Denoiser, ModelSettings, build, pretrained
from scoresens.training import TrainSettings, train

CONFIG = Path(__file__).parents[1] / "configs" / "digits.toml"
SAMPLES = RESULTS / "lds" / "samples.npz"
PROCESS = ss.EDM()
SUBSETS, QUERIES, COMPONENTS = 24, 24, 8
SEEDS = (0, 1)  # of training
NOISE_SEED = 4
BANDWIDTHS = (0.5, 0.8, 1.0, 1.2, 1.6)
KERNELS = (0.8, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5)
HALF = QUERIES // 2  # a bandwidth chosen on these queries is judged on the others
RESAMPLES = 1000
IMAGES = load("digits").images
FLAT = IMAGES.reshape(len(IMAGES), -1)


# ------------------------------------------------------------------ the truth: trained models


@functools.cache
def halves() -> np.ndarray:
    """`[24, N]`, true for the points in each random half."""
    rng, count = np.random.default_rng(0), len(IMAGES)
    return np.stack([rng.permutation(count) < count // 2 for _ in range(SUBSETS)])


def make_samples() -> None:
    """Train the models whose samples are not yet on disk, and sample them all from one noise."""
    for name, (seed, half) in models().items():
        if name in (done := read_samples()):
            continue
        model = train_one(seed, half)
        x = ss.sample_ode(PROCESS, ss.from_denoiser(PROCESS, model), noise()).x
        write_samples({**done, "noise": np.asarray(noise()), name: np.asarray(x)})
        print(f"trained {name}", flush=True)


def models() -> dict[str, tuple[int, np.ndarray | None]]:
    """What there is to train: seed and half, by name."""
    made: dict[str, tuple[int, np.ndarray | None]] = {}
    for seed in SEEDS:
        made[f"full-{seed}"] = (seed, None)
        made |= {f"{number:02d}-{seed}": (seed, half) for number, half in enumerate(halves())}
    return made


def train_one(seed: int, half: np.ndarray | None) -> Denoiser:
    """A model from scratch; those of one seed share initial parameters and coupled draws."""
    config = tomllib.loads(CONFIG.read_text())
    start, draws = jax.random.split(jax.random.key(seed))
    architecture = ModelSettings(**config["model"])
    fresh = build(architecture, IMAGES.shape[1:], float(IMAGES.std()), key=start)
    settings = TrainSettings(**config["train"])
    return train(fresh, IMAGES, key=draws, settings=settings, weights=half, progress=False).model


@functools.cache
def noise() -> jax.Array:
    """What all models are sampled from, `[24, 8, 8, 1]`."""
    kept = read_samples().get("noise")
    if kept is not None:
        return jnp.asarray(kept)
    return PROCESS.sample_prior(jax.random.key(NOISE_SEED), (QUERIES, *IMAGES.shape[1:]))


def read_samples() -> dict[str, np.ndarray]:
    """The samples made so far, `[24, 8, 8, 1]` a model."""
    return dict(np.load(SAMPLES)) if SAMPLES.exists() else {}


def write_samples(samples: dict[str, np.ndarray]) -> None:
    """The whole file or nothing of it."""
    SAMPLES.parent.mkdir(parents=True, exist_ok=True)
    beside = SAMPLES.with_name(f"samples.{os.getpid()}.npz")
    np.savez_compressed(beside, **samples)
    os.replace(beside, SAMPLES)


@functools.cache
def components() -> np.ndarray:
    """The first principal components of the data, `[8, 64]`."""
    return np.linalg.svd(FLAT - FLAT.mean(0), full_matrices=False)[2][:COMPONENTS]


def along(displacement: np.ndarray) -> np.ndarray:
    """`[..., *shape]` along the components, `[..., 8]`."""
    lead = displacement.shape[: -len(IMAGES.shape[1:])]
    return np.asarray(displacement).reshape(*lead, -1) @ components().T


@functools.cache
def truth(seed: int) -> np.ndarray:
    """Displacements of the queries when a model of this seed trains on each half, `[S, M, 8]`."""
    done = read_samples()
    trained = np.stack([done[f"{half:02d}-{seed}"] for half in range(SUBSETS)])
    return along(trained - done[f"full-{seed}"])


# ------------------------------------------------------------------ predictions, [S, M, 8]


def changes() -> np.ndarray:
    """`[S, N]`: how the points' weights change when half of them are kept."""
    weights = halves() / halves().sum(1, keepdims=True)
    return weights - 1 / len(IMAGES)


@functools.cache
def score():
    return ss.from_denoiser(PROCESS, pretrained("digits")[0])


@functools.cache
def queries() -> np.ndarray:
    """The samples of the shipped model, `[24, 8, 8, 1]`."""
    return np.asarray(ss.sample_ode(PROCESS, score(), noise()).x)


def attribution(h: float, base: str) -> np.ndarray:
    """The points' scores, summed over the change of their weights."""
    data = ss.Points(IMAGES, bandwidth=h)
    displacement = ss.functionals.components(components().reshape(-1, *IMAGES.shape[1:]))
    law = {"data": "data", "smoothed": ss.Smoothed(h), "sharp": None}[base]
    alone = {"trace": ss.Exact(), "prior": data}  # for the model's law
    asked = (PROCESS, score(), data, displacement, noise())
    scores = ss.attribute(*asked, base=law, **alone).scores
    return np.einsum("sn,mpn->smp", changes(), np.asarray(scores))


def counterfactual(h: float, network: bool = True) -> np.ndarray:
    """The finite change, of the network or of the data's own denoiser."""
    data = ss.Points(IMAGES, bandwidth=h)
    model = score() if network else ss.exact_score(PROCESS, data)
    half = ss.reweight(data, halves().astype(np.float32))
    after = ss.counterfactual(PROCESS, model, half, noise(), mass=1.0, base=data).x
    before = ss.sample_ode(PROCESS, model, noise()).x
    return along(np.moveaxis(np.asarray(after - before[:, None]), 1, 0))


def pulled(weights: np.ndarray) -> np.ndarray:
    """`sum_k c_k w_k (y_k - x_0)` along the components, for weights `[M, N]`."""
    toward = FLAT @ components().T - along(queries())[:, None]  # [M, N, 8]
    return np.einsum("sn,mn,mnp->smp", changes(), weights, toward)


def subset_mean() -> np.ndarray:
    return pulled(np.ones((QUERIES, len(FLAT))))


def cosine() -> np.ndarray:
    x, y = queries().reshape(QUERIES, -1) - FLAT.mean(0), FLAT - FLAT.mean(0)
    return pulled(x @ y.T / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)))


def distance() -> np.ndarray:
    return pulled(1 / squares())


def kernel(h: float) -> np.ndarray:
    weights = bumps(h)
    return pulled(weights / weights.mean(1, keepdims=True))


def mean_shift(h: float) -> np.ndarray:
    flat, weights = FLAT @ components().T, bumps(h)
    chosen = halves()[:, None] * weights
    return share(chosen) @ flat - share(weights) @ flat


def bumps(h: float) -> np.ndarray:
    """N(x_0; y_k, h^2 I) up to a factor for each query, `[M, N]`."""
    logits = -0.5 * squares() / h**2
    return np.exp(logits - logits.max(1, keepdims=True))


def share(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum(-1, keepdims=True)


def squares() -> np.ndarray:
    """Squared distances of queries and points, `[M, N]`."""
    return np.square(queries().reshape(QUERIES, 1, -1) - FLAT).sum(-1)


# ------------------------------------------------------------------ measures


def judged(predict: Callable[[], np.ndarray]) -> dict:
    """The measures of a prediction against the displacements of each seed, and of their mean."""
    found = predict()
    truths = {"seed 0": truth(0), "seed 1": truth(1), "mean": (truth(0) + truth(1)) / 2}
    return {name: against(found, true) for name, true in truths.items()}


def ceiling() -> dict:
    """One seed against the other, and what the effect that they share would reach."""
    found = against(truth(1), truth(0))
    for name in ("lds", "pearson"):
        r = np.maximum(found[name], 0)
        found[f"{name}, shared effect against one seed"] = rounded(np.sqrt(r))
        found[f"{name}, shared effect against the mean"] = rounded(np.sqrt(2 * r / (1 + r)))
    done = read_samples()
    found["distance between seeds"] = norms(done["full-0"] - done["full-1"])
    found["distance between half and all"] = norms(done["00-0"] - done["full-0"])
    return found


def norms(displacement: np.ndarray) -> list[float]:
    """The mean over queries and its interval."""
    return mean(np.linalg.norm(displacement.reshape(QUERIES, -1), axis=1))


def against(found: np.ndarray, true: np.ndarray) -> dict:
    """LDS and pooled Pearson with their intervals, and the prediction's size."""
    p, t = (a - a.mean(0) for a in (found, true))
    parts = np.stack([(p * t).sum((0, 2)), (p * p).sum((0, 2)), (t * t).sum((0, 2))], -1)
    drawn = parts[resamples(len(parts))].sum(1)
    pt, pp, tt = parts.sum(0)
    each = spearman(found, true).mean(1)
    kept = ~np.eye(SUBSETS, dtype=bool)
    without = np.array([spearman(found[some], true[some]).mean() for some in kept])
    return {
        "lds": mean(each),
        "over halves": jackknife(without),
        "pearson": interval(pt / np.sqrt(pp * tt), drawn[:, 0] / np.sqrt(drawn[:, 1:].prod(1))),
        "size": rounded([np.sqrt(pp / tt)])[0],
        "each query": rounded(each),
        "without each half": rounded(without),
    }


def mean(each: np.ndarray) -> list[float]:
    """A mean over queries and its bootstrap interval."""
    return interval(each.mean(), each[resamples(len(each))].mean(1))


def resamples(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def jackknife(without: np.ndarray) -> list[float]:
    """2 standard errors to each side of the mean of n values, of all but one half each."""
    middle, count = without.mean(), len(without)
    error = np.sqrt((count - 1) / count * np.square(without - middle).sum())
    return rounded([middle, middle - 2 * error, middle + 2 * error])


def spearman(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Spearman's correlation over halves, `[M, 8]`."""
    p, t = (rankdata(a, axis=0) for a in (found, true))
    p, t = p - p.mean(0), t - t.mean(0)
    return (p * t).sum(0) / np.sqrt((p * p).sum(0) * (t * t).sum(0))


def interval(value: float, drawn: np.ndarray) -> list[float]:
    return rounded([value, *np.quantile(drawn, (0.025, 0.975))])


def rounded(values) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


# ------------------------------------------------------------------ rows and tables


def rows() -> dict[str, Callable[[], dict]]:
    """What there is to measure."""
    made: dict[str, Callable[[], dict]] = {"ceiling": ceiling}
    curves: dict[str, tuple[Callable[[float], np.ndarray], tuple[float, ...]]] = {
        "attribution, data": (functools.partial(attribution, base="data"), BANDWIDTHS),
        "attribution, smoothed": (functools.partial(attribution, base="smoothed"), BANDWIDTHS),
        "attribution, sharp": (functools.partial(attribution, base="sharp"), BANDWIDTHS),
        "counterfactual": (counterfactual, BANDWIDTHS),
        "without network": (functools.partial(counterfactual, network=False), KERNELS),
        "mean shift": (mean_shift, KERNELS),
        "kernel": (kernel, KERNELS),
    }
    for family, (predict, bandwidths) in curves.items():
        for h in bandwidths:
            made[f"{family}, h = {h}"] = functools.partial(judged, functools.partial(predict, h))
    for predict in (subset_mean, cosine, distance):
        made[predict.__name__.replace("_", " ")] = functools.partial(judged, predict)
    return made


def tables() -> str:
    """Markdown: every row, bandwidths chosen on one half of the queries, margins, the ceiling."""
    done = read("lds")
    top = done.pop("ceiling")
    header = ["prediction", "LDS", "over halves", "Pearson", "size", "LDS, mean of seeds",
              "over halves", "Pearson, mean of seeds"]  # fmt: skip
    lines = []
    for name, row in done.items():
        one, both = row["seed 0"], row["mean"]
        lines.append(
            [name, cell(one["lds"]), cell(one["over halves"]), cell(one["pearson"]),
             f"{one['size']:.2f}", cell(both["lds"]), cell(both["over halves"]),
             cell(both["pearson"])]
        )  # fmt: skip
    return "\n\n".join([table(header, lines), selection(done), margins(done), ceilings(top)])


def selection(done: dict[str, dict]) -> str:
    """Each family at the bandwidth best on one half of the queries, judged on the other half."""
    first, second = slice(HALF), slice(HALF, None)
    lines = []
    for family, members in families(done).items():
        found = {h: np.array(row["seed 0"]["each query"]) for h, row in members.items()}
        line = [family]
        for seen, held in ((first, second), (second, first)):
            h = max(found, key=lambda h: found[h][seen].mean())
            line += [h or "–", cell(mean(found[h][held]))]
        lines.append(line)
    ours, others = f"queries 0–{HALF - 1}", f"{HALF}–{QUERIES - 1}"
    header = ["prediction", f"h by {ours}", f"LDS on {others}", f"h by {others}", f"LDS on {ours}"]
    return table(header, lines)


def families(done: dict[str, dict]) -> dict[str, dict[str, dict]]:
    """The rows by family and bandwidth."""
    made: dict[str, dict[str, dict]] = {}
    for name, row in done.items():
        family, _, h = name.partition(", h = ")
        made.setdefault(family, {})[h] = row
    return made


def margins(done: dict[str, dict]) -> str:
    """LDS above the mean shift, whose bandwidth is the best for the score that it reports."""
    lines = []
    for name, row in done.items():
        line = [name]
        for true in ("seed 0", "mean"):
            rivals = [rival[true] for rival in families(done)["mean shift"].values()]
            best = max(rivals, key=lambda rival: rival["lds"][0])
            queries, without = (
                np.subtract(row[true][part], best[part])
                for part in ("each query", "without each half")
            )
            line += [cell(mean(queries)), cell(jackknife(without))]
        if name.startswith(("attribution", "counterfactual", "without")):
            lines.append(line)
    header = ["LDS above the best mean shift", "over queries", "over halves",
              "mean of seeds, over queries", "mean of seeds, over halves"]  # fmt: skip
    return table(header, lines)


def ceilings(top: dict) -> str:
    against_one, against_mean = "shared effect against one seed", "shared effect against the mean"
    lines = [
        [label, cell(top[name]), cell(top[f"{name}, {against_one}"]),
         cell(top[f"{name}, {against_mean}"])]
        for label, name in (("LDS", "lds"), ("Pearson", "pearson"))
    ]  # fmt: skip
    return table(["ceiling", "another training", against_one, against_mean], lines)


def cell(found: list) -> str:
    """`value [low, high]`."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*found)


def main() -> None:
    args = options(__doc__).parse_args()
    if args.table:
        print(tables())
    else:
        make_samples()
        measure("lds", rows(), args.only, args.fresh)


if __name__ == "__main__":
    main()

r"""Prediction against what training really does.

The truth is a difference of two fine-tunings from one checkpoint, with one key and shared draws: on
the changed data, and, as the control, on the unchanged data. Both sample from the same starting
noise. What depends on the key no prediction can know: the difference is averaged over a few
keys.

    real_i      = mean over keys of x_i(tuned on changed data) - x_i(tuned on unchanged data)
    predicted_i = mass dx_i / d mass                  first order, (4.1)
                  x_i(counterfactual) - x_i           finite, (6.1) and (6.3)

are compared over samples i by the measures of `compare`, each with a bootstrap interval over
samples. A short fine-tuning learns of a change first what lies along the axes of large variance:
after n steps of learning rates eta_i it is predicted with the spectral bias (6.11)

    (6.12)  b = 1.5e-4 / sum_{i <= n} eta_i

When to distrust a prediction, nobody has to train to know: of a change that a network can follow at
all, the samples predicted to go far are predicted well. `trust` makes of it a bound that holds for
changes not seen; within one change they are ranked by their own speed,

    reliability_i = |predicted_i| / (h moved)

in bandwidths h per unit of mass moved (`Change.moved`); `calibration` says what it was worth.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scoresens.flow import sample_ode
from scoresens.flow.solve import Solve
from scoresens.flow.traces import Exact, TraceEstimator
from scoresens.laws.learned import Base, Smoothed
from scoresens.laws.measures import Points, spacing_of
from scoresens.models import Denoiser
from scoresens.sensitivity.counterfactual import counterfactual
from scoresens.sensitivity.tangents import sample_sensitivity
from scoresens.statistics.bootstrap import percentiles, resampled_rows
from scoresens.statistics.displacements import cosines, norms, rank_correlation
from scoresens.statistics.estimates import Estimate
from scoresens.studies._baselines import toward_mean, wiener
from scoresens.studies.changes import Change
from scoresens.studies.retraining import OUTPUTS
from scoresens.studies.store import Store
from scoresens.training.denoising import TrainSettings, learning_rates, train

SLOWNESS = 1.5e-4  # (6.12), of Adam: read off the digits, class '3' and ten images added
EDGES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # of groups of samples, by their reliability


class RealChange(NamedTuple):
    """Samples from the same noise after R pairs of fine-tunings."""

    control: Float[np.ndarray, "R M *shape"]
    changed: Float[np.ndarray, "R M *shape"]

    @property
    def displacement(self) -> Float[np.ndarray, "M *shape"]:
        """The truth: how far the change moved each sample, the mean over pairs."""
        return np.mean(self.changed - self.control, 0)

    @property
    def ceiling(self) -> tuple[np.ndarray, np.ndarray]:
        """One pair's displacement, and the mean of the others': R >= 2. How well a prediction that
        trained a model of its own would do."""
        each = self.changed - self.control
        return each[0], np.mean(each[1:], 0)

    @property
    def reach(self) -> float:
        """Pearson's correlation with `displacement` that the effect itself would have, what all
        pairs share: `sqrt(R r / (1 + (R - 1) r))`, r the mean correlation of two pairs (Spearman
        and Brown 1910). NaN for one pair, or pairs that do not agree."""
        count, *_ = self.control.shape
        if count < 2:
            return float("nan")
        table = np.corrcoef((self.changed - self.control).reshape(count, -1))
        r = float(table[np.triu_indices(count, 1)].mean())
        return (count * r / (1 + (count - 1) * r)) ** 0.5 if r > 0 else float("nan")


def predict_change(
    model: Denoiser,
    data: Points,
    change: Change,
    mass: float,
    noise: Float[Array, "M *shape"],
    solve: Solve = Solve(),
    trace: TraceEstimator = Exact(),
) -> dict[str, Float[np.ndarray, "M *shape"]]:
    """Predicted displacements of the samples from `noise`, by name of the method.

    Args:
        model: a denoiser of the canonical frame.
        data: its training data, with their bumps.
        change: from `make_change`, of the same data.
        mass: how much of it.
        noise: `[M, *shape]` at the model's highest level, tau = 80.
        solve: the numerics.
        trace: of the black boxes; its probes, if it has any, are of key 0.

    Returns:
        `first_order_data`, `counterfactual_data` against the data's law; black box,
        `first_order_model`, `counterfactual_model` against the model's law smoothed by the data's
        bandwidth (the default one, where their kernel has a width of its own), and
        `first_order_sharp`, `counterfactual_sharp` against it as it is, left out where its density
        ratios overflow (no black box of noise that is not Gaussian); the baseline `class_mean`,
        which moves each sample straight toward the mean of what is added (away from what is
        removed, along what is moved), with ratio r = 1 in (2.1); the baseline `wiener`, which knows
        of the data and of the changed data their means and covariances alone; and `before`, the
        samples themselves.
    """
    process, score, perturbation = model.process, model.score, change.perturbation
    spacing, options = spacing_of(data), {"trace": trace, "prior": data.sharp(), "solve": solve}
    options["key"] = jax.random.key(0)
    bases: dict[str, Base] = {"data": data}
    if process.noise.is_gaussian:
        bases |= {"model": Smoothed(spacing), "sharp": None}
    before = sample_ode(process, score, noise, solve=solve).x
    found = {"before": before, "class_mean": mass * toward_mean(perturbation, before)}
    found["wiener"] = wiener(process, score, data, change, noise, solve) - before
    for name, base in bases.items():
        asked = perturbation if name == "data" else perturbation.sharp(spacing)
        arguments = (process, score, asked, noise)
        try:
            first = sample_sensitivity(*arguments, base=base, **options)
            found[f"first_order_{name}"] = mass * first.tangent[:, 0]
            finite = counterfactual(*arguments, mass=mass, base=base, **options)
            found[f"counterfactual_{name}"] = finite.x[:, 0] - before
        except FloatingPointError:
            if name != "sharp":  # whose density ratios overflow where a model is far from its data
                raise
    return jax.device_get(found)


def predict_steps(
    model: Denoiser,
    data: Points,
    change: Change,
    mass: float,
    noise: Float[Array, "M *shape"],
    settings: TrainSettings,
    steps: Sequence[int],
    solve: Solve = Solve(),
) -> dict[int, Float[np.ndarray, "M *shape"]]:
    """The samples that the finite prediction against the data's law has, as far as the change is
    learnt after each number of steps (6.12).

    Args:
        model, data, change, mass, noise, solve: as for `predict_change`.
        settings: of the fine-tuning.
        steps: numbers of steps, at least 1 each.
    """
    asked = model.process, model.score, change.perturbation, noise

    def after(count):
        base = data.with_spectral_bias(spectral_bias(settings, count))
        return np.asarray(counterfactual(*asked, mass=mass, base=base, solve=solve).x[:, 0])

    return {count: after(count) for count in steps}


def spectral_bias(settings: TrainSettings, steps: int) -> float:
    """b of what is learnt after that many steps (6.12)."""
    middles = jnp.arange(steps) + 0.5  # of steps: a warm-up begins at 0, a decay ends there
    rates = jnp.broadcast_to(learning_rates(settings)(middles), steps)
    return SLOWNESS / float(jnp.sum(rates))


class Finetuning(NamedTuple):
    """How a model is fine-tuned, and where the samples of fine-tuned models are kept.

    Args:
        folder: of the samples, NAME.npz; it must hold no others' (`store.of_study`).
        settings: of the training.
        key: of the draws; pair r of fine-tunings shares `fold_in(key, r)`.
        repeats: R, the number of pairs.
        after: numbers of steps, rising, below `settings.steps`, after which to sample as well.
        solve: the numerics of the sampler.
        shown: what shows progress over the names of the fine-tunings that are left.
    """

    folder: Path
    settings: TrainSettings
    key: PRNGKeyArray
    repeats: int = 1
    after: Sequence[int] = ()
    solve: Solve = Solve()
    shown: Callable[[list[str]], Iterator[str]] = iter

    @property
    def times(self) -> tuple[int, ...]:
        """The numbers of steps after which to sample."""
        return *self.after, self.settings.steps


def real_changes(
    model: Denoiser,
    data: Points,
    change: Change,
    noise: Float[Array, "M *shape"],
    finetuning: Finetuning,
) -> dict[int, RealChange]:
    """What fine-tuning on the changed data does to the samples from `noise`, against its control.

    Args:
        model: the checkpoint that all fine-tunings start from.
        data: the unchanged data.
        change: from `make_change`, of the same data.
        noise: `[M, *shape]` at the model's highest level, tau = 80.
        finetuning: how, and how often.

    Returns:
        By number of steps, the last that of all steps.

    Notes:
        2 R trainings, and a sampling run at each number of steps.
    """
    changed_images = data.points if change.images is None else change.images
    control_images = data.points if change.base_weights is None else changed_images
    kinds = {"control": (control_images, None), "changed": (changed_images, change.weights)}

    def tuned(name):
        kind, repeat = name.split("-")
        images, weights = kinds[kind]
        found = train(
            model,
            images,
            key=jax.random.fold_in(finetuning.key, int(repeat)),
            settings=finetuning.settings,
            weights=weights,
            base_weights=change.base_weights,
            keep=finetuning.times,
            progress=False,
        )
        models, solve = (found.earlier[steps] for steps in finetuning.times), finetuning.solve
        drawn = [sample_ode(each.process, each.score, noise, solve=solve).x for each in models]
        return {"samples": np.stack(drawn), "losses": np.zeros(0)}

    names = [f"{kind}-{repeat}" for kind in kinds for repeat in range(finetuning.repeats)]
    found = Store(finetuning.folder, OUTPUTS).results(names, tuned, finetuning.shown)
    control, changed = np.split(np.stack([found[name]["samples"] for name in names]), 2)
    return {
        steps: RealChange(control[:, place], changed[:, place])
        for place, steps in enumerate(finetuning.times)
    }


def compare(
    predicted: Float[np.ndarray, "M *shape"],
    real: Float[np.ndarray, "M *shape"],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """How well predicted displacements match real ones.

    Args:
        predicted: `[M, *shape]`.
        real: `[M, *shape]`.
        resamples: bootstrap resamples of the M samples.
        seed: of the resampling.

    Returns:
        By name, each with its 95 % percentile interval:

        - `median_cosine`: median over samples of the cosine of the two displacements;
        - `pooled_pearson`: Pearson correlation of all M d entries;
        - `relative_l2`: |predicted - real| / |real| over all entries;
        - `magnitude_ratio`: mean |predicted_i| over mean |real_i|;
        - `magnitude_spearman`: rank correlation of |predicted_i| and |real_i|.
    """
    p, r = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (predicted, real))
    rows = resampled_rows(len(p), resamples, seed)
    values, drawn = (_measures(p, r, chosen) for chosen in (np.arange(len(p))[None], rows))
    return {name: percentiles(value[0], drawn[name]) for name, value in values.items()}


def reliability(
    predicted: Float[np.ndarray, "M *shape"], moved: float, bandwidth: float
) -> Float[np.ndarray, " M"]:
    """How far each sample is predicted to go, in bandwidths per unit of mass moved: the larger, the
    better its direction is known.

    Args:
        predicted: `[M, *shape]`, a finite prediction.
        moved: how much mass the change moves, `Change.moved`.
        bandwidth: `default_bandwidth`, in units of the data.

    Notes:
        Found on one fine-tuning of the digits, among several signals; it ranked the samples of
        nine other changes of them, and less well those of Fashion-MNIST. It does not compare
        networks: `trust.cosine_bound` does.
    """
    return norms(predicted) / (bandwidth * moved)


class Calibration(NamedTuple):
    """What a reliability was worth, by groups of samples between `EDGES`."""

    spearman: Estimate  # with the cosine of the predicted and the real displacement
    low: Float[np.ndarray, " G"]  # where a group begins
    count: Int[np.ndarray, " G"]  # pyright: ignore[reportIncompatibleMethodOverride]
    cosine: Float[np.ndarray, "G 3"]  # the 10 %, 50 % and 90 % quantiles of theirs; NaN of none


def calibration(
    signal: Float[np.ndarray, " M"],
    predicted: Float[np.ndarray, "M *shape"],
    real: Float[np.ndarray, "M *shape"],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Calibration:
    """How well a reliability separates good predictions from bad ones.

    Args:
        signal: `[M]`, of `reliability`.
        predicted, real: `[M, *shape]`, as for `compare`.
        resamples, seed: of the bootstrap over samples.
    """
    alike = cosines(predicted, real)
    rows = np.arange(len(alike))[None], resampled_rows(len(alike), resamples, seed)
    whole, drawn = (rank_correlation(signal[each], alike[each], 1) for each in rows)
    group = np.digitize(signal, EDGES) - 1
    members = [alike[group == place] for place in range(len(EDGES))]
    missing = np.full(3, np.nan)
    return Calibration(
        percentiles(whole[0], drawn),
        np.array(EDGES),
        np.array([len(cosine) for cosine in members]),
        np.stack([np.percentile(c, (10, 50, 90)) if len(c) else missing for c in members]),
    )


def _measures(predicted: np.ndarray, real: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The measures of B resamples `rows [B, M]` of the samples, each `[B]`, from sums a sample."""
    products = (predicted, real, predicted**2, real**2, predicted * real)
    sums = [product.sum(1) for product in products]
    p, r, pp, rr, pr = (column[rows].sum(1) for column in sums)
    sizes_p, sizes_r, count = np.sqrt(sums[2]), np.sqrt(sums[3]), predicted.size
    alike = sums[4] / (sizes_p * sizes_r)
    variances = (pp - p * p / count) * (rr - r * r / count)
    return {
        "median_cosine": np.median(alike[rows], 1),
        "pooled_pearson": (pr - p * r / count) / np.sqrt(variances),
        "relative_l2": np.sqrt((pp - 2 * pr + rr) / rr),
        "magnitude_ratio": sizes_p[rows].sum(1) / sizes_r[rows].sum(1),
        "magnitude_spearman": rank_correlation(sizes_p[rows], sizes_r[rows], 1),
    }

r"""Linear datamodeling: does a prediction agree with what training on half of the data does?

Truth. A model is trained on all images and on each of S random halves of them, by each of R seeds
(`retraining`). With x the sample from noise i, and L the denoising loss at image q,

    displacement  T_rsi = x_i(half s, seed r) - x_i(all, seed r)
    loss change   T_rsq = L_q(half s, seed r) - L_q(all, seed r)

Measures, each averaged over seeds:

    LDS      Spearman's correlation over the halves of predicted and true number, the mean over
             queries; of displacements, along the first principal components of the data
    pearson  of all entries pooled, each centred over the halves
    cosine   median over halves and samples, of displacements centred over the halves
    l2       |predicted - true| / |true| over all entries, of displacements

Ceiling. Were a displacement an effect m that all seeds share plus a seed's own, and r the pooled
correlation of two seeds, then m itself would reach sqrt(r) against one seed.

References: Ilyas et al. 2022, arXiv 2202.00622; Park et al. 2023, arXiv 2303.14186 (LDS).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from scoresens.statistics.bootstrap import percentiles, resampled_rows
from scoresens.statistics.displacements import rank_correlation
from scoresens.statistics.estimates import Estimate
from scoresens.studies.retraining import Outputs, Trial, baselines


@dataclass(frozen=True)
class HalvesSettings:
    """Which models to train, and where to evaluate them.

    Args:
        seeds: R, trainings of each half.
        subsets: S, halves that results are reported on.
        choosing: further halves, on which whatever has a choice is chosen.
        samples: M, queries that are drawn from the model: their displacement, and, with the values
            clipped to those of the data, their loss.
        held_out: images that no model sees, whose loss is taken too.
        levels: L, noise levels of a loss.
        components: along which displacements are ranked.
        seed: of halves, held-out images and noise.
    """

    seeds: int = 3
    subsets: int = 64
    choosing: int = 16
    samples: int = 24
    held_out: int = 24
    levels: int = 32
    components: int = 8
    seed: int = 0

    def __post_init__(self):
        for name, least in (
            ("seeds", 1), ("subsets", 4), ("choosing", 4), ("samples", 1), ("held_out", 1),
            ("levels", 1), ("components", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


class Truth(NamedTuple):
    """What training on the halves did."""

    samples: Float[np.ndarray, "R M *shape"]  # of the models of all images
    displacements: Float[np.ndarray, "R S M *shape"]
    losses: Float[np.ndarray, "R S Q"]


def halves(count: int, subsets: int, seed: int) -> Bool[np.ndarray, "S N"]:
    """Random halves of N images, each a row that is true for its images."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(count) < count // 2 for _ in range(subsets)])


def plan(chosen: Bool[np.ndarray, "S N"], seeds: int) -> dict[str, Trial]:
    """The trials of a study by name: `all-R`, and `half-SSS-R` for each half and seed."""
    trials = baselines(seeds)
    for seed in range(seeds):
        for number, half in enumerate(chosen):
            trials[f"half-{number:03d}-{seed}"] = Trial(seed, half.astype(np.float64))
    return trials


def truth(found: Mapping[str, Outputs], subsets: int, seeds: int) -> Truth:
    """The displacements and loss changes between the outputs of a study's models."""
    bases = [found[name] for name in baselines(seeds)]

    def changes(field):
        after = [[found[f"half-{s:03d}-{r}"] for s in range(subsets)] for r in range(seeds)]
        each = [[getattr(one, field) for one in row] for row in after]
        return np.array(each) - np.array([getattr(base, field) for base in bases])[:, None]

    samples = np.stack([base.samples for base in bases])
    return Truth(samples, changes("samples"), changes("losses"))


# ------------------------------------------------------------------ measures


class Judge:
    """The measures of predictions against one truth, `[R, S, M, d]` displacements or `[R, S, Q]`
    losses, each an `Estimate`, to four digits, by a bootstrap over halves and queries together.

    Args:
        true: what training did.
        axes: `[P, d]`, along which displacements are ranked; None for losses.
        count: bootstrap resamples; 0 gives no intervals.
        seed: of the resamples, the same for every prediction.
    """

    def __init__(self, true: np.ndarray, axes: np.ndarray | None, count: int, seed: int):
        rng, (_, halves, queries) = np.random.default_rng(seed), true.shape[:3]
        self.true, self.axes = np.asarray(true, np.float64), axes
        rows = (resampled_rows(size, count, rng) for size in (halves, queries))
        self.drawn = list(zip(*rows, strict=True))

    def all(self, found: np.ndarray) -> dict[str, Estimate]:
        """Every measure that there is of such a prediction."""
        measures = {"lds": self._rank, "pearson": self._pearson}
        if self.axes is not None:
            measures |= {"cosine": self._cosine, "l2": self._l2, "size": self._size}
        return {name: measure(found, self.true) for name, measure in measures.items()}

    def rank(self, found: np.ndarray) -> float:
        """The LDS alone, without an interval."""
        return float(self._ranks(found, self.true, slice(None)).mean())

    def ceiling(self) -> dict[str, Estimate]:
        """How well one seed predicts another, and what the effect that they share would reach
        against one; nothing where there is one seed."""
        seeds = range(len(self.true))
        pairs = [(i, j) for i in seeds for j in seeds if i < j]
        if not pairs:
            return {}
        first, second = (self.true[list(side)] for side in zip(*pairs, strict=True))
        found = {}
        for name, measure in (("lds", self._rank), ("pearson", self._pearson)):
            another = found[f"{name}_of_another_seed"] = measure(first, second)
            found[name] = Estimate(*(max(v, 0.0) ** 0.5 for v in another))
        return found

    def _rank(self, found, true):
        each = self._ranks(found, true, slice(None))
        drawn = [self._ranks(found, true, rows)[picked].mean() for rows, picked in self.drawn]
        return _interval(each.mean(), drawn)

    def _ranks(self, found, true, rows):
        """Spearman's correlation over halves, the mean over seeds: `[M]` or `[M, P]`."""
        if self.axes is not None:
            found, true = found @ self.axes.T, true @ self.axes.T
        pairs = zip(found, true, strict=True)
        return np.mean([rank_correlation(p[rows], t[rows], 0) for p, t in pairs], 0)

    def _pearson(self, found, true):
        """Of all entries pooled, each centred over the halves, the mean over seeds."""
        p, t = _centred(found), _centred(true)
        return self._ratio([p * t, p * p, t * t], lambda pt, pp, tt: pt / np.sqrt(_safe(pp * tt)))

    def _cosine(self, found, true):
        """The median over halves, queries and seeds."""
        p, t = _centred(found), _centred(true)
        sizes = np.linalg.norm(p, axis=-1) * np.linalg.norm(t, axis=-1)
        cosines = (p * t).sum(-1) / _safe(sizes)
        drawn = [np.median(cosines[:, rows][..., picked]) for rows, picked in self.drawn]
        return _interval(np.median(cosines), drawn)

    def _l2(self, found, true):
        """|predicted - true| / |true|."""
        return self._ratio([(found - true) ** 2, true**2], lambda off, all: np.sqrt(off / all))

    def _size(self, found, true):
        """|predicted| / |true|, centred over the halves."""
        p, t = _centred(found), _centred(true)
        return self._ratio([p * p, t * t], lambda pp, tt: np.sqrt(pp / tt))

    def _ratio(self, parts, combine):
        """A function of sums over all entries, by seed, and its mean over seeds."""
        each = np.stack([part.reshape(*part.shape[:3], -1).sum(-1) for part in parts])
        drawn = [
            combine(*each[:, :, rows][..., picked].sum((2, 3))).mean()
            for rows, picked in self.drawn
        ]
        return _interval(combine(*each.sum((2, 3))).mean(), drawn)


def _interval(value, drawn) -> Estimate:
    return Estimate(*(float(f"{number:.4g}") for number in percentiles(value, np.array(drawn))))


def _centred(a):
    return a - a.mean(1, keepdims=True)


def _safe(sizes):
    return np.where(sizes > 0, sizes, 1)

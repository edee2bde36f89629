"""Ours, measured as the rivals are: the loss's sensitivity, and the attribution of one sample."""

from collections.abc import Callable

import jax
import numpy as np
from meter import Meter
from study import Case

import scoresens as ss
from scoresens.laws.scores import Score

Row = dict[str, object]
RUNS = 5  # after the first, the median of which is taken


def loss_sensitivity(case: Case, meter: Meter) -> Row:
    """The losses at all queries, to all N points, and at one query alone."""
    data, score = _asked(case)
    queries = case.queries
    levels, weights = queries.levels[0], queries.weights[0] * len(queries.levels[0])
    key = jax.random.key(case.seed + 1)

    def run(x):
        return ss.loss_sensitivity(
            ss.EDM(), score, data, x, levels=levels, weights=weights, key=key
        ).scores

    alone = _measured(run, queries.x[:1], meter, "one")
    return _measured(run, queries.x, meter, "query") | {"one query": alone["seconds a query"]}


def attribution(case: Case, meter: Meter) -> Row:
    """One functional of one sample, its likeness to the mean image, to all N points."""
    data, score = _asked(case)
    likeness = ss.functionals.inner_product(case.training.x.mean(0))

    def run(noise):
        return ss.attribute(ss.EDM(), score, data, likeness, noise).scores

    return _measured(run, case.noise[:1], meter, "query")


def _asked(case: Case) -> tuple[ss.Points, Score]:
    images = case.training.x
    data = ss.Points(images, bandwidth=ss.default_bandwidth(images))
    return data, ss.from_denoiser(ss.EDM(), case.model)


def _measured(run: Callable, x: np.ndarray, meter: Meter, name: str) -> Row:
    """The row of a function of queries `[Q, *shape]`: compiled, which is forgotten, and run."""
    meter.start_memory()
    with meter.timing(f"first {name}"):
        jax.block_until_ready(run(x))
    at_first = meter.beyond()
    meter.start_memory()
    for _ in range(RUNS):
        with meter.timing(name):
            jax.block_until_ready(run(x))
    compilation = meter.seconds(f"first {name}") - meter.seconds(name)
    return meter.row(len(x), name) | {
        "bytes": 0,
        "compilation": round(compilation, 2),
        "with compilation MB": at_first,
    }


METHODS = {"loss_sensitivity": loss_sensitivity, "attribute": attribution}

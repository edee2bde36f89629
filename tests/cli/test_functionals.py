"""The numbers of a sample that settings name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoresens.cli._functionals import FunctionalSettings, make_question
from scoresens.datasets.images import DataSettings, prepare
from scoresens.flow.solve import Solve
from scoresens.laws.measures import Points
from scoresens.laws.processes import EDM
from scoresens.laws.scores import exact_score


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "itself"}, lambda x, data: distance(x, data.images.mean(0))),
        ({"kind": "closeness", "image": 7}, lambda x, data: -distance(x, data.images[7])),
        ({"kind": "pixel", "pixel": (4, 3)}, lambda x, data: x[:, 4, 3, 0]),
        ({"kind": "class", "class_name": "3"}, lambda x, data: log_odds(x, data)[:, 3]),
        ({"kind": "class"}, lambda x, data: log_odds(x, data).max(1)),
        ({"kind": "components"}, lambda x, data: projected(x, data, 3)),
        ({"kind": "log_density"}, lambda x, data: normal(x)),
    ],
    ids=lambda part: part.get("kind") if isinstance(part, dict) else "",
)
def test_each_functional_is_the_number_it_says(settings, expected):
    data = prepare(DataSettings("digits", count=60))
    points = Points(jnp.asarray(data.images), bandwidth=1.0)
    process = EDM()
    score = exact_score(process, Points(jnp.zeros((1, 8, 8, 1)), bandwidth=1.0))
    asked = FunctionalSettings(**settings)
    question = make_question(asked, data, points, process, score, Solve(steps=40))
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1))
    found = np.asarray(jax.jit(jax.vmap(question.functional))(jnp.asarray(x)))
    signs = np.sign(found / expected(x, data)) if question.parts else 1  # a component's is free
    tolerance = 0.02 if settings["kind"] == "log_density" else 1e-4
    np.testing.assert_allclose(found, signs * expected(x, data), rtol=tolerance)
    assert len(question.parts) == (found.shape[1] if found.ndim == 2 else 0)


def normal(x):
    """The standard normal log-density, that of one data point with a bump of width 1 about it."""
    return -0.5 * distance(x, 0) ** 2 - x[0].size / 2 * np.log(2 * np.pi)


def distance(x, image):
    return np.linalg.norm((x - image).reshape(len(x), -1), axis=1)


def log_odds(x, data):
    means = np.stack([data.images[data.labels == label].mean(0) for label in range(10)])
    variance = np.mean((data.images - means[data.labels]) ** 2)
    logits = np.stack([-(distance(x, mean) ** 2) / (2 * variance) for mean in means], 1)
    others = np.where(np.eye(10, dtype=bool), -np.inf, logits[:, None])  # of class, other
    return logits - np.logaddexp.reduce(others, axis=2)


def projected(x, data, count):
    centred = (data.images - data.images.mean(0)).reshape(len(data.images), -1)
    _, _, basis = np.linalg.svd(centred.astype(float), full_matrices=False)
    return (x - data.images.mean(0)).reshape(len(x), -1) @ basis[:count].T

"""Gradients through training, against training with other weights of the images."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

from scoresens.models import ModelSettings, build
from scoresens.studies.retraining import Queries, loss_at
from scoresens.training.denoising import TrainSettings, begun, couple, train

PROGRAMS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not PROGRAMS.exists(), reason="a checkout without the benchmarks")

SETTINGS = TrainSettings(
    steps=11, batch_size=5, learning_rate=1e-2, warmup=3, ema_halflife=3.0, p_std=0.5
)
SHAPE, COUNT = (2, 1, 1), 6
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(COUNT, *SHAPE)))
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def magic():
    sys.path.append(str(PROGRAMS))
    yield pytest.importorskip("magic")
    sys.path.remove(str(PROGRAMS))


@pytest.fixture(scope="module")
def course(magic):
    return magic.Course(IMAGES, couple(COUNT), KEY, SETTINGS)


@pytest.fixture(scope="module")
def start():
    return build(ModelSettings(kind="mlp", width=4, depth=1), SHAPE, 1.0, key=jax.random.key(1))


def trained(magic, start, course, weights):
    """The averaged model, of trainings whose draws count as the weights say."""
    step, state = jax.jit(lambda s, w: magic.weighted_step(s, w, course)), begun(start, SETTINGS)
    for _ in range(SETTINGS.steps):
        state = step(state, weights)
    return state.ema


@pytest.mark.slow
def test_the_derivative_in_the_weights_is_that_of_trainings(magic, course, start):
    """Central differences of trainings with more and less weight on each image."""
    queries = Queries(IMAGES[:0], IMAGES[:3] + 0.5, jnp.array([0.3, 2.0]), jax.random.key(2))
    start = jax.tree.map(lambda leaf: leaf.astype(float), start)
    model, scores, _ = magic.gradients(start, course, queries, np.array([0, 2]))
    even, size = jnp.full(COUNT, 1 / COUNT), 1e-5

    def losses(weights):
        found = trained(magic, start, course, weights)
        return np.array([loss_at(found, queries, i) for i in (0, 2)])

    up, down = ([losses(even.at[k].add(s)) for k in range(COUNT)] for s in (size, -size))
    laws.close(scores, np.subtract(up, down).T / (2 * size), relative=1e-5)
    found = np.array([loss_at(model, queries, i) for i in (0, 2)])
    laws.close(found, losses(even), relative=1e-12)
    assert np.abs(scores).min() > 1e-4


@pytest.mark.slow
def test_at_even_weights_it_is_the_trainer(magic, course, start):
    ours = trained(magic, start, course, jnp.full(COUNT, 1 / COUNT))
    theirs = train(start, IMAGES, key=KEY, settings=SETTINGS, progress=False).model
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        laws.close(one, other, relative=1e-5)

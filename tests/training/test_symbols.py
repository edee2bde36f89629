"""Training of networks of symbols."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scoresens import discrete as dc
from scoresens.models import SymbolMLP
from scoresens.training import TrainSettings, train_symbols

PROCESS = dc.Masked(2)
DATA = np.array([[0, 0, 1], [1, 1, 0]])
KEY = jax.random.key(0)
SETTINGS = TrainSettings(steps=300, batch_size=64, learning_rate=3e-3, warmup=10, ema_halflife=20.0)


def fresh():
    return SymbolMLP(3, 2, 3, width=16, depth=1, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_a_network_learns_its_data_and_their_weights():
    """Hidden symbols follow from any that is seen, and else are as frequent as in the data."""
    network, losses = train_symbols(
        fresh(), PROCESS, DATA, key=KEY, settings=SETTINGS, weights=np.array([3.0, 1.0]),
        progress=False,
    )  # fmt: skip
    denoiser = dc.from_denoiser(PROCESS, network)
    known = np.exp(denoiser(0.5, jnp.array([0, 2, 2])))
    np.testing.assert_allclose(known[:, 0], [1, 1, 0], atol=0.05)
    nothing = np.exp(denoiser(0.99, jnp.array([2, 2, 2])))
    np.testing.assert_allclose(nothing[:, 0], [0.75, 0.75, 0.25], atol=0.1)
    entropy = -(
        0.75 * np.log(0.75) + 0.25 * np.log(0.25)
    )  # while all is hidden: a quarter of times
    assert losses[-1] == pytest.approx(entropy / 4, abs=0.02)


def test_before_training_all_symbols_are_equal():
    found = dc.from_denoiser(PROCESS, fresh())(0.5, jnp.array([2, 2, 0]))
    np.testing.assert_allclose(np.exp(found)[:2], 0.5, rtol=1e-6)


def test_sizes_of_a_network():
    with pytest.raises(ValueError, match="states at least alphabet"):
        SymbolMLP(3, 4, 3, rngs=nnx.Rngs(0))

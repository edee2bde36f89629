"""Laws 3, 6 and 8: what each data point does to a functional of a sample, and to the loss."""

import diffrax
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss

WALK = jax.random.key(3)
BLACK_BOX = {"base": None, "trace": ss.Exact(), "prior": laws.mixture()}


@pytest.mark.parametrize("name", laws.PROCESSES)
def test_duality_in_every_process(name):
    laws.check_duality_across_frames(laws.PROCESSES[name])


@pytest.mark.parametrize(
    "given",
    [
        {"base": laws.mixture(0.5)},
        BLACK_BOX,
        {"brownian": WALK},
        {**BLACK_BOX, "brownian": WALK},
        {**BLACK_BOX, "brownian": WALK, "trace": ss.Ito()},
        {"solve": ss.Solve(solver=diffrax.Tsit5(), steps=10, tau_min=laws.BOTTOM)},
    ],
    ids=["measure", "black box", "SDE", "SDE black box", "SDE by Ito", "Tsit5"],
)
def test_duality(given):
    laws.check_duality(ss.EDM(), **given)

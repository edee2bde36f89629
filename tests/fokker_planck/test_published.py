"""The literature's networks and rule: paths against a NumPy program of it, and, where a folder of
published networks is named, laws against the published histograms.

    SCORESENS_ODE_SDE_GAP=FOLDER python -m pytest tests/fokker_planck/test_published.py
"""

import itertools
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.flow.tabulated import Table
from scoresens.laws.scores import from_potential
from scoresens.models.potential import network_name, read_networks, read_potential
from scoresens.statistics.histograms import histogram, sampling_floor, wasserstein_of_histograms
from scoresens.studies.gap import (
    GRID,
    PROCESS,
    euler_times,
    measure,
    read_histograms,
    sample_network,
)

OURS = Path(__file__).parents[2] / "benchmarks/results/gap/ours/networks/circles2_w1.0.npz"
PUBLISHED = os.environ.get("SCORESENS_ODE_SDE_GAP")


def numpy_score(arrays, t, x):
    """Gradient in x of the network's output, layer by layer."""
    h, slopes = np.column_stack([np.full(len(x), t), x]), []
    for layer in ("input", "hidden1", "hidden2"):
        z = 100 * (h @ arrays[f"{layer}_w"].T + arrays[f"{layer}_b"])
        h = np.logaddexp(0, z) / 100
        slopes.append(1 / (1 + np.exp(-np.clip(z, -500, 500))))
    back = arrays["output_w"]
    for layer, slope in zip(("hidden2", "hidden1", "input"), reversed(slopes), strict=True):
        back = (back * slope) @ arrays[f"{layer}_w"]
    return back[:, 1:]


def numpy_flow(arrays, x):
    """Euler's rule on dx = -(x + s / 2) dt, backward from t = 10 on the literature's grid."""
    times = np.concatenate([10 - 0.0125 * np.arange(790), 0.125 - 0.00125 * np.arange(101)])
    for t, after in itertools.pairwise(times):
        x = x + (x + 0.5 * numpy_score(arrays, t, x)) * (t - after)
    return x


def test_paths_are_those_of_the_rule_in_numpy():
    arrays = {name: np.asarray(a, np.float64) for name, a in np.load(OURS).items()}
    noise = np.sqrt(0.5) * np.random.default_rng(0).normal(size=(128, 2))
    truth = numpy_flow(arrays, noise)
    assert histogram(truth, GRID).dropped < 8  # the others are compared
    inside = np.abs(truth).max(1) < GRID.half_width
    score, times = from_potential(read_potential(OURS)), jnp.asarray(euler_times())
    found = ss.sample_euler(
        PROCESS, score, jnp.asarray(noise), times, solve=ss.Solve(throw=False)
    ).x
    laws.close(np.asarray(found)[inside], truth[inside], absolute=1e-6)


@pytest.mark.skipif(PUBLISHED is None, reason="no folder of published networks is named")
def test_laws_are_the_published_ones():
    folder = Path(PUBLISHED or ".")
    histograms = read_histograms(folder / "histograms.npz")
    for name, potential in read_networks(folder).items():
        found = sample_network(potential, 20_000, seed=1, table=Table(bins=160))
        row: dict[str, Any] = measure(name, network_name(name)[0], found, histograms, seed=0)
        published = row["published"]
        print(name, published)
        assert max(published["ratio_ode"], published["ratio_sde"]) < 1.5
        floor = sampling_floor(histograms[f"sde_{name}"], 20_000, GRID).mean
        between = wasserstein_of_histograms(
            histograms[f"sde_{name}"], histograms[f"ode_{name}"], GRID
        )
        assert abs(row["w2_sde_ode"] - between) < 2 * floor

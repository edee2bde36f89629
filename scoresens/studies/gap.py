"""The ODE-SDE gap of planar potential networks, measured as the literature measures it.

For each network: samples of both induced laws by the literature's Euler rule, as histograms; the
flow's law by a converged rule; exact W_2 between them, the truth and published histograms; and the
mean square of the residual (7.1), over the box and by time.

What sampling finds lands on disk at once, a file a network, and a study that is begun again reads
it there.

References: Deveney et al. 2023, arXiv 2311.15996 (process, rule, box and histograms).
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scoresens._pytrees import fingerprint
from scoresens._reading import read_arrays
from scoresens.flow.solve import Solve
from scoresens.flow.tabulated import Table, sample_both, sample_flow
from scoresens.fokker_planck.collocation import in_box
from scoresens.fokker_planck.induced import rising_times
from scoresens.fokker_planck.residuals import fokker_planck_residual
from scoresens.laws import planar
from scoresens.laws.processes import OU
from scoresens.laws.scores import Potential, from_potential
from scoresens.statistics import estimates
from scoresens.statistics.histograms import (
    Grid,
    histogram,
    sampling_floor,
    wasserstein_interval,
    wasserstein_of_histograms,
)
from scoresens.studies.store import Store, arrays

PROCESS = OU(theta=1.0, g=1.0, t_max=10.0)
GRID = Grid(half_width=3.5, bins=64)
T_MIN = 1e-5  # of residuals
POINTS = 200_000  # where residuals are taken
EDGES = np.geomspace(1e-3, 10.0, 25)  # of times, for the residual's profile
FLOW = Solve(steps=100, rho=10.0)  # converged: a thousandth in x on smooth networks
BATCH = 2_000_000  # samples at a time, which share their tables
TRUTH = 1_000_000  # samples of a known law


class Sampled(NamedTuple):
    """What sampling found of one network."""

    ode: Int[np.ndarray, "bins bins"]  # Euler's rule
    sde: Int[np.ndarray, "bins bins"]
    flow: Int[np.ndarray, "bins bins"]  # converged
    dropped: Int[np.ndarray, "3"]  # samples outside of the grid, in the order above
    residual: Float[np.ndarray, "3"]  # E[R^2] over the box: value, low, high
    profile: Float[np.ndarray, "times 3"]  # the same between the EDGES of time


def euler_times() -> Float[np.ndarray, "nodes"]:
    """The literature's grid: 790 steps of 0.0125 from t = 10, then 100 of 0.00125."""
    return np.append(np.linspace(10, 0.125, 791), np.linspace(0.125, 0, 101)[1:])


def sample_network(
    potential: Potential, samples: int, *, seed: int, table: Table = Table()
) -> Sampled:
    """Histograms of both induced laws and norms of the residual, of one network.

    Args:
        potential: `potential(t, x)` for x `[2]`, of the process `PROCESS`.
        samples: of each law.
        seed: of noise, Brownian paths and residual points.
        table: where the score is looked up.

    Raises:
        ValueError: a potential that does not fit.
        FloatingPointError: no sample within the grid.

    Notes:
        890 tables and as many look-ups a sample for each law, and 200 tables for the flow: on two
        cores some minutes for a million samples.
    """
    score, key = from_potential(potential), jax.random.key(seed)
    found, dropped = np.zeros((3, GRID.bins, GRID.bins), np.int64), np.zeros(3, np.int64)
    times, flow_times = jnp.asarray(euler_times()), rising_times(PROCESS, FLOW)[::-1]
    for batch, start in enumerate(range(0, samples, BATCH)):
        own = jax.random.fold_in(key, batch)
        noise = PROCESS.sample_prior((min(BATCH, samples - start), 2), key=own)
        path_key = jax.random.fold_in(own, 1)
        both = sample_both(PROCESS, score, noise, times, key=path_key, table=table)
        flow = sample_flow(PROCESS, score, noise, flow_times, table=table)
        for i, x in enumerate((*both, flow)):
            counted = histogram(np.asarray(x), GRID)
            found[i] += counted.counts
            dropped[i] += counted.dropped
    if not found.sum((1, 2)).all():
        raise FloatingPointError(
            f"none of {samples} samples came within the grid: the network drives them away from it"
        )
    residual, profile = _residuals(potential, jax.random.fold_in(key, 2**31))
    ode, sde, flow = found
    return Sampled(ode, sde, flow, dropped, residual, profile)


def sampled(
    file: Path, potential: Potential, samples: int, *, seed: int, table: Table = Table()
) -> Sampled:
    """What `sample_network` finds, kept in an npz file for the same network, samples, seed and
    table."""

    def make():
        return sample_network(potential, samples, seed=seed, table=table)._asdict()

    of = fingerprint((potential, samples, seed, table.half_width, table.bins))
    store = Store(file.parent, arrays(*Sampled._fields, of=of))
    return Sampled(**store.result(file.stem, make))


def truth_of(data: str, histograms: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The histogram of the law that the data come from: published, or drawn if we know the law;
    else None."""
    if f"truth_{data}" in histograms:
        return np.asarray(histograms[f"truth_{data}"], np.int64)
    if data not in planar.LAWS:
        return None
    x = planar.sample_law(data, TRUTH, key=jax.random.key(0))
    return histogram(np.asarray(x), GRID, clip=True).counts


def measure(
    name: str, data: str, found: Sampled, histograms: Mapping[str, np.ndarray], *, seed: int
) -> dict[str, object]:
    """The numbers of one network, as result.json holds them; distances are W_2, not squared.

    Args:
        name: of the network; published histograms are `ode_<name>`, `sde_<name>`.
        data: of the law it was trained on.
        found: what sampling found.
        histograms: published histograms on `GRID`, if any.
        seed: of resamples.
    """
    between = wasserstein_interval(found.sde, found.ode, GRID, seed=seed)
    row: dict[str, object] = {
        "samples": int(found.ode.sum() + found.dropped[0]),
        "w2_sde_ode": between.value,
        "w2_sde_ode_interval": [between.low, between.high],
        "residual_box_mean": float(found.residual[0]),
        "residual_box_mean_interval": found.residual[1:].tolist(),
        "w2_sde_flow": wasserstein_of_histograms(found.sde, found.flow, GRID),
        "dropped": dict(zip(("ode", "sde", "flow"), found.dropped.tolist(), strict=True)),
        "residual_by_time": {"edges": EDGES.tolist(), "mean": found.profile.tolist()},
    }
    truth = truth_of(data, histograms)
    if truth is not None:
        row |= {
            f"w2_{law}_truth": wasserstein_of_histograms(counts, truth, GRID)
            for law, counts in (("ode", found.ode), ("sde", found.sde), ("flow", found.flow))
        }
    published = {law: histograms.get(f"{law}_{name}") for law in ("ode", "sde")}
    theirs = {law: np.asarray(h, np.int64) for law, h in published.items() if h is not None}
    if theirs:
        row["published"] = _beside(found, theirs, seed)
    return row


def read_histograms(file: Path) -> dict[str, np.ndarray]:
    """Published histograms, all on `GRID`; none where there is no such file.

    Raises:
        ValueError: a damaged file, or histograms of another grid.
    """
    if not file.is_file():
        return {}
    arrays = read_arrays(file)
    axis = arrays.pop("grid_axis", GRID.axis)
    if axis.ndim != 1 or not axis.size or axis.dtype.kind not in "fiu":
        raise ValueError(
            f"{file}: grid_axis must be numbers [{GRID.bins}], got {axis.dtype} of shape "
            f"{axis.shape}"
        )
    if axis.shape != GRID.axis.shape or not np.allclose(axis, GRID.axis, atol=1e-6):
        raise ValueError(
            f"{file}: its grid has {len(axis)} points from {axis[0]:g} to {axis[-1]:g}, where "
            f"{GRID.bins} from {-GRID.half_width:g} to {GRID.half_width:g} belong: count the "
            "samples again on that grid"
        )
    for name, counts in arrays.items():
        whole = counts.dtype.kind in "iu"
        if counts.shape != (GRID.bins, GRID.bins) or not whole or counts.min() < 0:
            raise ValueError(
                f"{file}: {name} must be counts of shape {(GRID.bins, GRID.bins)}, got "
                f"{counts.dtype} of shape {counts.shape}"
            )
    return arrays


def _beside(found, theirs, seed):
    """Our histograms beside published ones: their distance, and that of two draws of one law."""
    row = {}
    for law, counts in theirs.items():
        ours = getattr(found, law)
        floor = sampling_floor(counts, int(ours.sum()), GRID, seed=seed)
        apart = wasserstein_of_histograms(ours, counts, GRID)
        row |= {f"w2_{law}": apart, f"floor_{law}": floor.mean, f"ratio_{law}": apart / floor.mean}
    if "ode" in theirs:
        row["w2_ode_flow"] = wasserstein_of_histograms(theirs["ode"], found.flow, GRID)
    if len(theirs) == 2:
        row["w2_sde_ode"] = wasserstein_of_histograms(theirs["sde"], theirs["ode"], GRID)
    return row


def _residuals(potential, key):
    """E[R^2] over the box, and by time, each with its interval."""
    whole, sliced = jax.random.split(key)
    t, x = in_box(POINTS, 2, half_width=GRID.half_width, times=(T_MIN, PROCESS.t_max), key=whole)
    squares = jnp.square(fokker_planck_residual(PROCESS, potential, t, x))
    rows = []
    for i, span in enumerate(pairwise(EDGES)):
        key = jax.random.fold_in(sliced, i)
        t, x = in_box(POINTS // 20, 2, half_width=GRID.half_width, times=span, key=key)
        here = jnp.square(fokker_planck_residual(PROCESS, potential, t, x))
        rows.append(np.array(estimates.mean(here)))
    return np.array(estimates.mean(squares)), np.array(rows)

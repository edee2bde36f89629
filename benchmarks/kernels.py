"""Which kernel of the data predicts what fine-tuning a U-Net does: the one that `calibrate` finds?

The truth is kept in `results/validation`: three U-Nets (`fashion28.safetensors` and
`fashion28-wide.safetensors`, Fashion-MNIST at 28 x 28, made by `configs/fashion28.toml`, and
`fashion28-wide.toml`, by training on more noise; `emoji.safetensors`, emoji in colour at 32 x 32,
made by `configs/emoji.toml`), and samples of them after pairs of fine-tunings (`*-truth.npz`:
`control` and one array a change, `[R, M, *shape]`, of `configs/*-finetune-*.toml`). A row predicts
one change with one kernel, by `counterfactual` with base=data and 20 steps, and compares by
`finetuning.compare`: median cosine, pooled Pearson, relative L2, each with its 95 % interval over
samples. What a prediction can have at best, `reach`, hangs on how well the pairs agree. `as learnt`
is filtered for the length of the fine-tuning (6.11, 6.12). Bandwidth and width are in units of
`default_bandwidth`. The emoji are read from `runs/emoji-images` (`benchmarks/emoji.py`).
"""

import functools
import os
from pathlib import Path

import numpy as np
from rows import RESULTS, measure, options, read, table

import scoresens as ss
from scoresens.cli import _common, _config
from scoresens.cli._common import Setup, bumps_on, change_data, set_up
from scoresens.cli._progress import Stages
from scoresens.cli._settings import BumpSettings
from scoresens.cli.finetune import FinetuneRun
from scoresens.studies import finetuning

ROOT = Path(__file__).parent.parent
TRUTH = RESULTS / "validation"
CHANGES = ("images", "half", "remove", "add", "ten", "shift", "image")
NETWORKS = ("fashion28", "fashion28-wide", "emoji")
KERNELS: dict[str, dict[str, float] | None] = {
    "as sharp as Bayes": {"bandwidth": 1},
    "calibrated": None,
    "calibrated, as learnt": None,
    "h 1, T 4": {"bandwidth": 1, "temperature": 4},
    "h 0.6, w 1, c 0.02": {"bandwidth": 0.6, "width": 1, "resolution": 0.02},
    "h 0.6, w 1, c 0.2": {"bandwidth": 0.6, "width": 1, "resolution": 0.2},
    "h 0.4, w 0.6, c 0.02": {"bandwidth": 0.4, "width": 0.6, "resolution": 0.02},
    "h 0.4, w 0.6, c 0.2": {"bandwidth": 0.4, "width": 0.6, "resolution": 0.2},
    "h 0.4, w 0.6, c 0.6": {"bandwidth": 0.4, "width": 0.6, "resolution": 0.6},
}
LEARNT = "calibrated, as learnt"
MEASURES = {"median_cosine": "cosine", "pooled_pearson": "Pearson", "relative_l2": "relative L2"}


@functools.cache
def truth(network: str, name: str) -> finetuning.RealChange:
    """The samples after the fine-tunings of a change."""
    arrays = np.load(TRUTH / f"{network}-truth.npz")
    control, changed = (np.asarray(arrays[each], np.float32) for each in ("control", name))
    return finetuning.RealChange(control[: len(changed)], changed)


@functools.cache
def started(network: str, name: str) -> tuple[Setup, FinetuneRun]:
    """The network, its data and its noise, as the fine-tunings of a change had them."""
    where = str(ROOT / f"configs/{network}-finetune-{name}.toml")
    run = _config.read(where, FinetuneRun)
    given = str(TRUTH / f"{network}.safetensors"), where, Stages()
    setup = set_up(run.data, *given, count=run.count, seed=run.seed)
    kept = len(truth(network, name).control[0])
    return setup._replace(noise=setup.noise[:kept]), run


@functools.cache
def calibrated(network: str) -> ss.Points:
    """The data with the kernel that the network is nearest to; a change does not matter."""
    setup, _ = started(network, "images")
    return _common.calibrated(setup.dataset.images, setup.model)


def of_kernel(network: str, images: np.ndarray, kernel: dict[str, float] | None) -> ss.Points:
    """The data with a kernel."""
    if kernel is None:
        return calibrated(network)
    usual = ss.default_bandwidth(images)
    lengths = {k: usual * v for k, v in kernel.items() if k in ("bandwidth", "width")}
    return bumps_on(images, BumpSettings(**{**kernel, **lengths}))


def predicted(network: str, name: str, kernel: str) -> dict:
    """How well one kernel predicts one change."""
    setup, run = started(network, name)
    data = of_kernel(network, setup.dataset.images, KERNELS[kernel])
    if kernel == LEARNT:
        bias = finetuning.spectral_bias(run.finetune, run.finetune.steps)
        data = data.with_spectral_bias(bias)
    setup = setup._replace(data=data)
    change = change_data(setup, run.change, name).change
    solve = ss.Solve(steps=20)
    before = ss.sample_ode(setup.process, setup.score, setup.noise, solve=solve).x
    asked = setup.process, setup.score, change.perturbation, setup.noise
    after = ss.counterfactual(*asked, mass=run.change.mass, base=data, solve=solve).x[:, 0]
    real = truth(network, name)
    found = finetuning.compare(np.asarray(after - before), real.displacement)
    row = {key: [round(v, 3) for v in found[key]] for key in MEASURES}
    reach = round(real.reach, 3) if np.isfinite(real.reach) else None  # pairs that do not agree
    usual = ss.default_bandwidth(setup.dataset.images)
    lengths = {"bandwidth": data.bandwidth, "width": data.kernel.width}
    row |= {k: None if v is None else round(float(v) / usual, 3) for k, v in lengths.items()}
    row["resolution"] = round(float(data.kernel.resolution), 4)
    return row | {"reach": reach, "pairs": len(real.control), "samples": len(before)}


def rows() -> dict:
    kept = {network: np.load(TRUTH / f"{network}-truth.npz").files for network in NETWORKS}
    return {
        f"{network}, {name}, {kernel}": functools.partial(predicted, network, name, kernel)
        for network in NETWORKS
        for name in CHANGES
        if name in kept[network]
        for kernel in KERNELS
    }


def markdown() -> str:
    lines = []
    for name, row in read("kernels").items():
        cells = [f"{row[k][0]:.2f} [{row[k][1]:.2f}, {row[k][2]:.2f}]" for k in MEASURES]
        reach = "–" if row["reach"] is None else f"{row['reach']:.2f} ({row['pairs']})"
        lines.append([*name.split(", ", 2), *cells, reach])
    return table(["network", "change", "kernel", *MEASURES.values(), "reach (pairs)"], lines)


if __name__ == "__main__":
    given = options(__doc__).parse_args()
    if not given.table:
        os.chdir(ROOT)
        measure("kernels", rows(), given.only, given.fresh)
    print(markdown())

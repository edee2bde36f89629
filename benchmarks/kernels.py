"""Which kernel of the data predicts what fine-tuning a U-Net does: `temperature` and `resolution`.

The truth is kept in `results/validation`: a U-Net of Fashion-MNIST at 28 x 28
(`fashion28.safetensors`, made by `configs/fashion28.toml`), and samples of it after pairs of
fine-tunings (`fashion28-truth.npz`: `control` and one array a change, `[R, M, 28, 28, 1]`, of the
`configs/fashion28-finetune-*.toml`). A row predicts one change with one kernel, by `counterfactual`
with base=data, 20 steps, the bandwidth in units of `default_bandwidth`, and compares by
`finetuning.compare`: median cosine, pooled Pearson, relative L2, each with its 95 % interval over
samples. What a prediction can have at best, `reach`, hangs on how well the pairs agree.
"""

import functools
from pathlib import Path

import numpy as np
from rows import RESULTS, measure, options, read, table

import scoresens as ss
from scoresens.cli import _config
from scoresens.cli._common import bumps_on, change_data, set_up
from scoresens.cli._progress import Stages
from scoresens.cli._settings import BumpSettings
from scoresens.cli.finetune import FinetuneRun
from scoresens.studies import finetuning

TRUTH = RESULTS / "validation"
CONFIGS = Path(__file__).parent.parent / "configs"
CHANGES = ("images", "half", "remove", "add")
KERNELS = [  # bandwidth, temperature, resolution
    (1, 1, 0), (1, 2, 0), (1, 4, 0),
    (1, 1, 0.1), (1, 1, 0.3), (1, 1, 1), (0.7, 1, 0.3), (0.5, 1, 0.3),
]  # fmt: skip
MEASURES = {"median_cosine": "cosine", "pooled_pearson": "Pearson", "relative_l2": "relative L2"}


@functools.cache
def truth(name: str) -> finetuning.RealChange:
    """The samples after the fine-tunings of a change."""
    arrays = np.load(TRUTH / "fashion28-truth.npz")
    control, changed = (np.asarray(arrays[each], np.float32) for each in ("control", name))
    return finetuning.RealChange(control[: len(changed)], changed)


def predicted(name: str, bandwidth: float, temperature: float, resolution: float) -> dict:
    """How well one kernel predicts one change."""
    where = str(CONFIGS / f"fashion28-finetune-{name}.toml")
    run = _config.read(where, FinetuneRun)
    setup = set_up(
        run.data,
        str(TRUTH / "fashion28.safetensors"),
        where,
        Stages(),
        count=run.count,
        seed=run.seed,
    )
    h = bandwidth * ss.default_bandwidth(setup.dataset.images)
    bumps = BumpSettings(bandwidth=h, temperature=temperature, resolution=resolution)
    setup = setup._replace(data=bumps_on(setup.dataset.images, bumps))
    change = change_data(setup, run.change, where).change
    options = {"base": setup.data, "solve": ss.Solve(steps=20)}
    paths = setup.model.process, setup.model.score, change.perturbation, setup.noise
    before = ss.sample_ode(*paths[:2], setup.noise, solve=options["solve"]).x
    after = ss.counterfactual(*paths, mass=run.change.mass, **options).x[:, 0]
    real = truth(name)
    found = finetuning.compare(np.asarray(after - before), real.displacement)
    row = {key: [round(v, 3) for v in found[key]] for key in MEASURES}
    reach = round(real.reach, 3) if np.isfinite(real.reach) else None  # pairs that do not agree
    return row | {"reach": reach, "pairs": len(real.control)}


def rows() -> dict:
    arrays = np.load(TRUTH / "fashion28-truth.npz").files
    return {
        f"{name}, h {h}, T {t}, c {c}": functools.partial(predicted, name, h, t, c)
        for name in CHANGES
        if name in arrays
        for h, t, c in KERNELS
    }


def markdown() -> str:
    lines = []
    for name, row in read("kernels").items():
        cells = [f"{row[k][0]:.2f} [{row[k][1]:.2f}, {row[k][2]:.2f}]" for k in MEASURES]
        lines.append(
            [*name.split(", ", 1), *cells, "–" if row["reach"] is None else f"{row['reach']:.2f}"]
        )
    return table(["change", "kernel", *MEASURES.values(), "reach"], lines)


if __name__ == "__main__":
    given = options(__doc__).parse_args()
    if not given.table:
        measure("kernels", rows(), given.only, given.fresh)
    print(markdown())

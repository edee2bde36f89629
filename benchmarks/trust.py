"""When to trust a prediction: the quantile in `scoresens.studies.trust`, and what it holds for.

A change is a group: its samples, each with its signal |predicted| / m and the cosine of its
predicted with its real displacement, the mean of pairs of fine-tunings. The groups are

- nine changes of `configs/digits-finetune*.toml` (384 samples, 4 pairs, read from `runs/<config>`,
  where `scoresens validate --out` puts them) and more of the same checkpoint (`MORE`: 96 samples,
  one pair, in `runs/trust`); what is missing there is fine-tuned, minutes each;
- the changes of two U-Nets that `kernels.py` keeps, where the pairs agree (`RealChange.reach`).

All predictions are with the kernel of `calibrate`. `results/validation/trust.npz` keeps of each
group an array `[M, 2]`, signal and cosine. From it alone `--table` prints the quantile, and what
was true of each change when it, or all changes of its network, had been left out.
"""

import functools
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import kernels
import numpy as np
from rows import RESULTS, options, table

import scoresens as ss
from scoresens._files import replacing
from scoresens.cli import _config
from scoresens.cli._common import Setup, change_data, set_up
from scoresens.cli._progress import Stages
from scoresens.cli._settings import BumpSettings
from scoresens.cli.finetune import FinetuneRun
from scoresens.statistics.displacements import cosines, norms
from scoresens.studies import finetuning, trust
from scoresens.studies.changes import ChangeSettings

KEPT = RESULTS / "validation" / "trust.npz"
Group = np.ndarray  # [M, 2], signal and cosine

CONFIGS = ("add3", "add1", "add7", "half", "image", "remove06", "remove1", "shift4", "ten")
MORE = {
    "add-0": ChangeSettings("add", ("0",), mass=0.1),
    "add-6": ChangeSettings("add", ("6",), mass=0.5),
    "add-8": ChangeSettings("add", ("8",), mass=0.02),
    "add-59": ChangeSettings("add", ("5", "9"), mass=0.3),
    "remove-4": ChangeSettings("remove", ("4",)),
    "remove-8": ChangeSettings("remove", ("8",)),
    "remove-9": ChangeSettings("remove", ("9",)),
    "remove-235": ChangeSettings("remove", ("2", "3", "5")),
    "without-300": ChangeSettings("remove", random=300, seed=2),
    "without-1200": ChangeSettings("remove", random=1200, seed=4),
    "half-7": ChangeSettings("half", seed=7),
    "half-9": ChangeSettings("half", seed=9, mass=0.5),
    "images-3": ChangeSettings(random=3, mass=0.1, seed=9),
    "images-30": ChangeSettings(random=30, mass=0.2, seed=1),
    "images-100": ChangeSettings(random=100, mass=0.2, seed=5),
    "images-200": ChangeSettings(random=200, mass=0.4, seed=6),
    "image-500": ChangeSettings(images=(500,), mass=0.05),
    "image-1200": ChangeSettings(images=(1200,), mass=0.2),
    "shift-7": ChangeSettings("shift", ("7",)),
    "shift-05": ChangeSettings("shift", ("0", "5")),
}
SAMPLES = 96
EDGES = (0, 0.03, 0.1, 0.3, 1, 100)  # of groups of samples, by their signal


@functools.cache
def digits() -> tuple[Setup, FinetuneRun]:
    """The shipped network and its data, with the kernel that it is nearest to."""
    where = str(kernels.ROOT / "configs/digits-finetune.toml")
    run = _config.read(where, FinetuneRun)
    options = {"count": run.count, "seed": run.seed, "bumps": BumpSettings()}
    return set_up(run.data, run.checkpoint, where, Stages(), **options), run


def of_config(name: str) -> Group:
    """A change of the digits that has a config of its own."""
    setup, _ = digits()
    config = "digits-finetune" if name == "add3" else f"digits-finetune-{name}"
    run = _config.read(str(kernels.ROOT / f"configs/{config}.toml"), FinetuneRun)
    return tuned(setup, run, Path("runs") / config)


def of_more(name: str) -> Group:
    """Another change of the digits."""
    setup, run = digits()
    run = replace(run, change=MORE[name], repeats=1, after=())
    return tuned(setup._replace(noise=setup.noise[:SAMPLES]), run, Path("runs/trust") / name)


def tuned(setup: Setup, run: FinetuneRun, folder: Path) -> Group:
    """A change of the digits, beside its fine-tunings in a folder."""
    change, key = change_data(setup, run.change, str(folder)).change, jax.random.key(run.seed)
    how = finetuning.Finetuning(
        folder / "models", run.finetune, jax.random.fold_in(key, 1), run.repeats, run.after
    )
    real = finetuning.real_changes(setup.model, setup.data, change, setup.noise, how)
    return judged(setup, run.change, real[run.finetune.steps], ss.Solve(steps=run.steps))


def of_network(network: str, name: str) -> Group:
    """A kept change of a U-Net."""
    setup, run = kernels.started(network, name)
    setup = setup._replace(data=kernels.calibrated(network))
    return judged(setup, run.change, kernels.truth(network, name), ss.Solve(steps=20))


def judged(
    setup: Setup, settings: ChangeSettings, real: finetuning.RealChange, solve: ss.Solve
) -> Group:
    """Signal and cosine of each sample."""
    asked, change = (setup.process, setup.score), change_data(setup, settings, "").change
    before = ss.sample_ode(*asked, setup.noise, solve=solve).x
    after = ss.counterfactual(
        *asked, change.perturbation, setup.noise, mass=settings.mass, base=setup.data, solve=solve
    ).x[:, 0]
    predicted = np.asarray(after - before)
    apart = trust.mismatch(*asked, setup.data, before[:SAMPLES], key=jax.random.key(0))
    found = norms(predicted) / apart, cosines(predicted, real.displacement)
    return np.stack(found, 1).astype(np.float32)


def groups() -> dict[str, Callable[[], Group]]:
    """What makes each group, by network and change."""
    makers = {f"digits-{name}": functools.partial(of_config, name) for name in CONFIGS}
    makers |= {f"digits-{name}": functools.partial(of_more, name) for name in MORE}
    return makers | {
        f"{network}-{name}": functools.partial(of_network, network, name)
        for network in kernels.NETWORKS
        for name in np.load(kernels.TRUTH / f"{network}-truth.npz").files
        if name != "control" and np.isfinite(kernels.truth(network, name).reach)
    }


def kept() -> dict[str, Group]:
    """The groups made so far."""
    return dict(np.load(KEPT)) if KEPT.exists() else {}


def make(only: str, fresh: bool) -> None:
    """Make the groups that the file lacks."""
    for name, group in groups().items():
        if only in name and (fresh or name not in kept()):
            found = kept() | {name: group()}
            with replacing(KEPT) as beside, beside.open("wb") as file:
                np.savez_compressed(file, **found)
            print(f"{name}: {len(found[name])} samples", flush=True)


def left_out(found: dict[str, Group], name: str, key: Callable[[str], str]) -> np.ndarray:
    """The bounds of a change, from the changes that are not of its key."""
    rest = [group for other, group in found.items() if key(other) != key(name)]
    return trust.cosine_bound(found[name][:, 0], trust.quantile(rest))


def network(name: str) -> str:
    """Of a change."""
    return name.split("-")[0]


def by_change(found: dict[str, Group]) -> str:
    """What was true of each change when it, or its network, was left out."""
    lines = []
    for name, (_, cosine) in ((name, group.T) for name, group in found.items()):
        change, others = (left_out(found, name, key) for key in (str, network))
        spread = ", ".join(f"{value:.2f}" for value in np.percentile(change, (10, 50, 90)))
        true = [f"{np.mean(cosine >= bound):.0%}" for bound in (change, others)]
        known = others.max() > -1  # too few changes of other networks say nothing
        cells = [true[0], spread, true[1] if known else "–"]
        lines.append([name, str(len(cosine)), f"{np.median(cosine):.2f}", *cells])
    head = ["change", "samples", "median cosine", "bound true", "bound, 10, 50, 90 %"]
    return table([*head, "true, network left out"], lines)


def by_signal(found: dict[str, Group]) -> str:
    """The same by the signal of a sample, each change that has such samples counting alike."""
    lines = []
    for low, high in itertools.pairwise(EDGES):
        true, bounds, count = [], [], 0
        for name, (signal, cosine) in ((name, group.T) for name, group in found.items()):
            inside = (signal >= low) & (signal < high)
            if inside.any():
                bound = left_out(found, name, str)[inside]
                true.append(np.mean(cosine[inside] >= bound))
                bounds.append(np.mean(bound))
                count += int(inside.sum())
        cells = [str(count), str(len(true)), f"{np.mean(true):.0%}", f"{np.mean(bounds):.2f}"]
        lines.append([f"{low:g} to {high:g}", *cells])
    return table(["signal", "samples", "changes", "bound true", "mean bound"], lines)


def summary(found: dict[str, Group]) -> str:
    """What was true of all changes left out, and of those of each network."""
    lines = []
    for name in ("", *dict.fromkeys(map(network, found))):
        members = {key: left_out(found, key, str) for key in found if key.startswith(name)}
        true = [np.mean(found[key][:, 1] >= bound) for key, bound in members.items()]
        bounds = [np.mean(bound) for bound in members.values()]
        half = [np.mean(bound > 0.5) for bound in members.values()]
        cells = [f"{np.mean(true):.0%}", f"{min(true):.0%}", f"{np.mean(bounds):.2f}"]
        lines.append([name or "all", str(len(true)), *cells, f"{np.mean(half):.0%}"])
    head = ["network", "changes", "bound true", "least true", "mean bound", "bound above 0.5"]
    return table(head, lines)


if __name__ == "__main__":
    given = options(__doc__).parse_args()
    if not given.table:
        os.chdir(kernels.ROOT)
        make(given.only, given.fresh)
    print(f"q = {trust.quantile(kept().values()):.4g} of {len(kept())} changes\n")
    print(summary(kept()), by_signal(kept()), by_change(kept()), sep="\n\n")

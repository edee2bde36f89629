"""`scoresens gap`: how far the laws of a network's two samplers are apart, beside its residual."""

import json
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import nnx

from scoresens._files import write_text
from scoresens._reading import read_json
from scoresens.cli._command import Command, add_optional_config
from scoresens.cli._common import picture, write
from scoresens.cli._config import ConfigError, read
from scoresens.cli._progress import Stages, blaming
from scoresens.cli._settings import at_least
from scoresens.flow.tabulated import Table
from scoresens.laws import planar
from scoresens.models.potential import (
    PotentialMLP,
    network_name,
    read_networks,
    read_potential,
    write_potential,
)
from scoresens.report.gap import Studied, draw_laws, draw_residuals, families, gap_table
from scoresens.studies.gap import PROCESS, Sampled, measure, read_histograms, sampled, truth_of
from scoresens.studies.store import Form, Store
from scoresens.training.residual import RegularizedSettings, train_regularized

Law = Literal["blob", "circles2", "checker"]
Potentials = Mapping[str, PotentialMLP]


@dataclass(frozen=True, kw_only=True)
class GapRun:
    """Settings of `scoresens gap`, explained in its help."""

    networks: Path | None = None
    laws: tuple[Law, ...] = ()
    weights: tuple[float, ...] = (0.0, 0.1, 1.0, 10.0)
    train: RegularizedSettings = field(default_factory=RegularizedSettings)
    samples: int = 100_000
    seed: int = 0
    bins: int = 320

    def __post_init__(self):
        if (self.networks is None) != bool(self.laws):
            raise ValueError(
                "name either laws to train networks on, such as laws = ['blob'], or networks, a "
                "folder that holds some"
            )
        at_least(1, samples=self.samples)
        at_least(4, bins=self.bins)
        for name, values in (("laws", self.laws), ("weights", self.weights)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must differ, got {list(values)}")
        if not self.weights or not all(0 <= weight < math.inf for weight in self.weights):
            raise ValueError(f"weights must be 0 or greater, got {list(self.weights)}")
        if self.train.residual_weight != RegularizedSettings().residual_weight:
            raise ValueError("train.residual_weight comes from weights: leave it out")


class Network(NamedTuple):
    """A trained network, and its last losses."""

    potential: PotentialMLP
    losses: dict[str, float]


def run_gap(run: GapRun, out: Path, where: str) -> str:
    """Write how far both induced laws of each network are apart; the table of the run."""
    stages = Stages()
    if run.networks is None:
        trained, histograms = train_networks(run, out / "networks", stages), {}
        potentials = {name: network.potential for name, network in trained.items()}
    else:
        reading = stages("networks", f"reading the networks in {run.networks}")
        with reading, blaming(f"{where}: networks"):
            trained, (potentials, histograms) = {}, read_folder(run.networks)
    found = {}
    for place, (name, potential) in enumerate(potentials.items(), 1):
        what = f"{name}, {place} of {len(potentials)}: {run.samples} samples of each law"
        with stages(f"sample {name}", what):
            found[name] = _sampled(out / "samples" / f"{name}.npz", name, potential, run)
    studied = []
    for place, name in enumerate(found, 1):
        with stages(f"measure {name}", f"{name}, {place} of {len(found)}: distances"):
            studied.append(_study(name, found[name], histograms, run.seed))
    rows = {network.name: dict(network.row) for network in studied}
    for name, network in trained.items():
        rows[name]["training"] = network.losses
    write(out, {"networks": rows}, run, stages)
    with stages("pictures", "drawing"):
        for family, members in families(studied).items():
            picture(draw_laws, out / f"laws-{family}.png", family, members)
        picture(draw_residuals, out / "residual.png", studied)
    return f"W₂ between laws, in units of x\n\n{gap_table(studied)}"


def read_folder(folder: Path) -> tuple[Potentials, Mapping[str, np.ndarray]]:
    """The networks of a folder by the stems of their files, and the histograms published with them.

    Raises:
        ValueError: a damaged file, a network that is not of the plane, histograms of another grid.
        FileNotFoundError: no folder, or no network in it.
    """
    potentials = read_networks(folder)
    for name, potential in potentials.items():
        if potential.shape != (2,):
            raise ValueError(
                f"{folder / name}.npz takes samples of {potential.shape[0]} entries: histograms "
                "are of the plane, so only networks of 2 entries can be compared"
            )
    return potentials, read_histograms(folder / "histograms.npz")


def train_networks(run: GapRun, folder: Path, stages: Stages) -> dict[str, Network]:
    """A network a law and weight, trained or, where a file was written with the same settings,
    read from the folder."""
    wanted = {
        f"{law}_w{weight}": (law, replace(run.train, residual_weight=weight))
        for law in run.laws
        for weight in run.weights
    }
    networks = {}
    for place, (name, (law, settings)) in enumerate(wanted.items(), 1):
        about = {"law": law, "seed": run.seed, "train": asdict(settings)}
        store, what = Store(folder, network_of(about)), f"{name}, {place} of {len(wanted)}"
        found = store.find(name)
        if found is not None:
            with stages(f"train {name}", f"{what}: trained before"):
                networks[name] = found
            continue
        with stages(f"train {name}", f"{what}: training", bars=True):
            networks[name] = store.result(name, partial(_train, law, settings, run.seed))
    return networks


def network_of(about: dict[str, Any]) -> Form[Network]:
    """The form of a network that was trained with these settings: NAME.npz, and beside it NAME.json
    with the settings and the losses."""

    def read(file: Path) -> Network:
        known = read_json(file.with_suffix(".json"))
        if {name: known.get(name) for name in about} != about:
            raise ValueError(f"{file} was trained with other settings")
        return Network(read_potential(file), known["losses"])

    def write(file: Path, network: Network) -> None:
        beside = file.with_suffix(".json")
        beside.unlink(missing_ok=True)  # until the end, the file is of no known origin
        write_potential(file, network.potential)
        write_text(beside, json.dumps(about | {"losses": network.losses}, indent=2) + "\n")

    return Form(".npz", read, write)


def _train(law: str, settings: RegularizedSettings, seed: int) -> Network:
    trained = train_regularized(
        PotentialMLP(2, rngs=nnx.Rngs(seed)),
        PROCESS,
        planar.sampler(law),
        key=jax.random.fold_in(jax.random.key(seed), 1),
        settings=settings,
    )
    losses = {"score_matching": float(trained.losses[-1])}
    if trained.residuals is not None:
        losses["residual"] = float(trained.residuals[-1])
    return Network(trained.model, losses)


def _sampled(file: Path, name: str, potential: PotentialMLP, run: GapRun) -> Sampled:
    try:
        return sampled(file, potential, run.samples, seed=run.seed, table=Table(bins=run.bins))
    except FloatingPointError as error:
        raise FloatingPointError(f"{name}: {error}") from error


def _study(name: str, found: Sampled, histograms: Mapping[str, np.ndarray], seed: int) -> Studied:
    """The numbers of one network."""
    data, weight = network_name(name)
    truth = truth_of(data, histograms)
    known = {} if truth is None else {f"truth_{data}": truth}
    row = {"data": data, "weight": weight}
    row |= measure(name, data, found, {**histograms, **known}, seed=seed)
    return Studied(name, data, weight, found, truth, row)


def _add_arguments(parser: ArgumentParser) -> None:
    add_optional_config(parser)
    parser.add_argument(
        "--networks", metavar="FOLDER", type=Path, help="networks to look at, instead of CONFIG"
    )
    for name, what in (("samples", "of each law"), ("seed", "of all that is drawn")):
        about = f"{what}, with --networks (default: {getattr(GapRun, name)})"
        parser.add_argument(f"--{name}", metavar="N", type=int, help=about)


def _read(given: Namespace, settings: type[GapRun]) -> tuple[GapRun, str]:
    """The settings of a run, from a file or from options."""
    if (given.config is None) == (given.networks is None):
        which = "neither" if given.config is None else "both"
        raise ConfigError(f"gap: either CONFIG or --networks FOLDER is needed, got {which}")
    names = [name for name in ("samples", "seed") if getattr(given, name) is not None]
    if given.config is not None:
        if names:
            raise ConfigError(f"gap: --{names[0]} goes with --networks: set it in {given.config}")
        return read(given.config, settings), str(given.config)
    with blaming("gap"):
        options = {name: getattr(given, name) for name in names}
        return settings(networks=given.networks, **options), "gap"


COMMAND = Command(
    name="gap",
    run=run_gap,
    settings=GapRun,
    arguments=_add_arguments,
    read=_read,
    brief="how far the laws of a network's two samplers are apart",
    about="""\
Do a network's two samplers draw from one law, and is the difference what its residual says?

A network phi(t, x) estimates the log-density of noised data in the plane. Its reverse SDE and its
probability flow (ODE) draw from the same law only if phi obeys the Fokker-Planck equation; by how
much it does not is the residual R. For each network: samples of both laws by Euler's rule, as the
literature draws them, and of the flow by a converged rule; exact transport distances W2 between
their histograms and the truth; the mean of R^2.

Either --networks FOLDER: its .npz files in the format of write_potential (DATA_wWEIGHT.npz; other
names will do), and histograms.npz if published ones are to be compared with. Or CONFIG, which
trains networks first.

Settings: laws ("blob", "circles2", "checker"), weights (of the residual in the loss; a network is
trained for each law and weight), networks (a folder of them, instead of laws), samples (of each
law), seed (of all that is drawn), bins (points a side of the table where scores are looked up);
[train] steps, batch_size, learning_rate, collocation, where ("box", "forward"), half_width, t_min,
weighting ("score", "noise").

A run that was stopped goes on where it was: networks trained and samples drawn with the same
settings are read from DIR. W2 of few samples is mostly their noise: 100000 tell distances above
about 0.05, a million above 0.03.""",
    example="scoresens gap --networks FOLDER --samples 1000000",
    writes={
        "laws-*.png": "truth and induced laws as densities, a picture a data set",
        "residual.png": "the residual over time, and against W2",
        "result.json": "distances and residuals of each network, with intervals",
        "samples/": "histograms and residuals by network (npz)",
        "networks/": "the networks trained, with CONFIG",
    },
)

"""The command `scoresens`: settings in, a folder with numbers and pictures out.

Every command reads its settings from a TOML file into a frozen dataclass (`demo` from its options),
writes `DIR/result.json` and what else it found beside it (but `status`, which only reads), says on
standard error what it is doing and for how long, and prints a table on standard output. Exit codes:
0 done, 1 the run failed, 2 usage or settings, 75 a sweep told to stop, 130 interrupted.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import jax

from scoresens.cli.attribute import run_attribute
from scoresens.cli.commands import (
    GRID,
    run_counterfactual,
    run_sample,
    run_sensitivity,
    run_train,
)
from scoresens.cli.convert import run_convert
from scoresens.cli.demo import DRAWN, run_demo
from scoresens.cli.finetune import run_finetune
from scoresens.cli.gap import run_gap
from scoresens.cli.halves import run_halves
from scoresens.cli.progress import blaming, tell
from scoresens.cli.removal import run_removal
from scoresens.cli.residual import run_residual
from scoresens.cli.retrain import run_retrain
from scoresens.cli.settings import (
    AttributeRun,
    ConvertRun,
    CounterfactualRun,
    DemoRun,
    GapRun,
    HalvesRun,
    RemovalRun,
    ResidualRun,
    RetrainRun,
    SampleRun,
    SensitivityRun,
    StatusRun,
    SweepRun,
    TrainRun,
    ValidateRun,
)
from scoresens.cli.sweep import UNFINISHED, Unfinished, run_status, run_sweep
from scoresens.config import ConfigError, read, read_one_of
from scoresens.importers.files import CONTINUOUS
from scoresens.importers.schedules import CLOCKS, PREDICTIONS
from scoresens.results import versions

OUT = Path("scoresens-out")
ABOUT = """\
What would a diffusion model's samples be, had its training data been others?

  scoresens demo                                        see it: half a minute, no settings
  scoresens counterfactual configs/counterfactual.toml  samples after a change of the data
  scoresens attribute configs/attribute.toml            which training images a sample is owed to
  scoresens sensitivity configs/sensitivity.toml        first-order changes of samples
  scoresens validate configs/digits-finetune.toml       are the predictions right?
  scoresens sweep configs/sweep.toml                    thousands of samples, hours, devices
  scoresens status DIR                                  how far a sweep is
  scoresens gap configs/gap.toml                        do a network's two samplers agree?
  scoresens residual configs/residual.toml              is a network the score of any law?
  scoresens sample configs/sample.toml                  draw samples, with log-densities
  scoresens train configs/digits.toml                   train a network of your own
  scoresens convert diffusers FOLDER                    bring one from PyTorch
"""

AFTER = """\
Each command writes result.json (numbers, settings, versions, seconds) and its pictures to
scoresens-out/COMMAND, or to --out DIR; files of the same name are replaced. Progress goes to
standard error, the table to standard output.

Exit codes: 0 done; 1 the run failed; 2 usage or settings; 75 a sweep that was told to stop, and can
go on; 130 interrupted.
`scoresens COMMAND --help` explains a command and its settings."""


class Command(NamedTuple):
    """One command: what it answers, what it runs, and what it leaves behind."""

    run: Callable[..., str]
    settings: type
    brief: str
    about: str
    example: str
    writes: Mapping[str, str]  # what is in each file


class Experiment(NamedTuple):
    """One experiment of `validate`."""

    settings: type
    run: Callable[[Any, Path, str], str]


EXPERIMENTS = {
    "finetune": Experiment(ValidateRun, run_finetune),
    "retrain": Experiment(RetrainRun, run_retrain),
    "halves": Experiment(HalvesRun, run_halves),
    "removal": Experiment(RemovalRun, run_removal),
}


def run_experiment(run: Any, out: Path, where: str) -> str:
    """The experiment that the settings are of."""
    return EXPERIMENTS[run.experiment].run(run, out, where)


COMMANDS = {
    "demo": Command(
        run_demo,
        DemoRun,
        "see what more of one class does to samples of digits",
        f"""\
What do samples of the digits become, when a share of one class is added to the training data?

Draws {DRAWN} samples from the checkpoint that comes with the package, and shows those that move
most and some that move least: before, their first-order change, the counterfactual sample, and the
added images nearest to it (report.png); the same samples as the share grows (strip.png); and the
training images that make each of them what it is, and those that work against it
(attribution.png).""",
        "scoresens demo --class 3 --mass 0.2",
        {
            "report.png": "samples before, first-order changes, counterfactual samples",
            "strip.png": "the same samples at growing masses",
            "attribution.png": "their most helpful and most harmful training images",
            "result.json": "displacements, cosines, classes; scores of the images named",
        },
    ),
    "train": Command(
        run_train,
        TrainRun,
        "train a network on a data set",
        """\
How is a checkpoint made? Trains a denoising network on a data set.

Settings: seed; [data] name, path, count, size, seed; [model] kind, width, depth; [train] steps,
batch_size, learning_rate, warmup, decay, ema_halflife, p_mean, p_std.""",
        "scoresens train configs/digits.toml --out runs/digits",
        {
            "model.safetensors": "the checkpoint; name its path in the other settings",
            "samples.png": f"{GRID} samples",
            "loss.png": "the loss while training",
            "result.json": "losses, number of parameters",
        },
    ),
    "sample": Command(
        run_sample,
        SampleRun,
        "draw samples from a checkpoint",
        """\
What does a checkpoint draw, and how likely does it find its own samples?

Settings, all optional (without CONFIG, the bundled digits): checkpoint ("digits", or a path),
count, seed, sampler ("ode", "sde"), steps, log_density ("exact", "hutchinson"; left out: none).""",
        "scoresens sample configs/sample.toml",
        {
            "samples.npz": "x and noise [M, *shape], log_density [M] if asked for",
            "samples.png": f"the first {GRID} samples",
            "result.json": "their mean, spread and log-density",
        },
    ),
    "counterfactual": Command(
        run_counterfactual,
        CounterfactualRun,
        "samples after finite changes of the data",
        """\
What would each sample be, had the training data changed? The same noise, followed as the model
would follow it after the change: by a little of it, by more, by all of it. Nothing is trained.

Settings: masses (how much of the change, rising, each in (0, 1]; left out: five up to the change's
mass); [data], [change], checkpoint, count, seed, steps, base, trace, bandwidth as for sensitivity.
The mass of "add" and "model" is the share of the new data; of the others it is the part of the
change that is made, 1 the whole. With base = "model" a removal may ask for more than the model has
somewhere: it is bounded there, and `bounded` counts the samples (and the steps) where it was.""",
        "scoresens counterfactual configs/counterfactual.toml",
        {
            "samples.npz": "before [M, *shape], x [M, E, *shape] at masses [E], bounded [M, E]",
            "report.png": "a strip a sample: before, then one image a mass",
            "result.json": "norms of the changes by mass, how many look like another class",
        },
    ),
    "attribute": Command(
        run_attribute,
        AttributeRun,
        "training images that raise or lower a number of each sample",
        """\
To which training images does a sample owe what it is? Asks of every image at once, by one pass down
the sample's path and one back up: if a little of the data's weight were moved to it, by how much
would a number of the sample rise (helpful) or fall (harmful)?

Settings: top (images named of either kind), scores ("all", or "top": keep those of the images
named), sampler ("ode", or "sde"); [data], checkpoint, count, seed, steps, base, trace, bandwidth
as for sensitivity.
[functional] kind, the number asked about:
  "itself"       how far the sample stands from the mean of the data, in its own direction: more of
                 it is the same sample, more pronounced (default)
  "class"        log-odds of the class it looks like most, or of class_name
  "closeness"    minus its distance to the training image with index image
  "pixel"        one grey value, pixel = [row, column]
  "components"   the first principal components of the data, components = 3
  "log_density"  the model's log-density of the sample
Scores are per unit of mass: 0.01 times a score is what 1 % of the data's weight does, to first
order, and the scores of a set of images add up. The picture and the table show 0.01 times.""",
        "scoresens attribute configs/attribute.toml",
        {
            "scores.npz": "scores [M, N] ([M, P, N] for components); x, value, levels, profile",
            "report.png": "helpful and harmful images, and the noise levels at which they act",
            "result.json": "the images named, with their scores, values, profiles",
        },
    ),
    "sensitivity": Command(
        run_sensitivity,
        SensitivityRun,
        "first-order changes of samples",
        """\
How does each sample move, to first order, when the training data change?

Settings: checkpoint, count, seed, steps, base ("data", or "model": black box), trace ("exact",
"hutchinson"; for base = "model"), bandwidth (left out: read off the data); [data] as for train;
[change] kind ("add", "remove", "half", "shift", "model"), classes, images, random, mass, seed,
checkpoint.""",
        "scoresens sensitivity configs/sensitivity.toml",
        {
            "tangents.npz": "x and tangent [M, *shape] per unit of mass; log_density [M], nats,\n"
            f'{"":22}for base = "model"',
            "report.png": "samples, their change, the touched images nearest to them",
            "result.json": "the norms of the changes",
        },
    ),
    "validate": Command(
        run_experiment,
        ValidateRun,
        "compare predicted changes with what training does",
        """\
Are the predictions right?

experiment = "finetune" (or left out): fine-tunes the checkpoint on the changed data and, as
control, on the unchanged data with the same randomness, and compares the real with the predicted
changes of the same samples: first order (all bases), counterfactual, and baselines. A run that was
stopped goes on where it was.

experiment = "halves": trains models from scratch on all images and on random halves of them, by
several seeds, and compares how samples and denoising losses really changed with what is predicted
from the models of all images: the linear datamodeling score (LDS), beside baselines and what
another seed's training says. A run that was stopped goes on where it was, and several processes
may share DIR. Settings: [data], [model], [train] as for train; [halves] seeds, subsets, choosing
(halves on which bandwidths are chosen), samples, held_out (queries), levels, components, seed;
steps, probes, resamples.

experiment = "retrain": the same trained from scratch, on changed and on unchanged data by several
seeds, each pair of one seed's parameters and draws, beside what another seed's training says. It
goes on where it was, too. Settings: those of "finetune", but for [model], [train] and seeds in the
place of checkpoint, [finetune] and repeats.

experiment = "removal": trains from scratch without the images that matter most to a sample, by our
attribution of its loss and of its movement, against the nearest, the least and random images: how
the loss at the sample rises and how far it moves. It goes on where it was, too. Settings: [data],
[model], [train]; queries (samples), shares (of the images left out), seeds, levels, seed, steps,
bandwidth, resamples.

Settings of "finetune": checkpoint, count, seed, steps, bandwidth, probes (of the black boxes'
traces; left out: exact), after (steps of fine-tuning after which to look as well), repeats (pairs
of fine-tunings to average; from 2 on, another fine-tuning is compared too), resamples; [data] as
for train; [change] as for sensitivity; [finetune] as [train].""",
        "scoresens validate configs/digits-finetune.toml",
        {
            "report.png": "predicted and real, side by side, with the agreement",
            "result.json": "each measure of each method, with its bootstrap interval",
            "displacements.npz": "finetune: all samples and predicted changes, to look at again",
            "models/": "what each trained model said",
            "predictions/": "halves: what each method predicted",
        },
    ),
    "gap": Command(
        run_gap,
        GapRun,
        "how far the laws of a network's two samplers are apart",
        """\
Do a network's two samplers draw from one law, and is the difference what its residual says?

A network phi(t, x) estimates the log-density of noised data in the plane. Its reverse SDE and its
probability flow (ODE) draw from the same law only if phi obeys the Fokker-Planck equation; by how
much it does not is the residual R. For each network: samples of both laws by Euler's rule, as the
literature draws them, and of the flow by a converged rule; exact transport distances W2 between
their histograms and the truth; the mean of R^2.

Either --networks FOLDER: its .npz files in the format of write_potential (DATA_wWEIGHT.npz; other
names will do), and histograms.npz if published ones are to be compared with. Or CONFIG, which
trains networks first.

Settings: laws ("blob", "circles2", "checker") and weights (of the residual in the loss), a network
for each of both; [train] steps, batch_size, learning_rate, collocation, where ("box", "forward"),
half_width, t_min, weighting ("score", "noise"); or, instead of laws, networks (a folder); samples,
seed, bins (points a side of the table where scores are looked up).

A run that was stopped goes on where it was: networks trained and samples drawn with the same
settings are read from DIR. W2 of few samples is mostly their noise: 100000 tell distances above
about 0.05, a million above 0.03.""",
        "scoresens gap --networks FOLDER --samples 1000000",
        {
            "laws-*.png": "truth and induced laws as densities, a picture a data set",
            "residual.png": "the residual over time, and against W2",
            "result.json": "distances and residuals of each network, with intervals",
            "samples/": "histograms and residuals by network (npz)",
            "networks/": "the networks trained, with CONFIG",
        },
    ),
    "sweep": Command(
        run_sweep,
        SweepRun,
        "many samples, many directions or data points, on many devices",
        """\
Which images is each of thousands of samples owed to ("attribution"), or how does it change along
many directions ("sensitivity"), for one seed after another? The work is cut into blocks that fit
the memory; each is on disk as soon as it is made, so that a run that was killed goes on where
it was. SIGTERM ends the block at hand and leaves with code 75: run the same command again.

Settings: question, samples, seeds, memory (GiB for a block), or rows and columns (of a block), mesh
(devices along samples and directions), top (images named; left out, the scores of all), stream (the
data stay in their .npy file); [functional] as for attribute; [directions] classes, images; [data],
checkpoint, steps, base, trace, bandwidth as for sensitivity.

Several processes, on one host or on many, share DIR: give each --coordinator HOST:PORT (the first
one's), --processes N and --process I.""",
        "scoresens sweep configs/sweep.toml --out runs/sweep",
        {
            "store.zarr": "the arrays, with named dimensions; xarray.open_zarr reads them",
            "blocks": "a mark for each block that is whole, with a checksum",
            "study.json": "what the numbers are of",
            "log-*.jsonl": "a line a block, a file a process",
            "result.json": "how many blocks, how large, and the seconds of one",
        },
    ),
    "status": Command(
        run_status,
        StatusRun,
        "how far a sweep is",
        "How far is a sweep? Reads its folder, also while it runs.",
        "scoresens status runs/sweep",
        {},
    ),
    "convert": Command(
        run_convert,
        ConvertRun,
        "bring a model from PyTorch, diffusers or EDM",
        """\
How does a model of another library become a checkpoint here? Writes one safetensors file that the
other commands take as checkpoint, and that needs neither torch nor the library it came from.

  diffusers FOLDER      a pipeline, or its name on the hub; safetensors weights only
  edm FILE.pkl          a pickle of EDM; reading one runs what its author wrote: --trust-pickle
  torch MODULE:FUNCTION a function that returns a torch module, called as module(x [1, C, H, W],
                        time [1]); say how it was trained by --scheduler, or by --process,
                        --predicts and --sees""",
        "scoresens convert diffusers my-pipeline --out runs/mine",
        {
            "model.safetensors": "the checkpoint; name its path in the other settings",
            "result.json": "shape, parameters, process, what the network predicts and sees",
        },
    ),
    "residual": Command(
        run_residual,
        ResidualRun,
        "how far an image model is from being a score",
        """\
Is a network the score of any noised law? A score obeys the Fokker-Planck equation, and is the
gradient of a log-density. Measures both failings of a checkpoint at noised data, by noise level:
the residual of the score's equation relative to the score's rate of change (0: obeyed), and the
antisymmetric part of the score's Jacobian as a share of the whole (0: a gradient); and that of the
denoiser, where no identity hides it at high noise.

Settings, all optional (without CONFIG, the bundled digits): [data] as for train; checkpoint
("digits", or a path), levels (noise levels, rising), count (noised data points a level), seed,
trace ("exact", or "hutchinson": for large images, a random probe a point, which adds its own
spread to the numbers).""",
        "scoresens residual configs/residual.toml",
        {
            "report.png": "residual and antisymmetric part over noise levels",
            "result.json": "the same numbers, with 95 % intervals",
        },
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code.

    Args:
        argv: the arguments; by default the process's own.
    """
    try:
        given = _parser().parse_args(argv)
        run, where = _settings(given)
        command = COMMANDS[given.command]
        if not command.writes:
            print(f"\n{command.run(run, OUT, where)}\n")
            return 0
        with blaming("--out"):
            given.out.mkdir(parents=True, exist_ok=True)
        print(f"\n{command.run(run, given.out, where)}\n")
        written = [name for name in command.writes if any(given.out.glob(name))]
        print(f"written to {given.out}: {', '.join(written)}")
    except SystemExit as stop:  # argparse: help is done, or the usage is wrong
        return int(stop.code or 0)
    except ConfigError as error:
        return _complain(error, 2)
    except (FloatingPointError, ValueError, OSError) as error:
        return _complain(error, 1)
    except Unfinished as stop:
        print(f"\n{stop}\n")
        return UNFINISHED
    except KeyboardInterrupt:
        return _complain("interrupted: nothing of this run is half-written", 130)
    return 0


def _settings(given: argparse.Namespace) -> tuple[Any, str]:
    """The settings of a run, and the name of their source for errors."""
    if given.settings is DemoRun:
        with blaming("demo"):
            options = {field.name: getattr(given, field.name) for field in fields(DemoRun)}
            return DemoRun(**options), "demo"
    if given.settings is StatusRun:
        return StatusRun(folder=given.folder), "status"
    if given.settings is SweepRun:
        _join(given)
    if given.settings is ConvertRun:
        with blaming("convert"):
            options = {field.name: getattr(given, field.name) for field in fields(ConvertRun)}
            options["shape"] = tuple(given.shape)
            return ConvertRun(**options), "convert"
    if given.settings is GapRun:
        return _gap_settings(given)
    if given.config is None:
        make: Any = given.settings
        return make(), given.command
    if given.settings is ValidateRun:
        kinds = {name: experiment.settings for name, experiment in EXPERIMENTS.items()}
        return read_one_of(given.config, "experiment", kinds), str(given.config)
    return read(given.config, given.settings), str(given.config)


def _gap_settings(given: argparse.Namespace) -> tuple[GapRun, str]:
    """The settings of a run of `gap`, from a file or from options."""
    if (given.config is None) == (given.networks is None):
        came = "neither" if given.config is None else "both"
        raise ConfigError(f"gap: either CONFIG or --networks FOLDER is needed, got {came}")
    names = [name for name in ("samples", "seed") if getattr(given, name) is not None]
    if given.config is not None:
        if names:
            raise ConfigError(f"gap: --{names[0]} goes with --networks: set it in {given.config}")
        return read(given.config, GapRun), str(given.config)
    with blaming("gap"):
        options = {name: getattr(given, name) for name in names}
        return GapRun(networks=given.networks, **options), "gap"


def _complain(error: object, code: int) -> int:
    words = " ".join(str(error).split())
    tell(f"scoresens: {words}" if code == 130 else f"scoresens: error: {words}")
    return code


def _parser() -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "scoresens", description=ABOUT, epilog=AFTER, formatter_class=shape
    )
    version = f"scoresens {versions()['scoresens']}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        files = "\n".join(f"  {file:<20}{what}" for file, what in command.writes.items())
        added = commands.add_parser(
            name,
            help=command.brief,
            description=command.about,
            epilog=f"example:\n  {command.example}" + (files and f"\n\nwrites to DIR:\n{files}"),
            formatter_class=shape,
        )
        if command.settings is DemoRun:
            _add_demo_options(added)
        elif command.settings is StatusRun:
            added.add_argument("folder", metavar="DIR", type=Path, help="of the sweep")
        elif command.settings is ConvertRun:
            _add_convert_options(added)
        else:
            optional = "?" if command.settings in (SampleRun, GapRun, ResidualRun) else None
            added.add_argument(
                "config", metavar="CONFIG", type=Path, nargs=optional, help="settings, a TOML file"
            )
        if command.settings is GapRun:
            _add_gap_options(added)
        if command.settings is SweepRun:
            _add_process_options(added)
        default = OUT / name
        if command.writes:
            added.add_argument(
                "--out", metavar="DIR", type=Path, default=default, help=f"by default {default}"
            )
        added.set_defaults(settings=command.settings)
    return parser


def _add_demo_options(parser: argparse.ArgumentParser) -> None:
    for flag, field, kind, what in (
        ("--class", "class_name", str, "the digit to add"),
        ("--mass", "mass", float, "its additional share of the changed data, in (0, 1]"),
        ("--count", "count", int, "samples to show"),
        ("--seed", "seed", int, "of the noise"),
    ):
        default = getattr(DemoRun, field)
        about = f"{what} (default: {default})"
        parser.add_argument(flag, dest=field, type=kind, default=default, help=about)


def _add_convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=("diffusers", "edm", "torch"), help="the kind of source")
    parser.add_argument(
        "source", metavar="SOURCE", help="the source: a folder, a file, or module:function"
    )
    for flag, kind, metavar, what in (
        ("--size", int, "N", "pixels a side, where a pipeline does not say"),
        ("--label", int, "N", "the class to condition on"),
        ("--conditioning", Path, "FILE", "a .npy file: the embedding of a text, for example"),
        ("--scheduler", Path, "FILE", "torch: a scheduler_config.json of how it was trained"),
        ("--weights", Path, "FILE", "torch: safetensors to fill the module with"),
    ):
        parser.add_argument(flag, type=kind, metavar=metavar, help=what)
    for flag, choices, what in (
        ("--process", tuple(CONTINUOUS), "torch: the forward process"),
        ("--predicts", PREDICTIONS, "torch: what the module returns"),
        ("--sees", CLOCKS, "torch: what it sees for time"),
    ):
        default = getattr(ConvertRun, flag[2:])
        about = f"{what}, one of {', '.join(choices)} (default: {default})"
        parser.add_argument(flag, metavar="NAME", choices=choices, default=default, help=about)
    parser.add_argument("--scale", type=float, default=1.0, help="torch: a factor on that time")
    parser.add_argument(
        "--shape", type=int, nargs="+", default=(), metavar="N", help="torch: one sample, H W C"
    )
    for flag, what in (
        ("--exported", "diffusers: through torch, also where a network of JAX is at hand"),
        ("--trust-pickle", "edm: run what the author of the pickle wrote"),
    ):
        parser.add_argument(flag, action="store_true", help=what)


def _add_process_options(parser: argparse.ArgumentParser) -> None:
    for flag, kind, metavar, what in (
        ("--coordinator", str, "HOST:PORT", "of the first process, for several that share a sweep"),
        ("--processes", int, "N", "how many there are"),
        ("--process", int, "I", "which of them this is, from 0"),
    ):
        parser.add_argument(flag, type=kind, metavar=metavar, help=what)


def _join(given: argparse.Namespace) -> None:
    """Make this process one of several, if it is asked to."""
    asked = given.coordinator, given.processes, given.process
    if asked == (None, None, None):
        return
    if None in asked:
        raise ConfigError("sweep: --coordinator, --processes and --process go together")
    jax.distributed.initialize(given.coordinator, given.processes, given.process)


def _add_gap_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--networks", metavar="FOLDER", type=Path, help="networks to look at, instead of CONFIG"
    )
    for name, what in (("samples", "of each law"), ("seed", "of all that is drawn")):
        about = f"{what}, with --networks (default: {getattr(GapRun, name)})"
        parser.add_argument(f"--{name}", metavar="N", type=int, help=about)

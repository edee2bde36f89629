"""The command `scoresens`: settings in, a folder with numbers and pictures out.

Every command reads its settings from a TOML file into a frozen dataclass (`demo` from its options),
writes `DIR/result.json` and what else it found beside it (but `status`, which only reads), says on
standard error what it is doing and for how long, and prints a table on standard output. Exit codes:
0 done, 1 the run failed, 2 usage or settings, 75 a sweep told to stop, 130 interrupted.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax

from scoresens.cli.command_table import COMMANDS, EXPERIMENTS
from scoresens.cli.config import ConfigError, read, read_one_of
from scoresens.cli.progress import blaming, tell
from scoresens.cli.results import versions
from scoresens.cli.settings import (
    ConvertRun,
    DemoRun,
    GapRun,
    ResidualRun,
    SampleRun,
    StatusRun,
    SweepRun,
    ValidateRun,
)
from scoresens.cli.sweep import UNFINISHED, Unfinished
from scoresens.importers.files import CONTINUOUS
from scoresens.importers.schedules import CLOCKS, PREDICTIONS

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
standard error, the table to standard output. Compiled programs are kept in ~/.cache/scoresens, a
GiB at most; JAX_COMPILATION_CACHE_DIR names another folder.

Exit codes: 0 done; 1 the run failed; 2 usage or settings; 75 a sweep that was told to stop, and can
go on; 130 interrupted.
`scoresens COMMAND --help` explains a command and its settings."""


def command() -> int:
    """The entry point: `main`, with what is compiled kept from one run to the next."""
    _keep_compiled()
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code.

    Args:
        argv: the arguments; by default the process's own.
    """
    try:
        given = _parser().parse_args(argv)
        run, where = _settings(given)
        command = COMMANDS[given.command]
        if given.settings is SweepRun:
            _join(given)
        if command.writes:
            with blaming("--out"):
                given.out.mkdir(parents=True, exist_ok=True)
        print(f"\n{command.run(run, given.out, where)}\n")
        if written := [name for name in command.writes if any(given.out.glob(name))]:
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


def _keep_compiled() -> None:
    """Keep compiled programs in the user's cache, at most a GiB of them, unless the user has said
    where (JAX_COMPILATION_CACHE_DIR) or that it shall not be (JAX_ENABLE_COMPILATION_CACHE)."""
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scoresens"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or none to write in: compile each time
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", 2**30)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _settings(given: argparse.Namespace) -> tuple[Any, str]:
    """The settings of a run, and the name of their source for errors."""
    if given.settings is DemoRun:
        with blaming("demo"):
            options = {field.name: getattr(given, field.name) for field in fields(DemoRun)}
            return DemoRun(**options), "demo"
    if given.settings is StatusRun:
        return StatusRun(folder=given.folder), "status"
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
        else:
            added.set_defaults(out=default)
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

"""The command `scoresens`: settings in, a folder with numbers and pictures out.

Every command is a file of this package, which holds its words, settings, arguments and run.

Every command reads its settings from a TOML file into a frozen dataclass (`demo` from its options),
writes `DIR/result.json` and what else it found beside it (but `status` and `config`, which only
read), says on standard error what it is doing and for how long, and prints a table on standard
output. Exit codes: 0 done, 1 the run failed, 2 usage or settings, 75 a sweep that SIGTERM stopped,
130 interrupted.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import jax

from scoresens.cli import (
    attribute,
    calibrate,
    config,
    convert,
    counterfactual,
    demo,
    finetune,
    gap,
    halves,
    removal,
    residual,
    retrain,
    sample,
    sensitivity,
    status,
    sweep,
    train,
    validate,
)
from scoresens.cli._config import ConfigError
from scoresens.cli._interrupt import INTERRUPTED, interruptible
from scoresens.cli._progress import blaming, noting, tell
from scoresens.cli._results import versions

EXPERIMENTS = {
    module.EXPERIMENT.name: module.EXPERIMENT for module in (finetune, retrain, halves, removal)
}
COMMANDS = {
    command.name: command
    for command in (
        demo.COMMAND, train.COMMAND, sample.COMMAND, counterfactual.COMMAND, attribute.COMMAND,
        sensitivity.COMMAND, calibrate.COMMAND, validate.command(EXPERIMENTS), gap.COMMAND,
        sweep.COMMAND, status.COMMAND, convert.COMMAND, residual.COMMAND, config.COMMAND,
    )
}  # fmt: skip

ABOUT = """\
What would a diffusion model's samples be, had its training data been others?

  scoresens demo                                        see it: half a minute, no settings
  scoresens config sample                               settings to begin with
  scoresens counterfactual configs/counterfactual.toml  samples after a change of the data
  scoresens attribute configs/attribute.toml            which training images decide each sample
  scoresens sensitivity configs/sensitivity.toml        first-order changes of samples
  scoresens calibrate configs/calibrate.toml            how well does a model resolve its data?
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

Exit codes: 0 done; 1 the run failed; 2 usage or settings; 75 a sweep that SIGTERM stopped, and
that can go on; 130 interrupted (Ctrl-C again ends a long computation at once).
`scoresens COMMAND --help` explains a command and its settings, `scoresens config COMMAND` prints
some; in a checkout they are in configs/."""


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
        command = COMMANDS[given.command]
        settings, where = command.read(given, command.settings)
        out = given.out if command.writes else Path()
        if command.writes:
            with blaming("--out"):
                out.mkdir(parents=True, exist_ok=True)
        with noting(), interruptible():
            printed = command.run(settings, out, where)
        print(f"\n{printed}\n")
        if written := [name for name in command.writes if any(out.glob(name))]:
            print(f"written to {out}: {', '.join(written)}")
    except SystemExit as stop:  # argparse: help is done, or the usage is wrong
        return int(stop.code or 0)
    except ConfigError as error:
        return _complain(error, 2)
    except (FloatingPointError, ValueError, OSError) as error:
        return _complain(error, 1)
    except sweep.Unfinished as stop:
        print(f"\n{stop}\n")
        return sweep.UNFINISHED
    except KeyboardInterrupt:
        return _complain("interrupted: nothing of this run is half-written", INTERRUPTED)
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


def _complain(error: object, code: int) -> int:
    words = " ".join(str(error).split())
    tell(f"scoresens: {words}" if code == INTERRUPTED else f"scoresens: error: {words}")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("scoresens", description=ABOUT, epilog=AFTER)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # lines as they are written
    version = f"scoresens {versions()['scoresens']}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        command.add_to(commands)
    return parser

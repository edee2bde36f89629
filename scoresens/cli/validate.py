"""`scoresens validate`: predicted changes against what training does.

Every experiment is a file of its own, named in `scoresens.cli.EXPERIMENTS`.
"""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoresens.cli._command import Command, Experiment
from scoresens.cli._config import read_one_of


def command(experiments: Mapping[str, Experiment]) -> Command:
    """The command, of experiments by their names; the first is meant where none is named."""

    def run(run: Any, out: Path, where: str) -> str:
        return experiments[run.experiment].run(run, out, where)

    def read(given: Namespace, settings: Mapping[str, type]) -> tuple[Any, str]:
        return read_one_of(given.config, "experiment", settings), str(given.config)

    return Command(
        name="validate",
        run=run,
        settings={name: experiment.settings for name, experiment in experiments.items()},
        read=read,
        brief="compare predicted changes with what training does",
        about="\n\n".join(
            ["Are the predictions right?", *(one.about for one in experiments.values())]
        ),
        example="scoresens validate configs/digits-finetune.toml",
        writes={
            "report.png": "predicted and real, side by side, with the agreement",
            "result.json": "each measure of each method, with its bootstrap interval",
            "models/": "what each trained model said",
        }
        | {file: what for one in experiments.values() for file, what in one.writes.items()},
    )

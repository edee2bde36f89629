"""`scoresens validate`: predicted changes against what training does.

Every experiment is a file of its own, named in `scoresens.cli.EXPERIMENTS`.
"""

from collections.abc import Mapping

from scoresens.cli._command import Command, Experiment
from scoresens.cli._config import read_one_of


def command(experiments: Mapping[str, Experiment]) -> Command:
    """The command, of experiments by their names; the first is meant where none is named."""
    return Command(
        name="validate",
        run=lambda run, out, where: experiments[run.experiment].run(run, out, where),
        settings={name: experiment.settings for name, experiment in experiments.items()},
        read=lambda given, settings: (
            read_one_of(given.config, "experiment", settings),
            str(given.config),
        ),
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

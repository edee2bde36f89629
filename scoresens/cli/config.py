"""`scoresens config`: settings to begin with."""

from argparse import ArgumentParser
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from scoresens.cli._command import Command, from_options
from scoresens.cli._config import ConfigError

FILES = {"train": "digits", "validate": "digits-finetune"}  # of other commands, that of their name


@dataclass(frozen=True, kw_only=True)
class ConfigRun:
    """Options of `scoresens config`, explained in its help."""

    name: str


def example(name: str) -> str:
    """The settings file of a command, or the one of this name, as it comes with the package.

    Raises:
        ConfigError: if there is none.
    """
    known = examples()
    stem = FILES.get(name, name)
    if stem not in known:
        close = get_close_matches(stem, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"config: {name} has no settings file{hint}; there are {', '.join(known)}"
        )
    return known[stem].replace("configs/", "").strip()


def examples() -> dict[str, str]:
    """All settings files, by their names; the package holds them, or the checkout around it."""
    within = resources.files("scoresens.cli") / "configs"
    folder = within if within.is_dir() else Path(__file__).parents[2] / "configs"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".toml"): file.read_text(encoding="utf-8") for file in files}


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="COMMAND", help="a command, or the name of an example")


COMMAND = Command(
    name="config",
    run=lambda run, out, where: example(run.name),
    settings=ConfigRun,
    arguments=_add_arguments,
    read=from_options,
    brief="print settings to begin with",
    about="""\
What may a settings file look like? Prints one with its comments, of a command or by its name: save
it, change it, and give it to its command. A name that is not known is answered with all names.""",
    example="scoresens config sample > sample.toml",
    writes={},
)

"""What a command is: its words, its settings, how arguments become settings, and what it runs.

To add a command, write a file that ends in a `COMMAND`, and name it in `scoresens.cli.COMMANDS`; an
experiment of `validate` ends in an `EXPERIMENT`, and is named in `scoresens.cli.EXPERIMENTS`.
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from scoresens.cli._config import read
from scoresens.cli._progress import blaming

OUT = Path("scoresens-out")

Run = Callable[[Any, Path, str], str]
"""Settings, the folder (which exists), where the settings are from (for errors) -> the table."""


def add_config(parser: ArgumentParser, nargs: str | None = None) -> None:
    """Let a parser take the settings file CONFIG."""
    parser.add_argument(
        "config", metavar="CONFIG", type=Path, nargs=nargs, help="settings, a TOML file"
    )


def add_optional_config(parser: ArgumentParser) -> None:
    """Let a parser take CONFIG, for settings that all have defaults."""
    add_config(parser, "?")


def from_config(given: Namespace, settings: Any) -> tuple[Any, str]:
    """The settings in CONFIG, or the defaults without it; and where they are from."""
    if given.config is None:
        return settings(), given.command
    return read(given.config, settings), str(given.config)


def from_options(given: Namespace, settings: Any) -> tuple[Any, str]:
    """The settings that have an argument each, and where they are from."""
    values = {field.name: getattr(given, field.name) for field in fields(settings)}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    with blaming(given.command):
        return settings(**values), given.command


class Command(NamedTuple):
    """One command: what it answers, what it takes, what it runs, and what it leaves behind."""

    name: str
    run: Run
    settings: Any  # a dataclass, or what `read` makes one of
    brief: str  # in the list of commands
    about: str  # the question, how it is answered, and the settings
    example: str
    writes: Mapping[str, str]  # what is in each file
    arguments: Callable[[ArgumentParser], None] = add_config
    read: Callable[[Namespace, Any], tuple[Any, str]] = from_config

    def add_to(self, commands: Any) -> None:
        """Add the command to argparse's subparsers."""
        files = "\n".join(f"  {file:<20}{what}" for file, what in self.writes.items())
        parser = commands.add_parser(
            self.name,
            help=self.brief,
            description=self.about,
            epilog=f"example:\n  {self.example}" + (files and f"\n\nwrites to DIR:\n{files}"),
            formatter_class=RawDescriptionHelpFormatter,
        )
        self.arguments(parser)
        default = OUT / self.name
        if self.writes:
            parser.add_argument(
                "--out", metavar="DIR", type=Path, default=default, help=f"by default {default}"
            )


class Experiment(NamedTuple):
    """One experiment of `validate`; `settings` has a field `experiment`, which is its name."""

    name: str
    run: Run
    settings: type
    about: str  # what it does, and its settings
    writes: Mapping[str, str] = MappingProxyType({})  # beside what every experiment writes

"""`scoresens status`: how far a sweep is."""

from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

from scoresens.cli._command import Command, from_options
from scoresens.report.tables import table
from scoresens.sweeps.store import progress


@dataclass(frozen=True, kw_only=True)
class StatusRun:
    """Options of `scoresens status`, explained in its help."""

    folder: Path


def status(folder: Path) -> str:
    """How far the sweep in a folder is, as a table."""
    found = progress(folder)
    layout, done = found["layout"], found["done"]
    each = found["seconds"] / done if done else float("nan")
    left = found["blocks"] - done
    row = {
        "blocks": f"{done} of {found['blocks']}",
        "of samples x directions": f"{layout.rows} x {layout.columns}",
        "samples": f"{layout.seeds} x {layout.samples}",
        "a block": f"{each:.2f} s" if done else "",
        "left": f"{left * each / 60:.1f} min" if done and left else "" if left else "none",
    }
    return table({found["study"]["question"]: row}, "sweep")


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="of the sweep")


COMMAND = Command(
    name="status",
    run=lambda run, out, where: status(run.folder),
    settings=StatusRun,
    arguments=_add_arguments,
    read=from_options,
    brief="how far a sweep is",
    about="How far is a sweep? Reads its folder, also while it runs.",
    example="scoresens status runs/sweep",
    writes={},
)

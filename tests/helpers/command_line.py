"""One run of the command `scoresens`, in this process, and what it left."""

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

from scoresens import cli

# The tables of a settings file for a network that trains at once.
TINY = """
[model]
kind = "mlp"
width = 8
depth = 1

[train]
steps = 6
batch_size = 8
learning_rate = 1e-2
warmup = 1
"""


class Ran(NamedTuple):
    """One run of the command line."""

    code: int
    printed: str
    told: str
    out: Path

    @property
    def result(self):
        return json.loads((self.out / "result.json").read_text())

    @property
    def files(self):
        return {str(path.relative_to(self.out)) for path in self.out.rglob("*") if path.is_file()}


def scoresens(*arguments: object, out: Path) -> Ran:
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = cli.main([*map(str, arguments), "--out", str(out)])
    return Ran(code, printed.getvalue(), told.getvalue(), out)


def settings_file(folder: Path, text: str) -> Path:
    file = folder / "run.toml"
    file.write_text(text)
    return file

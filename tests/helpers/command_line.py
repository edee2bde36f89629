"""Runs of the command `scoresens`, in this process, and what they leave."""

import contextlib
import io
import json
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scoresens import cli

# Tables of settings files: data, and a change of them.
DATA = """
[data]
name = "digits"
count = 60
"""
CHANGE = """
[change]
classes = ["3"]
mass = 0.2
"""

# A network that trains at once.
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


def with_checkpoint(folder: Path, trained: Ran, text: str) -> Path:
    return settings_file(folder, f"checkpoint = '{trained.out}/model.safetensors'\n{text}")


def is_complete(ran: Ran, *files: str) -> bool:
    """Done, with its files and no others, and with what every result.json holds."""
    assert ran.code == 0, ran.told
    assert {path.name for path in ran.out.iterdir()} == {"result.json", *files}
    assert ran.result.keys() >= {"settings", "versions", "seconds", "stages"}
    assert ran.result["seconds"] >= sum(ran.result["stages"].values()) - 0.1
    for file in files:
        if file.endswith(".png"):
            width, height = struct.unpack(">II", (ran.out / file).read_bytes()[16:24])
            assert min(width, height) > 400
    assert str(ran.out) in ran.printed
    return True


def arrays_of(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, which is closed again."""
    with np.load(file, allow_pickle=False) as found:
        return dict(found)


def rows(printed: str) -> dict[str, list[str]]:
    """The rows of the table that was printed, by name; checks that its columns are aligned."""
    lines = printed.splitlines()
    (ruler,) = [i for i, line in enumerate(lines) if re.fullmatch(r"-+(  -+)+", line)]
    ends = [match.end() for match in re.finditer("-+", lines[ruler])]
    found = {}
    for line in lines[ruler + 1 :]:
        if not line:
            break
        cells = [line[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]
        assert len(line) <= ends[-1]
        found[cells[0]] = cells[1:]
    return found


def refused(ran: Ran) -> str:
    """The complaint of a run with wrong settings: one paragraph, no traceback, nothing written."""
    assert ran.code == 2
    assert not ran.printed
    assert "Traceback" not in ran.told
    assert not ran.out.exists() or not list(ran.out.iterdir())
    (line,) = [line for line in ran.told.splitlines() if "error:" in line]
    assert line == ran.told.splitlines()[-1]
    return line

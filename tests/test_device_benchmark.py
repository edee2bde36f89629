"""The script that measures accelerators runs anywhere, and keeps what there was time for."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "benchmarks/device/run.sh"
pytestmark = pytest.mark.skipif(not RUN.exists(), reason="a checkout without the benchmarks")


def run(*options):
    """What the script prints."""
    environment = os.environ | {"PYTHON": sys.executable}
    given = {"capture_output": True, "text": True, "env": environment}
    return subprocess.run(["bash", str(RUN), *map(str, options)], check=True, **given).stdout


@pytest.mark.slow
def test_quick_rows_and_their_tables(tmp_path):
    file = tmp_path / "device.json"
    wanted = ("machine", "tables, 60,000 x 784, TF32", "MLP: sample_ode", "laws of scores")
    run("--quick", "--out", file, "--only", *wanted)
    rows = json.loads(file.read_text())
    assert list(rows) == [*wanted, "left out"]
    assert not any("error" in row for row in rows.values())
    assert rows["left out"] == {"rows": []}
    assert rows["MLP: sample_ode"]["seconds"][0] > 0
    assert rows["MLP: sample_ode"]["finite"]
    assert all(error < bound for error, bound in list(rows["laws of scores"].values())[:3])

    printed = run("--quick", "--out", file, "--only", "attribution", "--seconds", "0")
    assert printed.strip() == "left out: laws of attribution"
    assert json.loads(file.read_text()) == rows | {"left out": {"rows": ["laws of attribution"]}}

    table = run("--table", "--out", file)
    assert re.search(r"CIFAR U-Net \| sample_ode +\| not yet measured", table)
    assert "Left out for time: laws of attribution." in table

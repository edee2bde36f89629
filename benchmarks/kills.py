"""A sweep that is killed (SIGKILL) at 20 random moments: is anything lost, or made twice?

An uninterrupted sweep first, of 400 blocks. Then the same one, killed at a moment drawn from its
running time and started again, 20 times, and once more to its end. Counted: marks of whole blocks
that a later run wrote again (made twice), and blocks whose numbers differ from the uninterrupted
sweep's (lost or damaged). Writes results/kills.json.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results" / "kills.json"
SETTINGS = """
question = "attribution"
samples = 400
rows = 2
seeds = [0, 1]
top = 5
steps = 4
[data]
name = "digits"
count = 200
"""


def start(folder: Path, config: Path) -> subprocess.Popen:
    program = "import sys; from scoresens.cli import command; sys.exit(command())"
    arguments = [sys.executable, "-c", program, "sweep", str(config), "--out", str(folder)]
    with folder.with_suffix(".log").open("w") as log:
        return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=log)


def marks(folder: Path) -> dict[str, int]:
    """When each mark was written."""
    return {f.name: f.stat().st_mtime_ns for f in (folder / "blocks").glob("[0-9]*.json")}


def opened(folder: Path) -> xarray.Dataset:
    return xarray.open_zarr(folder / "store.zarr", consolidated=False).load()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as place:
        config, whole, cut = (Path(place) / name for name in ("run.toml", "whole", "cut"))
        config.write_text(SETTINGS)
        began = time.monotonic()
        start(whole, config).wait()
        seconds = time.monotonic() - began
        twice, killed = 0, []
        for _ in tqdm(range(given.kills), unit="kill"):
            before, running = marks(cut), start(cut, config)
            while len(marks(cut)) == len(before) and running.poll() is None:
                time.sleep(0.005)  # imports and compilation, where there is nothing to lose
            time.sleep(draw.uniform(0, 0.6))
            if running.poll():
                raise SystemExit(f"it failed:\n{cut.with_suffix('.log').read_text()[-2000:]}")
            os.kill(running.pid, signal.SIGKILL)
            running.wait()
            after = marks(cut)
            twice += sum(after[name] != at for name, at in before.items())
            killed.append(len(after) - len(before))
        before = marks(cut)
        if start(cut, config).wait():
            raise SystemExit(f"it failed:\n{cut.with_suffix('.log').read_text()[-2000:]}")
        twice += sum(marks(cut)[name] != at for name, at in before.items())
        a, b = opened(whole), opened(cut)
        differing = int(sum(np.sum(a[n].values != b[n].values) for n in a.data_vars))
        found = {
            "kills": given.kills,
            "blocks": len(marks(whole)),
            "blocks_between_kills": killed,
            "made_twice": twice,
            "numbers_that_differ": differing,
            "identical": bool(a.identical(b)),
            "seconds_uninterrupted": round(seconds, 1),
        }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

"""Measures the library on the device at hand, the most valuable rows first, within a time.

    benchmarks/device/run.sh                     at most 450 s, into benchmarks/results/device.json
    benchmarks/device/run.sh --only tables --fresh
    benchmarks/device/run.sh --quick             toy sizes, to see that every row runs
    benchmarks/device/run.sh --table             the markdown of docs/performance.md

    machine         rates of a large matrix product by precision, and of a copy
    tables          attribution's tables alone in float32, TF32 and bfloat16x3, and their errors
    MLP, U-Nets     every verb: seconds, seconds to trace and to compile, memory
    laws            the checks of tests/helpers/laws.py and the black box at large d: worst errors
    torch           sampling, likelihood and tangent beside torch.func, eager and compiled

Rows are measured in a process that is replaced when it fails, or is stopped when a row takes longer
than its limit; each is on disk as soon as it is there, so that a run that is killed leaves its rows
and another goes on with those that are missing. Rows for which there was no time are listed under
"left out". A machine that is lent for a while needs the checkout and nothing else if it has the
packages that run.sh looks for:

    benchmarks/device/run.sh --out FOLDER/device.json

and the file goes to benchmarks/results/. Rows of two devices do not belong into one file.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from plan import items
from rows import RESULTS, keep, kept

LEFT_OUT = "left out"
FAILED = 3  # what a process ends with whose last row says why


def child(names: list[str], path: Path, quick: bool) -> None:
    """Measures the rows, one after another; ends with the first that fails, whose process is not to
    be trusted."""
    import jax
    import work

    for name in names:
        item, began = items()[name], time.monotonic()
        try:
            made = getattr(work, item.function)(*item.arguments, quick=quick)
        except Exception as error:
            made = {"error": f"{type(error).__name__}: {error}"[:500]}
        seconds = round(time.monotonic() - began, 1)
        made |= {"device": jax.devices()[0].device_kind, "row_seconds": seconds}
        print(f"{name}: {json.dumps(made)}", flush=True)
        keep(path, {**kept(path), name: made}, list(items()))
        if "error" in made:
            sys.exit(FAILED)


def supervise(names: list[str], path: Path, seconds: float, options: list[str]) -> None:
    """Processes that measure the rows until all are there or the time is up."""
    deadline = time.monotonic() + seconds
    while (left := missing(names, path)) and time.monotonic() < deadline:
        command = [sys.executable, __file__, "--out", str(path), *options, "--child", *left]
        process = subprocess.Popen(command)
        try:
            why = watched(process, left, path, deadline)
        finally:
            process.kill()
            process.wait()
        unmade = missing(names, path)
        if process.returncode == 1 and unmade == left:
            sys.exit("no row could be measured: the process says why")
        if why and unmade:
            keep(path, {**kept(path), unmade[0]: {"error": why}}, list(items()))
    left = missing(names, path)
    keep(path, {**kept(path), LEFT_OUT: {"rows": left}}, list(items()))
    print(f"left out: {', '.join(left) or 'nothing'}", flush=True)


def watched(process: subprocess.Popen, names: list[str], path: Path, deadline: float) -> str:
    """Why a row will not be there, where the row does not say so and it is not for the time."""
    current, began = names, time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        if len(left := missing(names, path)) < len(current):
            current, began = left, time.monotonic()
        if time.monotonic() > deadline:
            return ""
        limit = items()[current[0]].limit if current else 60
        if time.monotonic() - began > limit:
            return f"stopped after {limit} s"
    code = process.returncode
    return "" if code in (0, FAILED) else f"the process ended with {code}"


def missing(names: list[str], path: Path) -> list[str]:
    """The rows that the file lacks."""
    done = kept(path)
    return [name for name in names if name not in done]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=450, help="for all rows (450)")
    parser.add_argument("--quick", action="store_true", help="toy sizes, all rows anew")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name holds a text")
    parser.add_argument("--fresh", action="store_true", help="measure them again")
    parser.add_argument("--out", type=Path, help="the file (results/device.json)")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    home = Path(tempfile.gettempdir()) if given.quick else RESULTS
    path = given.out or home / "device.json"
    if given.child:
        return child(given.child, path, given.quick)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` ends the process
    names = [name for name in items() if any(text in name for text in given.only)]
    anew = set(names) if given.fresh or given.quick else set()
    done = {name: row for name, row in kept(path).items() if name not in anew}
    done = {name: row for name, row in done.items() if name != LEFT_OUT and "error" not in row}
    keep(path, done, list(items()))
    supervise(names, path, given.seconds, ["--quick"] if given.quick else [])


if __name__ == "__main__":
    main()

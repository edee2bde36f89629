"""Rows of a benchmark, each on disk as soon as it is made, so that a run may stop and go on."""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
Row = dict[str, object]


def options(doc: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--fresh", action="store_true", help="measure them again")
    parser.add_argument("--table", action="store_true", help="print the markdown, measure nothing")
    return parser


def measure(name: str, rows: dict[str, Callable[[], Row]], only: str, fresh: bool) -> None:
    """Make the rows that `results/<name>.json` lacks."""
    for row, make in rows.items():
        if only not in row or (row in read(name) and not fresh):
            continue
        start, before = time.perf_counter(), os.getloadavg()[0]
        made = make()
        seconds = time.perf_counter() - start
        made |= {"seconds": round(seconds, 1), "load_before": round(before, 1)}
        print(f"{row}: {json.dumps(made)}", flush=True)
        keep(RESULTS / f"{name}.json", {**read(name), row: made}, list(rows))


def read(name: str) -> dict[str, Row]:
    """The rows made so far."""
    return kept(RESULTS / f"{name}.json")


def kept(path: Path) -> dict[str, Row]:
    """The rows of a file, none where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def table(header: list[str], lines: list[list[str]]) -> str:
    """A markdown table with its columns aligned."""
    cells = [header, *lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
            for line in cells]  # fmt: skip
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def keep(path: Path, done: dict[str, Row], order: list[str]) -> None:
    """The whole file or nothing of it, one row a line, in the benchmark's order."""
    path.parent.mkdir(exist_ok=True)
    ranked = sorted(done, key=lambda row: order.index(row) if row in order else len(order))
    lines = ",\n".join(f"{json.dumps(row)}: {json.dumps(done[row])}" for row in ranked)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text("{\n" + lines + "\n}\n")
    os.replace(beside, path)

"""Prints the markdown of docs/performance.md, "On an accelerator", from results/device.json.

A floor is operations alone: the network's at the rate that a large matrix product has by default
(TF32 on a card that has it), those with data at the rate of their precision, no more of them than
the answer needs. The projection is that of `projection.py`, for one such chip.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import projection
from plan import CASES, PRECISIONS, TABLES, VERBS, items
from projection import short
from rows import RESULTS, kept, read, table
from run import LEFT_OUT

ABSENT = "not yet measured"
STEPS = 40  # of a sample, by default
BANDWIDTHS = {"H200": 4.8e12}  # bytes a second, where they are not an H100's
COUNTED = {"small U-Net": "network, 28 x 28 U-Net", "CIFAR U-Net": "network, CIFAR U-Net"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "device.json", help="the file")
    done = kept(parser.parse_args().out)
    left = done.pop(LEFT_OUT, {}).get("rows")
    parts = [
        (["large products and a copy", ""], machine_lines(done)),
        (["attribution's tables", "products", "seconds", "of the floor's rate", "projected, s",
          "measured over it", "error of scores"], table_lines(done)),
        (["network", "verb", "samples a second", "of the floor's rate", "projected",
          "measured over it", "trace + compile, s", "temporary, GB", "peak, GB"], verb_lines(done)),
        (["law, in float32", "error nearest to its bound", "bound"], law_lines(done)),
        (["black box, d", "image-like spectrum", "isotropic"], black_box_lines(done)),
        (["beside torch", "program", "samples a second", "ours over it", "first call, s"],
         torch_lines(done)),
    ]  # fmt: skip
    print("\n\n".join(table(head, list(lines)) for head, lines in parts))
    if left:
        print(f"\nLeft out for time: {'; '.join(left)}.")


Lines = Iterator[list[str]]


def trouble(done, name: str) -> str:
    """Why there is nothing to show of a row; empty where there is."""
    row = done.get(name, {"error": ABSENT})
    return row.get("error") or row.get("skipped") or ""


def machine_lines(done) -> Lines:
    if why := trouble(done, "machine"):
        yield ["device", why]
        return
    row = done["machine"]
    yield ["device; jax, torch", f"{row['device']}; {row['jax']}, {row['torch'] or 'none'}"]
    yield ["copy, GB/s", short(row["bandwidth"] / 1e9)]
    yield ["default, Tflop/s", short(row["rate"] / 1e12)]
    for precision in PRECISIONS:
        name = f"matrix product, {precision}"
        yield [f"{precision}, Tflop/s", trouble(done, name) or short(done[name]["rate"] / 1e12)]


def table_lines(done) -> Lines:
    for points, size in TABLES:
        for precision in PRECISIONS:
            name = f"tables, {points:,} x {size}, {precision}"
            start = [f"{points:,} x {size:,}", precision]
            if why := trouble(done, name):
                yield [*start, why, *[""] * 4]
                continue
            seconds, expected = done[name]["seconds"][0], projected_tables(done[name], precision)
            share = share_of(done, seconds, {precision: done[name]["operations"]})
            errors = f"errors of tables, d = {size}, {precision}"
            error = trouble(done, errors) or f"{done[errors]['errors'][0]:.1e}"
            yield [*start, short(seconds), share, short(expected), f"{seconds / expected:.2f}",
                   error]  # fmt: skip


def share_of(done, seconds: float, operations: dict[str, float]) -> str:
    """The floor over what was measured, of operations by the product whose rate they have."""
    if any(trouble(done, name_of(product)) for product in operations):
        return ""
    floor = sum(count / done[name_of(product)]["rate"] for product, count in operations.items())
    return f"{floor / seconds:.3f}"


def name_of(product: str) -> str:
    return "machine" if product == "default" else f"matrix product, {product}"


def projected_tables(row, precision: str) -> float:
    """Seconds, of the products that were counted for the projection."""
    counts, machine = read("projection"), chip(row["device"])
    samples, stages, points, size = row["sizes"]
    nearest = "tables, d = 784" if size < 2000 else "tables, d = 3072"
    accessed = samples * stages * points * counts[nearest]["bytes_an_entry"]
    rate = machine.rates.get(precision, machine.rates["bfloat16"] / 3)
    flops = projection.table_flops(*row["sizes"])
    return projection.roofline(flops, accessed, rate, machine.bandwidth)[0] / projection.EFFICIENCY


def chip(kind: str) -> projection.Machine:
    """One chip of the projection's, with this kind's bandwidth."""
    bandwidth = next((b for name, b in BANDWIDTHS.items() if name in kind), 3.35e12)
    return projection.Machine(kind, 1, projection.H100, bandwidth, 80e9)


def verb_lines(done) -> Lines:
    for case in CASES:
        for name, verb in VERBS.items():
            if why := trouble(done, f"{case}: {name}"):
                yield [case, name, why, *[""] * 6]
                continue
            row = done[f"{case}: {name}"]
            work = {"default": row["network_operations"], "float32": row["data_operations"]}
            seconds = row["seconds"][0]
            rate = row["samples"] * row["steps"] / STEPS / seconds
            expected = ["", ""]
            if name.startswith("sample_sensitivity, K") and case in COUNTED:
                network = read("projection")[COUNTED[case]]
                one = chip(row["device"])
                found = projection.projected_sweep(network, one, "TF32", verb.directions)
                expected = [short(found["samples"]), f"{rate / found['samples']:.2f}"]
            yield [case, name, short(rate), share_of(done, seconds, work), *expected,
                   f"{row['trace']} + {row['compile']}", gigabytes(row["temporary"]),
                   gigabytes(row["peak"])]  # fmt: skip


def gigabytes(count: int | None) -> str:
    return "" if count is None else short(count / 1e9)


def law_lines(done) -> Lines:
    for name in items():
        if not name.startswith("laws of"):
            continue
        if why := trouble(done, name):
            yield [name.removeprefix("laws of "), why, ""]
            continue
        for check, found in done[name].items():
            if isinstance(found, list):
                error, bound = found
                yield [check.replace("_", " "), f"{error:.1e}" + " FAILS" * (not error <= bound),
                       f"{bound:.1e}"]  # fmt: skip


def black_box_lines(done) -> Lines:
    for name in items():
        if not name.startswith("black box"):
            continue
        size = name.split("= ")[1]
        if why := trouble(done, name):
            yield [size, why, ""]
            continue
        spans = (done[name][kind] for kind in ("image-like", "isotropic"))
        yield [size, *(f"{low:g} to {high:g}" for low, high in spans)]


def torch_lines(done) -> Lines:
    for name in items():
        if not name.startswith("torch"):
            continue
        start = name.removeprefix("torch ")
        if why := trouble(done, name):
            yield [start, "", why, "", ""]
            continue
        row = done[name]
        for program, rate in row["samples_per_second"].items():
            over = f"{row['over'][program][1]:.2f}" if program in row["over"] else ""
            first = f"{row['first_call_seconds'][program]:g}"
            yield [start, program, f"{rate:g}", over, first]
        yield from ([start, program, why, "", ""] for program, why in row["failed"].items())


if __name__ == "__main__":
    main()

"""A PROJECTION, not a measurement: sweeps on 8 H100 and on 256 chips of TPU v5e.

    max(flops / rate, bytes / bandwidth) / 0.4

of chips that divide the work evenly, points already on them, and on the machine at hand, where the
same is measured besides (row "here"). What is counted:

- **Network.** The compiler counts the body of a loop once, whatever the number of steps (row
  "loops"), and the body of a flow's loop is one stage. So the flops and bytes of the compiled block
  of sensitivities are those of one stage, and are multiplied by the stages. They agree with
  `M (F + (K + 1) T)`, F a forward pass, T a tangent's, a probe among them. Attribution takes two
  forward passes and a pull a stage. F from the compiler leaves out products with the padding of a
  convolution; counted by hand with them it is 12.4 GFLOP for the CIFAR U-Net, and 11.7 without.
- **Tables.** `2 M S N d (3 + P)` flops; bytes from the compiled tables of one chunk by one block,
  the exact distances of the nearest points included, which are only taken at small noise.
- Bytes are the CPU compiler's, of float32 throughout; accelerators' compilers fuse more. Float32
  products are priced at Precision.HIGHEST, which the tables ask for: six bfloat16 passes on a TPU,
  plain float32 on H100. The faster rates are what the network's products get where they are asked
  for. No communication between chips is counted, and no reading of the points from a file.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from counting import product_flops
from networks import cifar, small
from points import states_and_points, tables_alone
from rows import measure, options, read, table
from scaling import (
    COLUMNS,
    KEY,
    PROCESS,
    STAGES,
    block,
    sensitivities,
)
from timing import in_turns, matrix_rate

import scoresens as ss
from scoresens import sweeps

# ------------------------------------------------------------------ counted numbers


def loops() -> dict:
    """Flops that the compiler counts of the same block, of 4 steps and of 40."""
    mesh = sweeps.mesh_of((1, 1))
    made = {steps: sensitivities(mesh, steps=steps).program(16, COLUMNS) for steps in (4, 40)}
    return {f"{steps} steps": program.cost_analysis()["flops"] for steps, program in made.items()}


def network_counts(score, shape) -> dict:
    """What one stage of a network takes, as `fixed + M each`: flops, bytes, temporary bytes."""
    x = jax.random.normal(KEY, (4, *shape))

    def forward(score, x):
        return jax.vmap(score, (None, 0))(jnp.float32(0.5), x)

    def tangent(score, x):
        return jax.jvp(functools.partial(forward, score), (x,), (x,))

    def adjoint(score, x):
        return jax.vjp(functools.partial(forward, score), x)[1](x)

    def flops(function):
        return jax.jit(function).lower(score, x[:1]).cost_analysis()["flops"]

    passes = flops(forward), flops(tangent) - flops(forward)
    block = sensitivity_counts(score, x)
    by_formula = 2 * (passes[0] + 3 * passes[1])
    counted = block["fixed"][0] + 2 * block["sample"][0] + 4 * block["direction"][0]
    return {
        "parameters": sum(
            leaf.size for leaf in jax.tree.leaves(score) if isinstance(leaf, jax.Array)
        ),
        "forward_flops": passes[0],
        "forward_flops_by_hand": product_flops(jax.make_jaxpr(forward)(score, x[:1]).jaxpr),
        "tangent_flops": passes[1],
        "sensitivity_over_formula": round(counted / by_formula, 4),
        "sensitivity": block,
        "forward": line_of(forward, score, x),
        "adjoint": line_of(adjoint, score, x),
    }


def sensitivity_counts(score, x) -> dict:
    """One stage of a block: `fixed + M (sample + K direction)`, from three compiled blocks."""
    question = sweeps.sensitivities(
        PROCESS, score, ss.add(x), base=None, mesh=sweeps.mesh_of((1, 1))
    )
    cells = ((2, 2), (4, 2), (2, 4))
    least, taller, wider = (costs_of(question.program(*cell)) for cell in cells)
    direction = (wider - least) / 4
    row = (taller - least) / 2
    found = {"fixed": least - 2 * row, "sample": row - 2 * direction, "direction": direction}
    return {name: [float(f"{v:.5g}") for v in values] for name, values in found.items()}


def line_of(function, score, x) -> dict:
    """A function of M samples: `fixed + M sample`."""
    few, more = (costs_of(jax.jit(function).lower(score, x[:m]).compile()) for m in (2, 4))
    row = (more - few) / 2
    found = {"fixed": few - 2 * row, "sample": row}
    return {name: [float(f"{v:.5g}") for v in values] for name, values in found.items()}


def costs_of(program) -> np.ndarray:
    """Flops, bytes read and written, temporary bytes."""
    cost = program.cost_analysis()
    held = program.memory_analysis().temp_size_in_bytes
    return np.array([cost["flops"], cost["bytes accessed"], held])


def table_counts(size: int) -> dict:
    """Flops over their formula, and bytes an entry, of the tables of one chunk by one block."""
    samples, stages, count = 16, 32, 2048
    given = states_and_points(samples, stages, count, size)
    flops, accessed, _ = costs_of(jax.jit(tables_alone(10)).lower(*given).compile())
    entries = samples * stages * count
    return {
        "flops_over_formula": round(float(flops / table_flops(samples, stages, count, size)), 4),
        "bytes_an_entry": round(float(accessed / entries), 1),
    }


def here() -> dict:
    """This machine's rates, and what it takes where the projection can be compared."""
    score, shape = cifar()
    add = ss.add(jax.random.normal(KEY, (2, *shape)))
    solve, mesh = ss.Solve(steps=1, throw=False), sweeps.mesh_of((1, 1))
    question = sweeps.sensitivities(PROCESS, score, add, base=None, mesh=mesh, solve=solve)
    array = jnp.zeros(2**25)
    copy = jax.jit(lambda x: x + 1)
    sizes = (16, STAGES, 8192, 784)
    programs = {
        "copy": lambda: copy(array),
        "U-Net": block(question, 2),
        "tables": functools.partial(tables_alone(10), *states_and_points(*sizes)),
    }
    times = {name: float(np.median(t)) for name, t in in_turns(programs, 3).items()}
    return {
        "rate": round(matrix_rate(2048, 2048, 2048)),
        "bandwidth": round(2 * array.nbytes / times["copy"]),
        "U-Net": {"samples": 2, "directions": 2, "stages": 2, "measured": times["U-Net"]},
        "tables": {"sizes": sizes, "measured": times["tables"]},
    }


# ------------------------------------------------------------------ projection: pure functions

EFFICIENCY = 0.4  # of both rates, assumed
BLOCK_ROWS = 16  # samples a chip at a time
QUERIES = 1000  # samples attributed


class Machine(NamedTuple):
    """So many chips: operations a second by precision, bytes a second, bytes."""

    name: str
    chips: int
    rates: dict[str, float]
    bandwidth: float
    memory: float


HIGHEST = "float32"  # at Precision.HIGHEST
H100 = {HIGHEST: 67e12, "TF32": 495e12, "bfloat16": 989e12}
V5E = {HIGHEST: 197e12 / 6, "bfloat16": 197e12}
MACHINES = (
    Machine("8 x H100 SXM", 8, H100, 3.35e12, 80e9),
    Machine("TPU v5e-256", 256, V5E, 819e9, 16e9),
)


def roofline(flops: float, accessed: float, rate: float, bandwidth: float) -> tuple[float, str]:
    """Seconds at full efficiency, and what binds."""
    return max((flops / rate, "operations"), (accessed / bandwidth, "bytes"))


def table_flops(samples, stages, points, dimensions, functionals=1):
    """`2 M S N d (3 + P)`."""
    return 2 * samples * stages * points * dimensions * (3 + functionals)


def projected_sweep(network: dict, machine: Machine, precision: str, directions: int) -> dict:
    """Samples x directions a second of all chips, each with blocks of 16 samples."""
    found = block_work(network, BLOCK_ROWS, directions)
    rate = machine.rates[precision]
    seconds, bound = roofline(found[0], found[1], rate, machine.bandwidth)
    samples = machine.chips * BLOCK_ROWS * EFFICIENCY / (STAGES * seconds)
    return {"samples": samples, "pairs": samples * directions, "bound": bound, "held": found[2]}


def block_work(network: dict, samples: int, directions: int) -> list[float]:
    """Flops, bytes and temporary bytes of one stage of a block."""
    parts = network["sensitivity"]
    each = zip(parts["fixed"], parts["sample"], parts["direction"], strict=True)
    return [fixed + samples * (one + directions * along) for fixed, one, along in each]


def projected_attribution(
    network: dict, entry: float, machine: Machine, precision: str, points: int, dimensions: int
) -> dict:
    """Seconds of tables and of network, of the top points of 1,000 samples.

    The points are divided by as many chips as it takes for them to fill half of a chip's memory at
    most, the samples among what chips remain; paths are walked once, divided among all chips.
    """
    parts = 1
    while points * dimensions * 4 / parts > machine.memory / 2:
        parts *= 2
    samples, own = -(-QUERIES // (machine.chips // parts)), -(-points // parts)
    entries = samples * STAGES * own
    work = table_flops(samples, STAGES, own, dimensions), entries * entry
    tables, bound = roofline(*work, machine.rates[HIGHEST], machine.bandwidth)
    walked = -(-QUERIES // machine.chips)
    paths = [
        network[part]["fixed"][i] + walked * network[part]["sample"][i]
        for part in ("forward", "adjoint")
        for i in (0, 1)
    ]
    walk = paths[0] + paths[2], paths[1] + paths[3]
    walks, _ = roofline(*walk, machine.rates[precision], machine.bandwidth)
    return {
        "mesh": f"{machine.chips // parts} x {parts}",
        "held": own * dimensions * 4,
        "tables": tables / EFFICIENCY,
        "network": STAGES * walks / EFFICIENCY,
        "bound": bound,
    }


# ------------------------------------------------------------------ rows and tables

BENCHMARKS = {
    "loops": loops,
    "network, CIFAR U-Net": lambda: network_counts(*cifar()),
    "network, 28 x 28 U-Net": lambda: network_counts(*small()),
    "tables, d = 784": lambda: table_counts(784),
    "tables, d = 3072": lambda: table_counts(3072),
    "here": here,
}


def main() -> None:
    given = options(__doc__ or "").parse_args()
    if not given.table:
        measure("projection", BENCHMARKS, given.only, given.fresh)
    print(tables())


def tables() -> str:
    """The markdown of `docs/performance.md`, of the rows that there are."""
    done = read("projection")
    parts = [
        (["counted", "value"], count_lines(done)),
        (["this machine", "measured, s", "roofline, s", "efficiency"], here_lines(done)),
        (["PROJECTION, CIFAR U-Net", "products in", "directions", "samples a second",
          "samples x directions a second", "bound by", "temporary GB a chip"], sweep_lines(done)),
        (["PROJECTION, top of 1,000 samples", "points", "samples x points", "GB of points a chip",
          "network's products", "tables, s", "bound by", "network, s", "together, s"],
         attribution_lines(done)),
    ]  # fmt: skip
    return "\n\n".join(table(head, found) for head, lines in parts if (found := list(lines)))


Lines = Iterator[list[str]]


def count_lines(done) -> Lines:
    for name, flops in done.get("loops", {}).items():
        if "steps" in name:
            yield [f"flops of a block of the digits, {name}", f"{flops:.4g}"]
    for name in ("CIFAR U-Net", "28 x 28 U-Net"):
        if row := done.get(f"network, {name}"):
            yield [f"{name}: parameters", f"{row['parameters']:,}"]
            for what in ("forward_flops", "forward_flops_by_hand", "tangent_flops"):
                yield [f"{name}: {what.replace('_', ' ')}", f"{row[what]:.4g}"]
            ratio = row["sensitivity_over_formula"]
            yield [f"{name}: flops of a block over 2 (F + 3 T)", str(ratio)]
    for size in (784, 3072):
        if row := done.get(f"tables, d = {size}"):
            yield [f"tables, d = {size}: flops over formula", str(row["flops_over_formula"])]
            yield [f"tables, d = {size}: bytes an entry", str(row["bytes_an_entry"])]


def here_lines(done) -> Lines:
    row, network = done.get("here"), done.get("network, CIFAR U-Net")
    counts = done.get("tables, d = 784")
    if not (row and network and counts):
        return
    own, sizes = row["U-Net"], row["tables"]["sizes"]
    a_stage = block_work(network, own["samples"], own["directions"])[:2]
    entries = math.prod(sizes[:3])
    works = {
        "U-Net": [own["stages"] * one for one in a_stage],
        "tables": [table_flops(*sizes), entries * counts["bytes_an_entry"]],
    }
    for name, work in works.items():
        ideal, _ = roofline(*work, row["rate"], row["bandwidth"])
        measured = row[name]["measured"]
        yield [name, f"{measured:.2f}", f"{ideal:.2f}", f"{ideal / measured:.2f}"]


def sweep_lines(done) -> Lines:
    network = done.get("network, CIFAR U-Net")
    for machine in MACHINES if network else ():
        for precision in machine.rates:
            for directions in (1, 8, 64):
                found = projected_sweep(network, machine, precision, directions)
                yield [machine.name, precision, str(directions), short(found["samples"]),
                       short(found["pairs"]), found["bound"],
                       f"{found['held'] / 1e9:.1f}"]  # fmt: skip


def attribution_lines(done) -> Lines:
    questions = ((1_000_000, 3072, "CIFAR U-Net"), (10_000_000, 784, "28 x 28 U-Net"))
    for machine in MACHINES:
        for points, size, name in questions:
            network, counts = done.get(f"network, {name}"), done.get(f"tables, d = {size}")
            for precision in machine.rates if network and counts else ():
                entry = counts["bytes_an_entry"]
                found = projected_attribution(network, entry, machine, precision, points, size)
                seconds = found["tables"], found["network"], found["tables"] + found["network"]
                told = [short(one) for one in seconds]
                yield [machine.name, f"{points:,} x {size}", found["mesh"],
                       f"{found['held'] / 1e9:.1f}", precision, told[0], found["bound"],
                       *told[1:]]  # fmt: skip


def short(value):
    """Three digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.10g}"


if __name__ == "__main__":
    main()

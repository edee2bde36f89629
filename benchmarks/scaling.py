"""How the cost of sweeps grows: with devices, samples, directions, points, dimensions and memory.

    devices       a block of sensitivities on 1, 2, 4 and 8 devices      the same block, and one of
                  and on meshes of 8, samples x directions               as many rows a device
    collectives   the compiled programs of 8 devices                     counted by name
    growth        time against M, K, N and d                             exponent; a + b n and R^2
    memory        of a compiled block, against its rows and columns      and what `layout_of` makes
                                                                         of a budget
    projection    a sweep and two attributions on 8 H100 and on 256 chips of TPU v5e: WRITTEN, from
                  counted numbers, NOT measured

Devices are virtual, each count in a process of its own. A machine of two cores shows what dividing
a block gains up to two devices, and beyond two its overhead alone; one device may use both cores
within a large operation. Compared programs run in turn within a process, compiled before; what is
reported are medians and quartiles over the turns, by two clocks: the wall's, and the processor time
of the process, which other work disturbs less.

Collectives are told apart by where they stand in the text of the compiled program: outside of all
loops, in any loop, and in a loop of the solve, which is one that evaluates the network: the
benchmark gives the network a name that the text keeps. Tables of data loop over blocks of points
too. A program that has one collective in such a loop and one outside shows that both are seen.

Exponents are fitted in log-log over the largest decade, lines over all.

The projection is `max(flops / rate, bytes / bandwidth) / 0.4`, of chips that divide the work
evenly, points already on them. What it counts:

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

import argparse
import functools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from attribution import in_turns
from flax import nnx
from jax.extend.core import jaxprs_in_params
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from rows import measure, options, read, table
from timing import matrix_rate

import scoresens as ss
from scoresens import datasets, functionals, sweeps
from scoresens.importers.unet2d import UNet2D
from scoresens.models import Denoiser, UNet, pretrained
from scoresens.tables import Levers, States, influences, posteriors

PROCESS = ss.VP()
KEY = jax.random.key(0)
TURNS = 9
STAGES = 2 * ss.Solve().steps

DEVICES = (1, 2, 4, 8)
MESHES = ((8, 1), (4, 2), (2, 4))
STRONG, WEAK, COLUMNS = 256, 32, 8  # rows of the same block, rows a device, directions

COUNTS = {
    "M": (8, 16, 32, 64, 128, 256, 512, 1024),
    "K": (1, 2, 4, 8, 16, 32, 64, 128),
    "N": (2048, 8192, 20480, 65536, 204800),
    "d": (32, 100, 320, 1000, 3200),
}
ROWS = (16, 64, 256, 1024)  # of a block whose memory is asked for
BUDGETS = (4, 16, 64, 256)  # MB

CIFAR = {  # that of ddpm-cifar10-32
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
    "block_out_channels": (128, 256, 256, 256), "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip


# ------------------------------------------------------------------ devices


def child(what: str, devices: int) -> dict:
    """What a process with so many virtual devices prints: their number is read at its start."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, __file__, "--child", what]
    environment = os.environ | {"XLA_FLAGS": flags.strip()}
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def speed() -> dict:
    """A block of the same rows, and one of as many rows a device, on all devices."""
    question, devices = sensitivities(sweeps.mesh_of()), jax.device_count()
    samples = {"strong": STRONG, "weak": WEAK * devices}
    times = in_turns({name: block(question, m) for name, m in samples.items()}, TURNS)
    return {name: {"samples": samples[name]} | spread_of(times[name]) for name in samples}


def meshes() -> dict:
    """The same block on meshes of other shapes, in turn."""
    programs = {
        f"{down} x {across}": block(sensitivities(sweeps.mesh_of((down, across))), STRONG)
        for down, across in MESHES
    }
    return {name: spread_of(found) for name, found in in_turns(programs, TURNS).items()}


def sensitivities(mesh: Mesh, columns: int = COLUMNS, steps: int | None = None) -> sweeps.Question:
    """Of the digits model, against its own law, a direction a digit."""
    solve = ss.Solve() if steps is None else ss.Solve(steps=steps)
    add = ss.add(digits()[:columns])
    return sweeps.sensitivities(PROCESS, named(mlp()), add, base=None, mesh=mesh, solve=solve)


def attributions(mesh: Mesh, count: int, top: int | None, steps: int) -> sweeps.Question:
    """Of the digits model, to so many digits with noise."""
    data, towards = ss.Points(many(count), bandwidth=1.0), functionals.inner_product(digits()[0])
    solve = ss.Solve(steps=steps)
    return sweeps.attributions(
        PROCESS, named(mlp()), data, towards, base=data, top=top, mesh=mesh, solve=solve
    )


def block(question: sweeps.Question, samples: int) -> Callable:
    """Asks for all directions of so many samples."""
    noise = PROCESS.sample_prior(KEY, (samples, *question.shape))
    keys, which = jax.random.split(KEY, samples), np.arange(question.directions)
    return lambda: question.ask(which, noise, keys if question.draws else None)


# ------------------------------------------------------------------ collectives

COLLECTIVES = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter)"
    r"(?:-start)?\("
)
HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
CALLS = re.compile(
    r"\b(?:body|condition|calls|to_apply|branch_computations|true_computation|false_computation"
    r"|called_computations)=\{?((?:%[\w.\-]+(?:, )?)+)"
)
LOOP = re.compile(r" while\(.*\bbody=%([\w.\-]+)")
NETWORK = "benchmarked_network"


def collectives() -> dict:
    """Of the programs of 8 devices, by name and place."""
    control = jax.jit(sharded_control(sweeps.mesh_of())).lower(jnp.ones((8, 4))).compile()
    made: dict = {"one in a loop, one outside": collectives_of(control.as_text())}
    for shape in MESHES:
        question = sensitivities(sweeps.mesh_of(shape), steps=4)
        name = f"sensitivities, {shape[0]} x {shape[1]}"
        made[name] = collectives_of(question.program(32, COLUMNS).as_text())
    for shape in MESHES:
        for top in (None, 10):
            name = f"attributions, {shape[0]} x {shape[1]}" + (", top 10" if top else "")
            made[name] = collectives_of_attributions(shape, top)
    return made


def collectives_of_attributions(shape: tuple[int, int], top: int | None) -> dict | str:
    """Counts, or why the mesh is refused. More points than a block has, so that tables loop."""
    try:
        question = attributions(sweeps.mesh_of(shape), 20_000, top, steps=4)
    except ValueError as refusal:
        return str(refusal)
    return collectives_of(question.program(32, 1).as_text())


def sharded_control(mesh: Mesh) -> Callable:
    """A network in a loop with a sum over devices in it, and one gathering outside."""

    def one(x):
        def step(_, x):
            with jax.named_scope(NETWORK):
                x = jnp.sin(x)
            return jax.lax.psum(x, "samples")

        return jax.lax.all_gather(jax.lax.fori_loop(0, 5, step, x), "samples")

    return jax.shard_map(one, mesh=mesh, in_specs=P("samples"), out_specs=P(), check_vma=False)


def collectives_of(text: str) -> dict:
    """Collectives of a compiled program: outside of loops, in loops, in loops of the network."""
    lines, called = computations(text)
    loops = {body for own in lines.values() for line in own for body in LOOP.findall(line)}
    inside = {body: reached(called, body) for body in loops}
    holding = {name for name, own in lines.items() if any(NETWORK in line for line in own)}
    solving = [body for body in loops if inside[body] & holding]
    looped = set().union(*inside.values())
    return {
        "loops": len(loops),
        "loops of the solve": len(solving),
        "outside of loops": counted(lines, lines.keys() - looped),
        "in loops": counted(lines, looped),
        "in loops of the solve": counted(lines, set().union(*(inside[body] for body in solving))),
    }


def computations(text: str) -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    """The lines of each computation of a program, and the computations that it calls."""
    lines: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := HEAD.match(line):
            lines[name := found.group(1)] = []
        elif lines and line.startswith(" "):
            lines[name].append(line)
    called = {
        name: {one.strip("% ") for line in own for found in CALLS.findall(line)
               for one in found.split(",")}
        for name, own in lines.items()
    }  # fmt: skip
    return lines, called


def reached(called: dict[str, set[str]], start: str) -> set[str]:
    """A computation and all that it calls, directly or not."""
    seen, left = set(), [start]
    while left:
        if (name := left.pop()) not in seen and name in called:
            seen.add(name)
            left += called[name]
    return seen


def counted(lines: dict[str, list[str]], names) -> dict[str, int]:
    """How many collectives of each name stand in some of the computations."""
    found = [kind for name in names for line in lines[name] for kind in COLLECTIVES.findall(line)]
    return {kind: found.count(kind) for kind in sorted(set(found))}


# ------------------------------------------------------------------ growth


def growth(letter: str, made: Callable[[int], Callable], turns: int) -> dict:
    """Time against one size."""
    counts = COUNTS[letter]
    times = in_turns({str(count): made(count) for count in counts}, turns)
    seconds = np.stack([times[str(count)] for count in counts])  # [counts, turns, clocks]
    fits = {clock: fitted(counts, seconds[..., i]) for i, clock in enumerate(CLOCKS)}
    return {"letter": letter, "at": list(counts), **fits}


def fitted(counts, seconds) -> dict:
    """The exponent over the largest decade and a line over all, for each turn; R^2 of the line
    through the medians."""
    counts, middle = np.array(counts, float), np.median(seconds, 1)
    last = counts >= 0.99 * counts[-1] / 10
    exponents = np.polyfit(np.log(counts[last]), np.log(seconds[last]), 1)[0]
    slopes, offsets = np.polyfit(counts, seconds, 1)
    left = middle - np.polyval(np.polyfit(counts, middle, 1), counts)
    return {
        "ms": [round(1e3 * float(m), 2) for m in middle],
        "exponent": quartiles(exponents, 3),
        "offset_ms": quartiles(1e3 * offsets, 2),
        "slope_us": quartiles(1e6 * slopes, 2),
        "R2": round(float(1 - np.sum(left**2) / np.sum((middle - middle.mean()) ** 2)), 5),
    }


def of_samples(count: int) -> Callable:
    """One direction of M samples."""
    return block(sensitivities(sweeps.mesh_of((1, 1)), columns=1), count)


def of_directions(count: int) -> Callable:
    """K directions of 16 samples."""
    return block(sensitivities(sweeps.mesh_of((1, 1)), columns=count), 16)


def of_points(count: int) -> Callable:
    """`attribute` of 16 samples to N points: the path, whatever N is, and the tables."""
    data, towards = ss.Points(many(count), bandwidth=1.0), functionals.inner_product(digits()[0])
    noise = PROCESS.sample_prior(KEY, (16, *data.shape))
    return lambda: ss.attribute(PROCESS, mlp(), data, towards, noise, base=data, top=10)


def of_dimensions(size: int) -> Callable:
    """The tables alone, 16 samples by 8,192 points of d numbers."""
    return functools.partial(tables_alone(10), *states_and_points(16, STAGES, 8192, size))


def tables_alone(top: int | None) -> Callable:
    """Posteriors and influences of states against points."""

    def run(data, states, omega):
        return influences(data, states, Levers(omega, *posteriors(data, states)), top=top)

    return run


def states_and_points(samples, stages, count, size):
    """Random points, states around them at falling noise levels, a functional's gradient there.
    The points are bumps wide enough for distances to be taken by their expansion."""
    keys = jax.random.split(KEY, 3)
    points = jax.random.normal(keys[0], (count, size))
    tau = 150.0 ** jnp.linspace(1, -1, stages)
    noise = jax.random.normal(keys[1], (stages, samples, size))
    states = States(tau, points[:samples] + tau[:, None, None] * noise)
    omega = jax.random.normal(keys[2], (stages, samples, 1, size))
    return ss.Points(points, bandwidth=0.3 * size**0.5), states, omega


# ------------------------------------------------------------------ memory


def memory() -> dict:
    """MB of a compiled block beside its arguments, one device."""
    mesh = sweeps.mesh_of((1, 1))
    made: dict = {}
    for columns in (1, 16):
        question = sensitivities(mesh, columns)
        for rows in ROWS:
            made[f"sensitivities, {rows} x {columns}"] = megabytes(question, rows, columns)
    for top in (None, 10):
        question = attributions(mesh, 1797, top, ss.Solve().steps)
        for rows in ROWS:
            name = f"attributions, {rows}" + (", top 10" if top else "")
            made[name] = megabytes(question, rows, 1)
    return made


def layouts() -> dict:
    """What `layout_of` chooses for a budget, and what the compiler then says the block takes."""
    mesh = sweeps.mesh_of()
    questions = {
        "sensitivities": sensitivities(mesh, 16),
        "attributions": attributions(sweeps.mesh_of(), 1797, None, ss.Solve().steps),
    }
    return {name: layouts_of(question) for name, question in questions.items()}


def layouts_of(question: sweeps.Question) -> dict:
    """Rows, columns, MB, and the share of the budget, by budget."""
    compiled = functools.cache(question.program)  # the two sizes that every choice looks at, once
    question, made = question._replace(program=compiled), {}
    for budget in BUDGETS:
        found = sweeps.layout_of(question, seeds=1, samples=4096, memory=budget * 1e6)
        taken = megabytes(question, found.rows, found.columns)
        share = round(taken / budget, 3)
        made[str(budget)] = {"rows": found.rows, "columns": found.columns, "MB": taken,
                             "share": share}  # fmt: skip
    return made


def megabytes(question, rows, columns):
    return round(sweeps.bytes_of(question, rows, columns) / 1e6, 2)


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


def product_flops(jaxpr) -> int:
    """Operations of all matrix products and convolutions, padding counted as data."""
    total = 0
    for equation in jaxpr.eqns:
        out, name = equation.outvars[0].aval, equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * out.size * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            channels = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * out.size * kernel.size // channels
        total += sum(map(product_flops, jaxprs_in_params(equation.params)))
    return total


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
    times = {name: float(np.median(t[:, 0])) for name, t in in_turns(programs, 3).items()}
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


# ------------------------------------------------------------------ inputs


@functools.cache
def mlp():
    """The digits' residual MLP, 0.13 M parameters."""
    return ss.from_canonical(PROCESS, pretrained("digits")[0])


def cifar():
    """The U-Net of ddpm-cifar10-32, random, and the shape of its samples."""
    return ss.from_noise(PROCESS, UNet2D(CIFAR, rngs=nnx.Rngs(0))), (32, 32, 3)


def small():
    """The package's U-Net on images of 28 x 28, random."""
    network = Denoiser(UNet((28, 28, 1), rngs=nnx.Rngs(0)), 0.5)
    return ss.from_canonical(PROCESS, network), (28, 28, 1)


def named(score):
    """A score whose operations bear a name in the program's text."""
    return jax.tree_util.Partial(_named, score)


def _named(score, t, x):
    with jax.named_scope(NETWORK):
        return score(t, x)


@functools.cache
def digits():
    return jnp.asarray(datasets.load("digits").images)


@functools.cache
def many(count):
    """So many digits with noise."""
    which = jax.random.randint(KEY, (count,), 0, len(digits()))
    return digits()[which] + 0.1 * jax.random.normal(KEY, (count, *digits().shape[1:]))


CLOCKS = ("wall", "processor")


def spread_of(times):
    """Quartiles in milliseconds, by each clock."""
    return {clock: quartiles(1e3 * times[:, i], 1) for i, clock in enumerate(CLOCKS)}


def quartiles(values, digits):
    return [round(float(q), digits) for q in np.quantile(values, (0.25, 0.5, 0.75))]


# ------------------------------------------------------------------ rows and tables

CHILDREN = {"speed": speed, "meshes": meshes, "collectives": collectives, "layouts": layouts}
BENCHMARKS: dict[str, Callable[[], dict]] = {
    **{f"{n} devices": functools.partial(child, "speed", n) for n in DEVICES},
    "meshes": lambda: child("meshes", 8),
    "collectives": lambda: child("collectives", 8),
    "growth M": lambda: growth("M", of_samples, 9),
    "growth K": lambda: growth("K", of_directions, 9),
    "growth N": lambda: growth("N", of_points, 5),
    "growth d": lambda: growth("d", of_dimensions, 5),
    "memory": memory,
    "layouts, 1 device": layouts,
    "layouts, 8 devices": lambda: child("layouts", 8),
    "loops": loops,
    "network, CIFAR U-Net": lambda: network_counts(*cifar()),
    "network, 28 x 28 U-Net": lambda: network_counts(*small()),
    "tables, d = 784": lambda: table_counts(784),
    "tables, d = 3072": lambda: table_counts(3072),
    "here": here,
}


def main() -> None:
    parser: argparse.ArgumentParser = options(__doc__)
    parser.add_argument("--child", choices=CHILDREN, help="one measurement on all devices, printed")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child]()))
    elif args.table:
        print(tables())
    else:
        measure("scaling", BENCHMARKS, args.only, args.fresh)


def tables() -> str:
    """The markdown of `docs/performance.md`, of the rows that there are."""
    done = read("scaling")
    parts = [
        (["devices", "rows", "wall, ms", "samples a second", "over one device", "processor, ms"],
         device_lines(done)),
        (["8 devices, samples x directions", "wall, ms", "processor, ms"], mesh_lines(done)),
        (["8 devices", "loops (solve's)", "outside of loops", "in loops", "in the solve"],
         collective_lines(done)),
        (["against", "at", "wall, ms", "exponent, last decade", "line, ms", "R²"],
         growth_lines(done)),
        (["MB beside arguments", *map(str, ROWS)], memory_lines(done)),
        (["budget, MB", "block", "MB by the compiler", "share of the budget"], layout_lines(done)),
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


def device_lines(done) -> Lines:
    for kind in ("strong", "weak"):
        for devices in DEVICES:
            if row := done.get(f"{devices} devices"):
                own = row[kind]
                first = done.get("1 devices", row)[kind]
                rate, alone = (r["samples"] / r["wall"][1] * 1e3 for r in (own, first))
                yield [f"{kind}, {devices}", str(own["samples"]), spread(own["wall"]),
                       f"{rate:.0f}", f"{rate / alone:.2f}", spread(own["processor"])]  # fmt: skip


def mesh_lines(done) -> Lines:
    for name, row in done.get("meshes", {}).items():
        if isinstance(row, dict):
            yield [name, *(spread(row[clock]) for clock in CLOCKS)]


def collective_lines(done) -> Lines:
    def told(counts):
        return ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "none"

    for name, row in done.get("collectives", {}).items():
        if isinstance(row, dict):
            places = ("outside of loops", "in loops", "in loops of the solve")
            number = f"{row['loops']} ({row['loops of the solve']})"
            yield [name, number, *(told(row[place]) for place in places)]
        elif isinstance(row, str):
            yield [name, "refused", "", "", ""]


def growth_lines(done) -> Lines:
    for letter in COUNTS:
        if row := done.get(f"growth {letter}"):
            fit = row["wall"]
            line = f"{fit['offset_ms'][1]:.1f} + {fit['slope_us'][1] / 1e3:.4g} {letter}"
            yield [letter, ", ".join(map(str, row["at"])), ", ".join(map(str, fit["ms"])),
                   spread(fit["exponent"], 2), line, str(fit["R2"])]  # fmt: skip


def memory_lines(done) -> Lines:
    row = done.get("memory", {})
    kinds = {"sensitivities, {} x 1": "sensitivities, 1 direction",
             "sensitivities, {} x 16": "sensitivities, 16 directions",
             "attributions, {}": "attributions, 1,797 points",
             "attributions, {}, top 10": "attributions, top 10 of 1,797 points"}  # fmt: skip
    for kind, name in kinds.items() if row else ():
        yield [name, *(str(row[kind.format(rows)]) for rows in ROWS)]


def layout_lines(done) -> Lines:
    for devices in ("1 device", "8 devices"):
        for kind, budgets in done.get(f"layouts, {devices}", {}).items():
            for budget, found in budgets.items() if isinstance(budgets, dict) else ():
                yield [f"{kind}, {devices}, {budget}", f"{found['rows']} x {found['columns']}",
                       str(found["MB"]), f"{found['share']:.2f}"]  # fmt: skip


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


def spread(values, digits=1):
    low, middle, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low}–{high})"


if __name__ == "__main__":
    main()

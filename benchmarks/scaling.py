"""How the cost of sweeps grows: with devices, samples, directions, points, dimensions and memory.

    devices       a block of sensitivities on 1, 2, 4 and 8 devices      the same block, and one of
                  and on meshes of 8, samples x directions               as many rows a device
    collectives   the compiled programs of 8 devices                     counted by name
    growth        time against M, K, N and d                             exponent; a + b n and R^2
    memory        of a compiled block, against its rows and columns      and what `layout_of` makes
                                                                         of a budget

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
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from points import states_and_points, tables_alone
from rows import measure, options, read, table
from timing import by_both_clocks

import scoresens as ss
from scoresens import datasets, sweeps
from scoresens.models import pretrained
from scoresens.sensitivity import functionals

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
    times = by_both_clocks({name: block(question, m) for name, m in samples.items()}, TURNS)
    return {name: {"samples": samples[name]} | spread_of(times[name]) for name in samples}


def meshes() -> dict:
    """The same block on meshes of other shapes, in turn."""
    programs = {
        f"{down} x {across}": block(sensitivities(sweeps.mesh_of((down, across))), STRONG)
        for down, across in MESHES
    }
    return {name: spread_of(found) for name, found in by_both_clocks(programs, TURNS).items()}


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
    noise = PROCESS.sample_prior((samples, *question.shape), key=KEY)
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
    times = by_both_clocks({str(count): made(count) for count in counts}, turns)
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
    noise = PROCESS.sample_prior((16, *data.shape), key=KEY)
    return lambda: ss.attribute(PROCESS, mlp(), data, towards, noise, base=data, top=10)


def of_dimensions(size: int) -> Callable:
    """The tables alone, 16 samples by 8,192 points of d numbers."""
    return functools.partial(tables_alone(10), *states_and_points(16, STAGES, 8192, size))


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
    """Rows, columns, MB, and the share of the budget, by budget; or why there is no block."""
    compiled = functools.cache(question.program)  # the two sizes that every choice looks at, once
    question, made = question._replace(program=compiled), {}
    for budget in BUDGETS:
        try:
            found = sweeps.layout_of(question, seeds=1, samples=4096, memory=budget * 1e6)
        except ValueError as refusal:
            made[str(budget)] = {"refused": str(refusal)}
            continue
        taken = megabytes(question, found.rows, found.columns)
        share = round(taken / budget, 3)
        made[str(budget)] = {"rows": found.rows, "columns": found.columns, "MB": taken,
                             "share": share}  # fmt: skip
    return made


def megabytes(question, rows, columns):
    return round(sweeps.bytes_of(question, rows, columns) / 1e6, 2)


# ------------------------------------------------------------------ inputs


@functools.cache
def mlp():
    """The digits' residual MLP, 0.13 M parameters."""
    return ss.from_canonical(PROCESS, pretrained("digits")[0])


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
                name = f"{kind}, {devices}, {budget}"
                if "refused" in found:
                    yield [name, "refused", "", ""]
                    continue
                yield [name, f"{found['rows']} x {found['columns']}", str(found["MB"]),
                       f"{found['share']:.2f}"]  # fmt: skip


def spread(values, digits=1):
    low, middle, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low}–{high})"


if __name__ == "__main__":
    main()

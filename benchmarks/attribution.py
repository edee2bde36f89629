"""What attribution costs: time over sampling, rate of the tables, memory, forward mode, growth.

    digits    one functional to 1,797 points      over sampling + log-likelihood, same grid, noise
    large     one functional to 60,000 points     the same
    rate      the tables alone, 60,000 points     share of the rate of a float32 matrix product
    memory    points in a file, the top 10 kept   growth of a fresh process, against N
    forward   all 1,797 scores in forward mode    `sample_sensitivity` of a part, scaled
    scaling   time against M, N and P             a line through the times, and its R^2

Compiled first; then the compared programs run in turn, in one process, and each ratio is taken
within a turn: what is reported is the median and its quartiles over the turns. Two clocks: the
wall's, and the processor time of the process, which other work on the machine disturbs less.

Floor: the path down and its adjoint evaluate the network as often as sampling does, and pull one
gradient back; the tables are `2 M S N d (1 + P)` operations, S = 2 steps.
"""

import functools
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rows import measure, options, read, table
from timing import by_both_clocks

import scoresens as ss
from scoresens import datasets
from scoresens.models import ModelSettings, build, pretrained
from scoresens.sensitivity import functionals
from scoresens.sensitivity.tables import States, influences

PROCESS = ss.VP()
KEY = jax.random.key(0)
TRACE = ss.Hutchinson(1)
SAMPLES = 16
SIZES = (10_000, 60_000, 240_000)
STEPS_OF_MEMORY = 10  # memory does not wait for the end of a long path


# ------------------------------------------------------------------ over sampling + log-likelihood


def digits() -> dict:
    """The bundled network, the data it was trained on, and two choices of the base."""
    score, images = _digits()
    noise, towards = _noise(SAMPLES, images), functionals.inner_product(images[0])
    who = functools.partial(ss.attribute, PROCESS, score, _data(images), towards, noise)
    bare = functools.partial(ss.attribute, PROCESS, score, ss.Points(images), towards, noise)
    times = by_both_clocks(
        {
            "likelihood": _likelihood(score, noise),
            "base=data": who,
            "base=data, top 10": lambda: who(top=10),
            "base=data, profile": lambda: who(profile=True),
            "base=data, no bandwidth": bare,
            "base=None": lambda: who(base=None, trace=TRACE, key=KEY),
            "sampling": lambda: ss.sample_ode(PROCESS, score, noise),
        },
        31,
    )
    return _over(times, "likelihood")


def large() -> dict:
    """60,000 images of 784 pixels; an untrained network, of which only the time matters."""
    images = _fashion()
    settings = ModelSettings("mlp", 512, 4)
    network = build(settings, images.shape[1:], 0.5, key=KEY)
    score, noise = ss.from_canonical(PROCESS, network), _noise(SAMPLES, images)
    towards = functionals.inner_product(images[0])
    who = functools.partial(ss.attribute, PROCESS, score, _data(images), towards, noise)
    times = by_both_clocks({"likelihood": _likelihood(score, noise), "base=data": who}, 3)
    return _over(times, "likelihood") | {"points": len(images)}


def rate(bandwidth: float | None) -> dict:
    """The tables alone at 60,000 points, as a share of the rate of a matrix product of their rows
    by 2048 points (8192 at a time run slower)."""
    images = _fashion()
    data = ss.Points(images) if bandwidth == 0 else _data(images)
    states, omega = _path_like(images)
    count, samples, dim = states.x.shape
    left, right = states.x.reshape(-1, dim), jnp.asarray(images[:2048].reshape(2048, -1).T)
    product, repeats = jax.jit(jnp.dot), 40

    def products():
        return [product(left, right) for _ in range(repeats)]

    times = by_both_clocks(
        {
            "product": products,
            "product again": products,
            "influences": lambda: influences(data, states, omega),
            "influences, top 10": lambda: influences(data, states, omega, top=10),
            "product at last": products,
        },
        3,
    )
    alone = sum(times[name] for name in times if name.startswith("product")) / 3
    per_second = 2 * repeats * left.shape[0] * dim * right.shape[1] / alone
    work = 4 * samples * count * len(images) * dim  # two products
    shares = {name: work / times[name] / per_second for name in times if name[:2] == "in"}
    return {
        "gigaflops": [round(float(np.median(r)) / 1e9) for r in per_second.T],
        **{name: _spread(share) for name, share in shares.items()},
        "bandwidth": round(float(data.bandwidth), 3),
        "seconds_of_tables": round(float(np.median(times["influences"][:, 0])), 2),
    }


# ------------------------------------------------------------------ forward mode


def forward() -> dict:
    """All scores by `sample_sensitivity`, K tangents at a time, a part of them measured."""
    score, images = _digits()
    noise, towards = _noise(SAMPLES, images), functionals.inner_product(images[0])
    data = _data(images)
    push = functools.partial(ss.sample_sensitivity, PROCESS, score)
    programs: dict[str, Callable] = {
        "adjoint": functools.partial(ss.attribute, PROCESS, score, data, towards, noise)
    }
    for count in (64, 256):
        change = ss.add(images[:count])
        programs[str(count)] = functools.partial(push, change, noise, base=data)
    times = by_both_clocks(programs, 5)
    made = {
        f"speed-up, {k} tangents at a time": _spread(
            len(images) / int(k) * times[k] / times["adjoint"]
        )
        for k in ("64", "256")
    }
    return made | {"milliseconds": {k: _milliseconds(t) for k, t in times.items()}}


# ------------------------------------------------------------------ growth


def scaling(letter: str) -> dict:
    """Time against one of M, N and P, the others fixed."""
    score, images = _digits()
    rng = np.random.default_rng(0)
    many = np.asarray(images)[rng.integers(0, len(images), 16 * len(images))]
    many = jnp.asarray(many + 0.1 * rng.normal(size=many.shape).astype(np.float32))
    basis = jnp.asarray(rng.normal(size=(8, images[0].size)), jnp.float32)
    counts = {"M": (8, 16, 32, 64), "N": (3594, 7188, 14376, 28752), "P": (1, 2, 4, 8)}[letter]

    def program(count):
        size = {"M": SAMPLES, "N": 1797, "P": 1} | {letter: count}
        rows = basis[: size["P"]]
        towards = functionals.components(rows.reshape(-1, *images.shape[1:]))
        data = ss.Points(many[: size["N"]], bandwidth=1.0)
        noise = _noise(size["M"], images)
        return functools.partial(ss.attribute, PROCESS, score, data, towards, noise)

    times = by_both_clocks({str(count): program(count) for count in counts}, 15)
    made: dict = {}
    for clock, name in enumerate(("wall", "processor")):
        middle = np.array([np.median(times[str(count)][:, clock]) for count in counts]) * 1e3
        slope, offset = np.polyfit(counts, middle, 1)
        left = middle - slope * np.array(counts) - offset
        fit = 1 - np.sum(left**2) / np.sum((middle - middle.mean()) ** 2)
        made[name] = {
            "ms": [round(float(m), 1) for m in middle],
            "slope_ms": float(f"{slope:.3g}"),
            "offset_ms": round(float(offset), 1),
            "R2": round(float(fit), 4),
        }
    return {"at": list(counts), **made}


# ------------------------------------------------------------------ memory


def memory() -> dict:
    """MB that a fresh process grows by while it attributes to N points in a file, and what the
    compiled program asks for where they are on the device."""
    made: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in SIZES:
            command = [sys.executable, __file__, "--grown-by", str(count), "--folder", folder]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            made[f"host, top 10, N={count}"] = round(float(out.split()[-1]), 1)
    for count in SIZES:
        made[f"device, dense, N={count}"] = _compiled(count, None)
        made[f"device, top 10, N={count}"] = _compiled(count, 10)
    return made


def grown_by(count: int, folder: Path) -> float:
    """MB of anonymous memory, the pages of the file not counted, above what there was before."""
    data = _file(count, folder)
    noise = jnp.zeros((SAMPLES, *data.shape))

    def run(data):
        towards, solve = functionals.pixel(0), ss.Solve(steps=STEPS_OF_MEMORY)
        found = ss.attribute(PROCESS, _gaussian(), data, towards, noise, top=10, solve=solve)
        return jax.block_until_ready(found)

    peak, done = [0.0], threading.Event()

    def watch():
        while not done.wait(0.005):
            peak[0] = max(peak[0], _anonymous())

    run(ss.Points.on_host(np.asarray(data.points[:2049]), bandwidth=data.bandwidth))  # compiles
    before = _anonymous()
    watcher = threading.Thread(target=watch)
    watcher.start()
    run(data)
    done.set()
    watcher.join()
    return peak[0] - before


def _file(count, folder):
    """N points of 784 dimensions in a memory map, written a block at a time."""
    path, rng = folder / f"{count}.npy", np.random.default_rng(0)
    shape = (count, 784)
    whole = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for start in range(0, count, 4096):
        rows = whole[start : start + 4096]
        rows[:] = rng.normal(size=rows.shape)
    whole.flush()
    del whole
    return ss.Points.on_host(np.load(path, mmap_mode="r"), bandwidth=5.0)


def _compiled(count, top):
    """Temporary MB of the compiled program, and MB of its results."""

    def run(points, noise):
        data, solve = ss.Points(points, bandwidth=5.0), ss.Solve(steps=STEPS_OF_MEMORY)
        towards = functionals.pixel(0)
        return ss.attribute(PROCESS, _gaussian(), data, towards, noise, top=top, solve=solve)

    given = [jax.ShapeDtypeStruct((n, 784), jnp.float32) for n in (count, SAMPLES)]
    stats = jax.jit(run).lower(*given).compile().memory_analysis()
    return [round(b / 1e6, 1) for b in (stats.temp_size_in_bytes, stats.output_size_in_bytes)]


def _gaussian():
    """A score that keeps nothing: that of N(0, I)."""
    return jax.tree_util.Partial(_minus)


def _minus(t, x):
    return -x


def _anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1e3
    raise RuntimeError("/proc/self/status has no RssAnon")


# ------------------------------------------------------------------ inputs and outputs


def _likelihood(score, noise):
    return lambda: ss.sample_ode(PROCESS, score, noise, trace=TRACE, key=KEY)


def _over(times, reference):
    made = {name: _spread(t / times[reference]) for name, t in times.items() if name != reference}
    return made | {"milliseconds": {name: _milliseconds(t) for name, t in times.items()}}


def _spread(ratios):
    """Quartiles, by each clock."""
    quartiles = np.quantile(ratios, (0.25, 0.5, 0.75), axis=0)
    return {
        clock: [round(float(q), 3) for q in column]
        for clock, column in zip(("wall", "processor"), quartiles.T, strict=True)
    }


def _milliseconds(times):
    return [round(1e3 * float(m), 1) for m in np.median(times, 0)]


@functools.cache
def _digits():
    network, _ = pretrained("digits")
    return ss.from_canonical(PROCESS, network), jnp.asarray(datasets.load("digits").images)


@functools.cache
def _fashion():
    return jnp.asarray(datasets.load("fashion-mnist").images)


@functools.cache
def _bandwidth(count):
    images = _fashion() if count == 60_000 else _digits()[1]
    return ss.default_bandwidth(images)


def _data(images):
    return ss.Points(images, bandwidth=_bandwidth(len(images)))


def _noise(samples, images):
    return PROCESS.sample_prior((samples, *images.shape[1:]), key=KEY)


def _path_like(images):
    """States around data points at the 80 noise levels of the default path, and a functional's
    gradient there."""
    nodes = np.linspace(150 ** (1 / 7), 0.002 ** (1 / 7), 41) ** 7
    tau = np.stack([nodes[:-1], nodes[1:]], 1).reshape(-1)
    rng, flat = np.random.default_rng(0), np.asarray(images).reshape(len(images), -1)
    shape = (len(tau), SAMPLES, flat.shape[1])
    x = flat[:SAMPLES] + tau[:, None, None] * rng.normal(size=shape)
    omega = rng.normal(size=(*shape[:2], 1, shape[2]))
    states = States(jnp.asarray(tau, jnp.float32), jnp.asarray(x, jnp.float32))
    return states, jnp.asarray(omega, jnp.float32)


ROWS: dict[str, Callable[[], dict]] = {
    "digits": digits,
    "rate": lambda: rate(None),
    "rate, no bandwidth": lambda: rate(0.0),
    "large": large,
    "forward": forward,
    "memory": memory,
    "scaling M": lambda: scaling("M"),
    "scaling N": lambda: scaling("N"),
    "scaling P": lambda: scaling("P"),
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--grown-by", type=int, help="for memory: one run, its growth in MB")
    parser.add_argument("--folder", type=Path, help="where its points are written")
    args = parser.parse_args()
    if args.grown_by:
        print(grown_by(args.grown_by, args.folder))
    elif args.table:
        print(tables())
    else:
        measure("attribution", ROWS, args.only, args.fresh)


def tables() -> str:
    """The markdown of `docs/performance.md`."""
    done = read("attribution")

    def spread(values, clock):
        low, middle, high = values[clock]
        return f"{middle:.2f} ({low:.2f}–{high:.2f})"

    def lines(row, what, asked=""):
        found = done.get(row, {})
        names = [name for name, v in found.items() if isinstance(v, dict) and "wall" in v]
        return [
            [
                f"{what}: {n}",
                spread(found[n], "wall"),
                spread(found[n], "processor"),
                asked if n != "sampling" else "",
            ]
            for n in names
        ]

    header = ["median (quartiles)", "wall", "processor", "asked"]
    ratios = lines("digits", "digits, N = 1,797", "<= 2.5") + lines("large", "N = 60,000", "")
    shares = lines("rate", "bandwidth 3.4", ">= 0.6") + lines(
        "rate, no bandwidth", "no bandwidth", ">= 0.6"
    )
    kept = {name: v for name, v in done.get("memory", {}).items() if "N=" in name}
    sizes = [[f"{count:,}"] for count in SIZES]
    for line, count in zip(sizes, SIZES, strict=True):
        for what in ("host, top 10", "device, top 10", "device, dense"):
            value = kept.get(f"{what}, N={count}", "")
            line.append(" + ".join(map(str, value)) if isinstance(value, list) else str(value))
    fits = [
        [letter, ", ".join(map(str, row["at"])), ", ".join(map(str, row[clock]["ms"])), clock,
         f"{row[clock]['offset_ms']} + {row[clock]['slope_ms']} {letter}", str(row[clock]["R2"])]
        for letter in "MNP" if (row := done.get(f"scaling {letter}"))
        for clock in ("wall", "processor")
    ]  # fmt: skip
    parts = [
        table(["over sampling + log-likelihood, " + header[0], *header[1:]], ratios),
        table(["share of a matrix product's rate, " + header[0], *header[1:]], shares),
        table(
            ["forward mode over the adjoint", *header[1:3]],
            [line[:3] for line in lines("forward", "N = 1,797")],
        ),
        table(["N, MB", "in a file, top 10", "device, top 10", "device, dense"], sizes),
        table(["", "at", "ms", "clock", "fit, ms", "R²"], fits),
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()

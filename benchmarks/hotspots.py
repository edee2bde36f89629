"""Where the time of the default verbs goes, by JAX's profiler: matrix products and the rest.

    products    thunks that hold a matrix product (XLA's "dot" and "ynn" ones)
    other       all other thunks of the compiled programs: activations, norms, kernels, ranks
    a call      of one sample and one step: checks, keys, dispatch, little else

The digits model, M = 64 samples, default settings, compiled before. Shares are of the thunks' time
in one call with the profiler; milliseconds are medians of calls without it.

And of the small U-Net: milliseconds of processor time an evaluation, in a loop as verbs have it,
over its floor (its operations at the rate of a large matrix product), and shares by what a thunk
does: convolutions (with products of single pixels), reductions of the norms, activations (with what
is fused with them), joins of the way up to the way down, and the rest, which adds and averages.
"""

import collections
import functools
import gzip
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from networks import small
from rows import measure, options, read, table
from timing import by_both_clocks, in_turns

import scoresens as ss
from scoresens import datasets
from scoresens.models import pretrained
from scoresens.sensitivity.functionals import inner_product

PROCESS = ss.VP()
KEY = jax.random.key(0)
SAMPLES = 64
CALLS = 15
EVALUATIONS = 4
SIZES = ((28, 64), (28, 16), (16, 64), (16, 16))  # pixels a side, samples
PARTS = {  # the first of these that a thunk has; as XLA names its operations
    "convolutions": ("convolution(", " dot("),
    "norms": (" reduce(",),
    "activations": (" exponential(", " tanh(", " logistic("),
    "joins": (" concatenate(",),
}


def verbs(samples: int, solve: ss.Solve) -> dict[str, Callable]:
    """Each verb with what it asks by default."""
    score = ss.from_canonical(PROCESS, pretrained("digits")[0])
    images = jnp.asarray(datasets.load("digits").images)
    data = ss.Points(images, bandwidth=ss.default_bandwidth(images))
    noise = PROCESS.sample_prior((samples, *data.shape), key=KEY)
    add, ask = ss.add(ss.Points(images[:178])), inner_product(images[0])
    tangent = functools.partial(ss.sample_sensitivity, PROCESS, score, add, noise, solve=solve)
    after = functools.partial(ss.counterfactual, PROCESS, score, add, noise, mass=0.2, solve=solve)
    owed = functools.partial(ss.attribute, PROCESS, score, data, ask, noise, solve=solve)
    return {
        "sample_ode": functools.partial(ss.sample_ode, PROCESS, score, noise, solve=solve),
        "sample_sensitivity": functools.partial(tangent, key=KEY),
        "sample_sensitivity, base=data": functools.partial(tangent, base=data),
        "counterfactual, base=data": functools.partial(after, base=data),
        "attribute": owed,
        "attribute, base=None": functools.partial(owed, base=None, key=KEY),
    }


def row(name: str) -> dict:
    """Milliseconds of a call, of a call of nearly nothing, and the shares."""
    verb = verbs(SAMPLES, ss.Solve())[name]
    whole = milliseconds(verb)
    thunks = profiled(verb)
    products = sum(t for thunk, t in thunks.items() if thunk.startswith(("dot", "ynn")))
    total = sum(thunks.values())
    return {
        "ms": whole,
        "products": round(products / total, 2),
        "other": round(1 - products / total, 2),
        "a call": milliseconds(verbs(1, ss.Solve(steps=1))[name]),
        "most": [[thunk, round(t / total, 2)] for thunk, t in thunks.most_common(5)],
    }


def milliseconds(verb: Callable) -> float:
    """Of a call, compiled before."""
    seconds = in_turns({"verb": verb}, CALLS)["verb"]
    return round(1e3 * float(np.median(seconds)), 1)


def profiled(verb: Callable) -> collections.Counter:
    """Milliseconds of each thunk in one call, without those that hold others."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            jax.block_until_ready(verb())
        (file,) = Path(folder).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    thunks: collections.Counter = collections.Counter()
    for event in events:
        name = event.get("name", "")
        if "hlo_op" in event.get("args", {}) and not name.startswith(("while", "call", "cond")):
            thunks[name] += event["dur"] / 1e3
    return thunks


def evaluations(size: int, samples: int, tangent: bool) -> dict:
    """Of the U-Net, or of its JVP: milliseconds, over the floor, and the shares."""
    score, shape = small(size)
    x, along = jax.random.normal(KEY, (2, samples, *shape))

    def push(score, x):
        return jax.vmap(score, (None, 0))(0.5, x)

    def step(score, state):
        if not tangent:
            return (state[0] + 1e-3 * push(score, state[0]),)
        moved = jax.jvp(functools.partial(push, score), state[:1], state[1:])
        return tuple(old + 1e-3 * new for old, new in zip(state, moved, strict=True))

    def walk(score, state):
        return jax.lax.fori_loop(0, EVALUATIONS, lambda _, state: step(score, state), state)

    state = (x, along)[: 1 + tangent]
    program = jax.jit(walk).lower(score, state).compile()
    run = functools.partial(program, score, state)
    large = jax.random.normal(KEY, (1024, 1024))
    product = functools.partial(jax.jit(jnp.dot), large, large)
    times = by_both_clocks({"run": run, "product": product}, CALLS)
    seconds, floor = (float(np.median(times[name][:, 1])) for name in ("run", "product"))
    seconds /= EVALUATIONS
    operations = jax.jit(push).lower(score, x).compile().cost_analysis()["flops"] * len(state)
    spent = collections.Counter()
    parts = parts_of(program.as_text())
    for thunk, time in profiled(run).items():
        spent[parts.get(thunk, "rest")] += time
    total = sum(spent.values())
    shares = {part: round(spent[part] / total, 2) for part in (*PARTS, "rest")}
    over = seconds / (floor * operations / (2 * large.size * len(large)))
    return {"ms": round(1e3 * seconds, 2), "over floor": round(over, 2)} | shares


def parts_of(program: str) -> dict[str, str]:
    """For each instruction of a compiled program: the part that it, or what it calls, is of."""
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", program, re.M | re.S))
    found = {}
    for name, line in re.findall(r"^ +(?:ROOT )?%?([\w.-]+) = ([^\n]*)", program, re.M):
        called = re.search(r"calls=%?([\w.-]+)", line)
        text = re.sub(r"metadata=.*", "", line) + (bodies[called[1]] if called else "")
        found[name] = next((p for p, marks in PARTS.items() if any(m in text for m in marks)), "")
    return {name: part for name, part in found.items() if part}


def main() -> None:
    given = options(__doc__ or "").parse_args()
    if not given.table:
        names = verbs(1, ss.Solve())
        rows: dict[str, Callable[[], dict]] = {name: functools.partial(row, name) for name in names}
        for size, samples in SIZES:
            for kind in ("forward", "jvp"):
                rows[f"unet {size} x {size}, M = {samples}, {kind}"] = functools.partial(
                    evaluations, size, samples, kind == "jvp"
                )
        measure("hotspots", rows, given.only, given.fresh)
    done = read("hotspots")
    for kinds in (("ms", "products", "other", "a call"), ("ms", "over floor", *PARTS, "rest")):
        lines = [[name, *(str(r[k]) for k in kinds)] for name, r in done.items() if kinds[1] in r]
        print(table(["", *kinds], lines), end="\n\n")


if __name__ == "__main__":
    main()

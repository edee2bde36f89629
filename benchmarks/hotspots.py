"""Where the time of the default verbs goes, by JAX's profiler: matrix products and the rest.

    products    thunks that hold a matrix product (XLA's "dot" and "ynn" ones)
    other       all other thunks of the compiled programs: activations, norms, kernels, ranks
    a call      of one sample and one step: checks, keys, dispatch, little else

The digits model, M = 64 samples, default settings, compiled before. Shares are of the thunks' time
in one call with the profiler; milliseconds are medians of calls without it.
"""

import collections
import functools
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rows import measure, options, read, table
from timing import in_turns

import scoresens as ss
from scoresens import datasets
from scoresens.models import pretrained
from scoresens.sensitivity.functionals import inner_product

PROCESS = ss.VP()
KEY = jax.random.key(0)
SAMPLES = 64
CALLS = 15


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


def main() -> None:
    given = options(__doc__ or "").parse_args()
    if not given.table:
        names = verbs(1, ss.Solve())
        rows = {name: lambda name=name: row(name) for name in names}
        measure("hotspots", rows, given.only, given.fresh)
    done = read("hotspots")
    kinds = ("ms", "products", "other", "a call")
    print(table(["", *kinds], [[name, *(str(r[k]) for k in kinds)] for name, r in done.items()]))


if __name__ == "__main__":
    main()

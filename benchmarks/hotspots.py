"""Where the time of the default verbs goes, by JAX's profiler: matrix products, the rest, the host.

    products    thunks that hold a matrix product (XLA's "dot" and "ynn" ones)
    other       all other thunks of the compiled programs: activations, norms, kernels, ranks
    host        the call's time in which no program runs: checks, keys, dispatch

The digits model, M = 64 samples, default settings, compiled before. Shares are of the thunks' time
on all cores; the host's is of the wall's clock, and is what a call costs before and after its
programs. Medians of five calls without the profiler, one call with it.
"""

import collections
import gzip
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rows import measure, options, read, table

import scoresens as ss
from scoresens import datasets
from scoresens.functionals import inner_product
from scoresens.models import pretrained

PROCESS = ss.VP()
KEY = jax.random.key(0)
SAMPLES = 64
CALLS = 5


def verbs() -> dict[str, Callable]:
    """Each verb with what it asks by default."""
    score = ss.from_canonical(PROCESS, pretrained("digits")[0])
    images = jnp.asarray(datasets.load("digits").images)
    data = ss.Points(images, bandwidth=ss.default_bandwidth(images))
    noise = PROCESS.sample_prior(KEY, (SAMPLES, *data.shape))
    add, ask = ss.add(ss.Points(images[:178])), inner_product(images[0])
    run = (PROCESS, score)
    return {
        "sample_ode": lambda: ss.sample_ode(*run, noise),
        "sample_sensitivity": lambda: ss.sample_sensitivity(*run, add, noise, key=KEY),
        "sample_sensitivity, base=data": lambda: ss.sample_sensitivity(*run, add, noise, base=data),
        "counterfactual, base=data": lambda: ss.counterfactual(
            *run, add, noise, mass=0.2, base=data
        ),
        "attribute": lambda: ss.attribute(*run, data, ask, noise),
        "attribute, base=None": lambda: ss.attribute(*run, data, ask, noise, base=None, key=KEY),
    }


def row(verb: Callable) -> dict:
    """Milliseconds of a call, and the shares."""
    jax.block_until_ready(verb())
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        jax.block_until_ready(verb())
        seconds.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder, create_perfetto_trace=True)
        start = time.perf_counter()
        jax.block_until_ready(verb())
        whole = time.perf_counter() - start
        jax.profiler.stop_trace()
        (file,) = Path(folder).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    thunks, running = collections.Counter(), 0.0
    for event in events:
        name, spent = event.get("name", ""), event.get("dur", 0) / 1e3
        if name == "ThunkExecutor::Execute (wait for completion)":
            running += spent
        elif "hlo_op" in event.get("args", {}) and not name.startswith(("while", "call", "cond")):
            thunks[name] += spent
    products = sum(t for name, t in thunks.items() if name.startswith(("dot", "ynn")))
    total = sum(thunks.values())
    return {
        "ms": round(1e3 * float(np.median(seconds)), 1),
        "products": round(products / total, 2),
        "other": round(1 - products / total, 2),
        "host_ms": round(max(1e3 * whole - running, 0), 1),
        "most": [[name, round(t / total, 2)] for name, t in thunks.most_common(5)],
    }


def main() -> None:
    given = options(__doc__ or "").parse_args()
    if not given.table:
        rows = {name: lambda verb=verb: row(verb) for name, verb in verbs().items()}
        measure("hotspots", rows, given.only, given.fresh)
    done = read("hotspots")
    kinds = ("ms", "products", "other", "host_ms")
    print(table(["", *kinds], [[name, *(str(r[k]) for k in kinds)] for name, r in done.items()]))


if __name__ == "__main__":
    main()

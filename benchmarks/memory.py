"""What fits where: the memory that each verb's compiled program asks for, at real sizes.

The compiler says it without running anything: programs are compiled for shapes alone, also of what
no memory here would hold. In GB, float32, default settings:

    points     the data, the directions and the noise: arguments of the program
    results    what is returned
    beside     what else it holds at its highest (`temp_size_in_bytes`)

The network is the score of N(0, I), which keeps nothing: what is beside is the library's own, and a
network's activations come on top. An attribution runs a batch of samples a program: its rows are of
one batch, with the results of that.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rows import measure, options, read, table

import scoresens as ss
from scoresens.sensitivity.functionals import pixel

PROCESS = ss.EDM()
TABULATED = ("points", "results", "beside")
CIFAR, MNIST, LARGE = 3072, 784, 196_608  # dimensions: 32 x 32 x 3, 28 x 28, 256 x 256 x 3

# verb: M samples, K directions (P functionals), N points, d
SIZES = {
    "sample_ode": [(256, 0, 0, CIFAR), (50_000, 0, 0, CIFAR), (50_000, 0, 0, LARGE)],
    "sample_sensitivity": [
        (256, 1, 0, CIFAR),
        (50_000, 1, 0, CIFAR),
        (256, 1000, 0, CIFAR),
        (50_000, 1000, 0, CIFAR),
        (16, 1000, 0, LARGE),
    ],
    "sample_sensitivity, base=data": [
        (256, 1, 50_000, CIFAR),
        (256, 1000, 50_000, CIFAR),
        (256, 1, 10_000_000, MNIST),
        (16, 1000, 50_000, LARGE),
    ],
    "score_sensitivity, base=data": [(256, 1000, 50_000, CIFAR), (50_000, 1000, 50_000, CIFAR)],
    "counterfactual, add": [(256, 1, 50_000, CIFAR), (256, 1000, 50_000, CIFAR)],
    "counterfactual, remove": [(256, 1, 50_000, CIFAR), (256, 1000, 50_000, CIFAR)],
    "attribute": [(256, 1, 50_000, CIFAR), (256, 1, 1_000_000, MNIST)],
    "attribute, top 10": [
        (256, 1, 50_000, CIFAR),
        (36, 10, 50_000, CIFAR),
        (256, 1, 10_000_000, MNIST),
        (5, 1, 50_000, LARGE),
    ],
}


def program(verb: str, samples: int, count: int, points: int, size: int) -> Callable:
    """The verb at random points, of shapes that are made known when it is compiled."""
    kind, _, how = verb.partition(", ")

    def run(noise, new, data, key):
        law = ss.Points(data, bandwidth=0.3 * size**0.5) if points else None
        if kind == "attribute":
            top = 10 if how else None
            asked = functools.partial(_pixels, count)
            return ss.attribute(PROCESS, SCORE, law, asked, noise, top=top)
        if kind == "sample_ode":
            return ss.sample_ode(PROCESS, SCORE, noise)
        options = {"base": law} if law else {"key": key}
        change = ss.remove(law, np.arange(count)) if how == "remove" else ss.add(new)
        if kind == "score_sensitivity":
            return ss.score_sensitivity(PROCESS, SCORE, change, 1.0, noise, **options)
        if kind == "counterfactual":
            options |= {"mass": 1.0 / max(points, 1)}
        return getattr(ss, kind)(PROCESS, SCORE, change, noise, **options)

    return run


def _minus(t, x):
    return -x / (1 + t**2)


SCORE = jax.tree_util.Partial(_minus)


def _pixels(count, x):
    return x[:count] if count > 1 else pixel(0)(x)


def row(verb: str, samples: int, count: int, points: int, size: int) -> dict:
    """GB of one program."""
    shapes = ((n, size) for n in (samples, max(count, 1), max(points, 1)))
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    run = program(verb, samples, count, points, size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    told = jax.jit(run).lower(*given, key).compile().memory_analysis()
    found = (told.argument_size_in_bytes, told.output_size_in_bytes, told.temp_size_in_bytes)
    return {name: round(n / 1e9, 3) for name, n in zip(TABULATED, found, strict=True)}


def main() -> None:
    given = options(__doc__ or "").parse_args()
    cells = {
        f"{verb}, M={m} K={k} N={n} d={d}": (verb, m, k, n, d)
        for verb, sizes in SIZES.items()
        for m, k, n, d in sizes
    }
    if not given.table:
        rows = {name: lambda cell=cell: row(*cell) for name, cell in cells.items()}
        measure("memory", rows, given.only, given.fresh)
    done = read("memory")
    header = ["verb", "M", "K or P", "N", "d", *(f"{name}, GB" for name in TABULATED)]
    lines = [
        [
            verb,
            *(f"{n:,}" if n else "" for n in sizes),
            *(f"{done[name][k]:.2f}" for k in TABULATED),
        ]
        for name, (verb, *sizes) in cells.items()
        if name in done
    ]
    print(table(header, lines))


if __name__ == "__main__":
    main()

"""What less precise matrix products do to attributions: which of the tables' products may be fast.

    kernels    x Y^T in log K          its error is an error of the exponent
    means      p Y                     the data's denoiser
    levers     a Y^T                   what a point does along each change of the denoiser
    all        the three

Each is rounded as accelerators do it, the others stay in float32: operands rounded to bfloat16
("bfloat16", a TPU's default), to ten bits ("tf32", an H100's default), or split in two bfloat16
parts, three products of which are added ("bfloat16x3", a TPU's Precision.HIGH; float32 there takes
six). Products are added in float32, as they are on both.

Errors are of the scores [M, N] against float64: `|found - true| / |true|` over the points of each
sample, its median and worst over the samples, and how many of the ten points with the largest
scores are the true ten. The paths are followed once: only the tables differ.
"""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from rows import measure, options, read, table

import scoresens as ss
from scoresens import _products, datasets
from scoresens.laws import bumps
from scoresens.models import pretrained
from scoresens.sensitivity import _trails, attribution, tables
from scoresens.sensitivity.functionals import inner_product

PROCESS = ss.VP()
SAMPLES = 8
SOLVE = ss.Solve()
PRODUCTS = {
    "kernels": ("...d,bd->...b",),
    "means": ("...b,bd->...d",),
    "levers": ("smpd,bd->smpb",),
}
PRODUCTS["all"] = tuple(spec for specs in PRODUCTS.values() for spec in specs)


def bfloat16(product, a, b):
    return product(_short(a), _short(b))


def tf32(product, a, b):
    return product(_ten_bits(a), _ten_bits(b))


def bfloat16x3(product, a, b):
    (a, low), (b, below) = ((_short(x), _short(x - _short(x))) for x in (a, b))
    return product(a, b) + (product(a, below) + product(low, b))


ROUNDINGS = {rule.__name__: rule for rule in (bfloat16, tf32, bfloat16x3)}


def _short(x):
    return x.astype(jnp.bfloat16).astype(x.dtype)


def _ten_bits(x):
    """To the nearest number with ten bits after the leading one, ties away from zero."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type((bits + 0x1000) & jnp.uint32(0xFFFFE000), jnp.float32)


@contextlib.contextmanager
def rounded(rule, specs):
    """The tables' products of those forms rounded."""
    exact = _products.contracted

    def product(spec, a, b):
        if spec in specs:
            return rule(lambda a, b: exact(spec, a, b), a, b)
        return exact(spec, a, b)

    jax.clear_caches()
    patch = mock.patch.object
    with patch(tables, "contracted", product), patch(bumps, "contracted", product):
        yield
    jax.clear_caches()


# ------------------------------------------------------------------ data and paths


def digits(bandwidth):
    """The digits, along paths of their model."""
    images = jnp.asarray(datasets.load("digits").images)
    model, _ = pretrained("digits")
    h = ss.default_bandwidth(images) if bandwidth is None else bandwidth
    return ss.from_canonical(PROCESS, model), ss.Points(images, bandwidth=h)


def fashion():
    """6,000 images of Fashion-MNIST, along paths of their own score, no network."""
    images = datasets.subset(datasets.load("fashion-mnist"), 6000, 0).images
    data = ss.Points(jnp.asarray(images), bandwidth=ss.default_bandwidth(jnp.asarray(images)))
    return ss.exact_score(PROCESS, data), data


DATA = {
    "digits": lambda: digits(None),
    "digits, no bandwidth": lambda: digits(0.0),
    "fashion-mnist": fashion,
}


def row(name: str) -> dict:
    """Errors by product and rounding."""
    score, data = DATA[name]()
    noise = PROCESS.sample_prior((SAMPLES, *data.shape), key=jax.random.key(1))
    towards = inner_product(data.points[0])
    _, driver = _trails.driver_of(PROCESS, score, data, "data", None)
    trail = attribution._down_and_up(driver, towards, noise, None, ss.Flow(), None, SOLVE)

    def scores(data, trail):
        found = _trails.influences_along(trail, data, data)
        return np.asarray(found.scores, np.float64)[:, 0]

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), (data, trail))
        true = scores(*wide)
    found = {"float32": errors(scores(data, trail), true)}
    for product, specs in PRODUCTS.items():
        for rounding, rule in ROUNDINGS.items():
            with rounded(rule, specs):
                found[f"{product}, {rounding}"] = errors(scores(data, trail), true)
    return found


def errors(found: np.ndarray, true: np.ndarray) -> list[float]:
    """Relative errors, median and worst over samples, and the share of the true ten found."""
    apart = np.linalg.norm(found - true, axis=1) / np.linalg.norm(true, axis=1)
    best = [set(np.argsort(-scores)[:10]) for scores in (*found, *true)]
    same = [len(a & b) / 10 for a, b in zip(best[: len(found)], best[len(found) :], strict=True)]
    return [float(f"{x:.2g}") for x in (np.median(apart), apart.max(), np.mean(same))]


def main() -> None:
    given = options(__doc__ or "").parse_args()
    if not given.table:
        rows = {name: lambda name=name: row(name) for name in DATA}
        measure("precision", rows, given.only, given.fresh)
    done = read("precision")
    cases = ["float32", *(f"{p}, {r}" for p in PRODUCTS for r in ROUNDINGS)]
    lines = [
        [case, *(f"{d[case][0]:.1e} ({d[case][1]:.1e}), {d[case][2]:.2f}" for d in done.values())]
        for case in cases
    ]
    print(table(["products", *done], lines))


if __name__ == "__main__":
    main()

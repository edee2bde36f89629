"""What less precise products with the data do to answers: `Points.precision`, emulated.

    BF16_BF16_F32     operands rounded to bfloat16 (a TPU's default)
    TF32_TF32_F32     to ten bits after the leading one (an H100's default)
    BF16_BF16_F32_X3  split in two bfloat16 parts, three products of which are added ("high")

are rounded as accelerators do it and multiplied in float32, which is how they add products. The
rest stays in float32, the network too.

Errors are those of 8 samples against float64: `|found - true| / |true|` of each sample's scores
(`attribute`), tangent and displacement (`sample_sensitivity` and `counterfactual`, base=data, of a
removal of a tenth of the points), median and worst over the samples. Scores also have the share of
the ten largest that are the true ten.
"""

from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from rows import measure, options, read, table

import scoresens as ss
from scoresens import datasets
from scoresens.laws import bumps
from scoresens.models import pretrained
from scoresens.sensitivity.functionals import inner_product

PROCESS = ss.VP()
SAMPLES = 8


def bfloat16(product, a, b):
    return product(_short(a), _short(b))


def tf32(product, a, b):
    return product(_ten_bits(a), _ten_bits(b))


def bfloat16x3(product, a, b):
    (a, low), (b, below) = ((_short(x), _short(x - _short(x))) for x in (a, b))
    return product(a, b) + (product(a, below) + product(low, b))


ROUNDINGS = {"BF16_BF16_F32": bfloat16, "TF32_TF32_F32": tf32, "BF16_BF16_F32_X3": bfloat16x3}


def _short(x):
    return x.astype(jnp.bfloat16).astype(x.dtype)


def _ten_bits(x):
    """To the nearest number with ten bits after the leading one, ties away from zero."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type((bits + 0x1000) & jnp.uint32(0xFFFFE000), jnp.float32)


def emulated():
    """Products with points rounded as their precision says, also where the CPU has it not."""
    exact = bumps.contracted

    def product(spec, a, b, precision):
        if precision not in ROUNDINGS:
            return exact(spec, a, b, precision)
        return ROUNDINGS[precision](lambda a, b: exact(spec, a, b), a, b)

    return mock.patch.object(bumps, "contracted", product)


# ------------------------------------------------------------------ data and paths


def digits(bandwidth):
    """The digits, along paths of their model."""
    images = jnp.asarray(datasets.load("digits").images)
    model, _ = pretrained("digits")
    h = ss.default_bandwidth(images) if bandwidth is None else bandwidth
    return ss.from_canonical(PROCESS, model), ss.Points(images, bandwidth=h)


def fashion(count, colour):
    """Images of Fashion-MNIST, along paths of their own score, no network; each of one random
    colour, on a larger ground, if asked."""
    images = datasets.subset(datasets.load("fashion-mnist"), count, 0).images
    if colour:
        images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-1)
        colours = np.random.default_rng(0).uniform(size=(count, 1, 1, 3)).astype(np.float32)
        images = (images + 1) * colours - 1
    data = ss.Points(jnp.asarray(images), bandwidth=ss.default_bandwidth(images))
    return ss.exact_score(PROCESS, data), data


DATA = {
    "digits, d = 64": lambda: digits(None),
    "digits, no bandwidth": lambda: digits(0.0),
    "fashion-mnist, d = 784": lambda: fashion(6000, colour=False),
    "in colour, d = 3072": lambda: fashion(2000, colour=True),
}


def row(name: str) -> dict:
    """Errors by question and precision."""
    score, data = DATA[name]()
    noise = PROCESS.sample_prior((SAMPLES, *data.shape), key=jax.random.key(1))
    given = score, data, noise
    with jax.enable_x64(True):
        true = answers(*jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), given))
    found = {}
    with emulated():
        for precision in (None, *ROUNDINGS):
            rough = answers(score, replace(data, precision=precision), noise)
            name = precision or "float32"
            found[name] = {
                ask: errors(rough[ask], true[ask])[: 2 + (ask == "scores")] for ask in true
            }
    return found


def answers(score, data, noise) -> dict[str, np.ndarray]:
    """To each question, a row a sample. A law's own products are as precise as ever."""
    towards = inner_product(data.points[0])
    change = ss.remove(data, np.arange(len(data)) % 10 == 0)
    asked = PROCESS, score, change, noise
    x, tangent = ss.sample_sensitivity(*asked, base=data)[:2]
    found = {
        "scores": ss.attribute(PROCESS, score, data, towards, noise).scores,
        "tangent": tangent,
        "displacement": ss.counterfactual(*asked, mass=1.0, base=data).x[:, 0] - x,
    }
    return {ask: np.asarray(x, np.float64).reshape(SAMPLES, -1) for ask, x in found.items()}


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
    cases = [
        (ask, p) for ask in ("scores", "tangent", "displacement") for p in ("float32", *ROUNDINGS)
    ]
    lines = [[ask, p, *(cell(*d[p][ask]) for d in done.values())] for ask, p in cases]
    print(table(["of", "products", *done], lines))


def cell(median: float, worst: float, *same: float) -> str:
    return f"{median:.1e} ({worst:.1e})" + "".join(f", {share:.2f}" for share in same)


if __name__ == "__main__":
    main()

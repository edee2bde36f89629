"""What a network's resolution is: of its size, of the length of its training, or of its data?

Networks of three sizes are trained on the digits for three lengths, and on a part of them, and
`calibrate` says how sharp each is: the nearest kernel's width (in units of `default_bandwidth` of
these images) and resolution c (6.7), and what it leaves unexplained (6.10). `learnt` is the slope
s_k of (6.10) along groups of axes, the first of largest variance, at noise level 1, against the
denoiser of the images by a kernel of width 1 and c = 0: 1 where a network makes of the images what
that kernel makes of them, 0 where it makes nothing.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from rows import measure, options, read, table

import scoresens as ss
from scoresens import datasets
from scoresens.laws.axes import principal_axes
from scoresens.laws.scores import canonical_denoiser
from scoresens.models.architectures import ModelSettings, build
from scoresens.sensitivity.calibration import _without
from scoresens.training.denoising import TrainSettings, train

SIZES = {
    "MLP 48": ("mlp", 48, 2),
    "MLP 128": ("mlp", 128, 2),
    "MLP 320": ("mlp", 320, 2),
    "U-Net 8": ("unet", 8, 2),
}
LENGTHS = (1_000, 4_000, 16_000)
COUNTS = (1_797, 449)
BATCH = {"mlp": 256, "unet": 64}
GROUPS = (0, 4, 12, 24, 40, 61)  # of axes
SEEDS = range(2)
LEVEL = 1.0


def images(count: int) -> np.ndarray:
    """Evenly spaced digits."""
    every = datasets.load("digits").images
    return every[np.linspace(0, len(every) - 1, count).astype(int)]


def trained(size: str, steps: int, count: int, seed: int):
    """A network's score, trained as the digits' checkpoint was."""
    kind, width, depth = SIZES[size]
    x, key = images(count), jax.random.key(seed)
    settings = TrainSettings(
        steps=steps, batch_size=BATCH[kind], learning_rate=1e-3, warmup=500, decay=True,
        ema_halflife=500.0,
    )  # fmt: skip
    model = build(ModelSettings(kind, width, depth), x.shape[1:], float(x.std()), key=key)
    made = train(model, x, key=jax.random.fold_in(key, 1), settings=settings, progress=False).model
    return ss.from_denoiser(ss.EDM(), made)


def resolved(size: str, steps: int, count: int) -> dict:
    """The kernel nearest to such networks, by seed, and what they learnt of each group of axes."""
    x = images(count)
    axes, usual = principal_axes(x), ss.default_bandwidth(x)
    found, learnt = [], []
    for seed in SEEDS:
        score = trained(size, steps, count, seed)
        found.append(ss.calibrate(ss.EDM(), score, x, key=jax.random.key(seed)))
        learnt.append(slopes(score, x, axes, usual, jax.random.key(seed)))
    return {
        "width": [round(each.width / usual, 3) for each in found],
        "resolution": [round(each.resolution, 4) for each in found],
        "left": [round(each.error, 3) for each in found],
        "learnt": np.mean(learnt, 0).round(2).tolist(),
    }


def slopes(score, x, axes, usual, key) -> list[float]:
    """s_k of (6.10), pooled over groups of axes, at one noise level."""
    drawn, noised = jax.random.split(key)
    process = ss.EDM()
    z = process.sample_prior((512, *x.shape[1:]), key=drawn)
    at = ss.sample_ode(process, score, z, solve=ss.Solve(steps=20)).x
    at = at + LEVEL * jax.random.normal(noised, at.shape)
    kernel = ss.Points(x, bandwidth=0.0, width=usual)

    def along(images):
        return axes.coordinates(images.reshape(len(images), -1))

    level = jnp.float32(LEVEL)
    x0 = jax.vmap(lambda y: canonical_denoiser(process, score, level, y))(at)
    explained = jax.vmap(kernel.denoise, (None, 0))(level, at)
    placed = along(at)
    said, owed = (_without(placed, along(each)) for each in (x0, explained))
    groups = list(itertools.pairwise(GROUPS))
    return [float((said[:, a:b] * owed[:, a:b]).sum() / (owed[:, a:b] ** 2).sum())
            for a, b in groups]  # fmt: skip


def rows() -> dict:
    return {
        f"{size}, {count} images, {steps} steps": functools.partial(resolved, size, steps, count)
        for count in COUNTS
        for size in SIZES
        for steps in LENGTHS
        if count == COUNTS[0] or SIZES[size][0] == "mlp"
    }


def markdown() -> str:
    lines = []
    for name, row in read("resolution").items():
        pairs = [" and ".join(f"{v:g}" for v in row[k]) for k in ("width", "resolution", "left")]
        lines.append([*name.split(", "), *pairs, ", ".join(f"{v:.2f}" for v in row["learnt"])])
    header = ["network", "images", "steps", "width", "c", "left", "learnt, by group of axes"]
    return table(header, lines)


if __name__ == "__main__":
    given = options(__doc__).parse_args()
    if not given.table:
        measure("resolution", rows(), given.only, given.fresh)
    print(markdown())

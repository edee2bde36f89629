r"""Ideas to predict training on halves better, each judged on halves that it was not chosen on.

    python benchmarks/ideas.py STUDY

STUDY is a folder of `scoresens validate` with experiment = "halves". The finite prediction (6.3) is
the flow of `D + C`, with the correction C(x, tau; w) = D_h(x, tau; w) - D_h(x, tau; 1/N) for the
weights w of a half. The ideas change C:

    bumps          as it is, bandwidth h
    blur           the data are seen through noise b beyond tau, as by a network that is smooth in
                   x: C at sqrt(tau^2 + b^2)
    denoised       the kernel compares the points with D(x, tau), not with x
    jacobian       C is multiplied by the Jacobian of D: pushed into directions that the network
                   lets vary
    scales         C is the mean over h / 2, h and 2 h
    no low noise   C = 0 below tau = 1/2

Each idea's settings are tried on the halves kept for choosing; the best is judged on the others.
Lengths are in units of the default bandwidth. A row an idea, on disk when made.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rows import measure, read, table

import scoresens as ss
from scoresens.cli._config import read as settings
from scoresens.cli.halves import HalvesRun, stored
from scoresens.laws.measures import default_bandwidth
from scoresens.statistics import principal_components
from scoresens.studies.halves import Judge

CONFIG = Path(__file__).parents[1] / "configs" / "digits-halves.toml"
Correction = Callable[..., jax.Array]  # (denoise, points, tau, x, weights, *settings)


# ------------------------------------------------------------------ the ideas


def shift(points, spread, place, weights):
    """The mean of the points near a place, weighted, less that of all."""
    data, level = ss.Points(points), jnp.sqrt(spread)
    sums = data.sums(level, place, weights)
    return sums.mean / sums.mass - data.denoise(level, place)


def bumps(denoise, points, tau, x, weights, h):
    return blur(denoise, points, tau, x, weights, h, 0.0)


def blur(denoise, points, tau, x, weights, h, b):
    noise = tau**2 + b**2
    return noise / (noise + h**2) * shift(points, noise + h**2, x, weights)


def denoised(denoise, points, tau, x, weights, h):
    return tau**2 / (tau**2 + h**2) * shift(points, h**2, denoise(tau, x), weights)


def jacobian(denoise, points, tau, x, weights, h):
    change = bumps(denoise, points, tau, x, weights, h)
    return jax.jvp(functools.partial(denoise, tau), (x,), (change,))[1]


def scales(denoise, points, tau, x, weights, h):
    return sum(bumps(denoise, points, tau, x, weights, h * s) for s in (0.5, 1.0, 2.0)) / 3


def no_low_noise(denoise, points, tau, x, weights, h):
    return jnp.where(tau > 0.5, bumps(denoise, points, tau, x, weights, h), 0)


WIDTHS = [(1.0,), (1.2,), (1.5,)]
IDEAS: dict[str, tuple[Correction, list[tuple[float, ...]]]] = {
    "bumps": (bumps, WIDTHS),
    "blur": (blur, [(1.0, 0.5), (1.2, 0.5), (1.5, 0.5), (1.2, 0.8)]),
    "denoised": (denoised, [(1.0,), (1.5,)]),
    "jacobian": (jacobian, [(1.2,)]),
    "scales": (scales, [(1.0,), (1.5,)]),
    "no low noise": (no_low_noise, [(1.2,)]),
}


# ------------------------------------------------------------------ judged


def judged(folder: Path, name: str) -> dict:
    """Every setting of an idea on the halves for choosing, the best one on the others."""
    run = settings(CONFIG, HalvesRun)
    study, truth = stored(folder, run)
    scale = default_bandwidth(study.images)
    axes = principal_components(study.images, run.halves.components)
    report, choose = slice(run.halves.subsets), slice(run.halves.subsets, None)
    true = truth.displacements.reshape(*truth.displacements.shape[:3], -1)
    idea, tried = IDEAS[name]
    found = {
        own: np.stack(
            [
                predicted(study, model, idea, tuple(scale * s for s in own))
                for model in study.models.values()
            ]
        )
        for own in tried
    }
    chooser, judge = Judge(true[:, choose], axes, 0, 0), Judge(true[:, report], axes, 300, 0)
    curve = {own: chooser.rank(p[:, choose]) for own, p in found.items()}
    best = max(curve, key=lambda own: curve[own])
    ceiling = judge.ceiling()["pearson"][0]
    row = judge.all(found[best][:, report])
    choosing = [[list(own), round(value, 4)] for own, value in curve.items()]
    share = round(row["pearson"][0] / ceiling, 4)
    return {"setting": list(best), "choosing": choosing, "of_ceiling": share, **row}


def predicted(study, model, idea: Correction, own: tuple[float, ...]) -> np.ndarray:
    """Displacements of the samples for every half, `[S, M, d]`."""
    shape = study.images.shape[1:]
    points = jnp.asarray(study.images.reshape(len(study.images), -1))
    weights = jnp.asarray(study.halves / study.halves.sum(1, keepdims=True), points.dtype)
    run = _samples(idea, shape)
    before = run(model, points, jnp.full((1, len(points)), 1 / len(points)), study, own)
    return np.asarray(run(model, points, weights, study, own) - before)


@functools.cache
def _samples(idea, shape):
    @jax.jit
    def run(model, points, weights, noise, own):
        def denoise(tau, x):
            return model(tau, x.reshape(shape)).reshape(-1)

        def one(w):
            def changed(tau, x):
                flat = x.reshape(-1)
                return (denoise(tau, flat) + idea(denoise, points, tau, flat, w, *own)).reshape(
                    shape
                )

            score = ss.from_denoiser(ss.EDM(), changed)
            return ss.sample_ode(ss.EDM(), score, noise).x.reshape(len(noise), -1)

        return jax.lax.map(one, weights)

    return lambda model, points, weights, study, own: run(
        model, points, weights, study.queries.noise, own
    )


def tables() -> str:
    """The markdown of docs/attribution.md."""
    lines = [
        [name, ", ".join(f"{s:g}" for s in row["setting"]), _cell(row["lds"]),
         _cell(row["pearson"]), f"{row['of_ceiling']:.0%}", f"{row['size'][0]:.2f}"]
        for name, row in read("ideas").items()
    ]  # fmt: skip
    return table(["idea", "chosen", "LDS", "Pearson", "of its ceiling", "size"], lines)


def _cell(found):
    return "{:.3f} [{:.3f}, {:.3f}]".format(*found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("study", type=Path, nargs="?")
    parser.add_argument("--only", default="", help="ideas whose name holds this text")
    parser.add_argument("--fresh", action="store_true", help="judge them again")
    parser.add_argument("--table", action="store_true", help="print the markdown, judge nothing")
    args = parser.parse_args()
    if args.table or args.study is None:
        print(tables())
    else:
        rows = {name: functools.partial(judged, args.study, name) for name in IDEAS}
        measure("ideas", rows, args.only, args.fresh)


if __name__ == "__main__":
    main()

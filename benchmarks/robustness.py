"""How far a tangent may be trusted: its error against what goes wrong with its ingredients.

The law is a mixture of 6 Gaussians in 16 dimensions, whose score is exact; the truth is the tangent
of a tight adaptive float64 solve (`truth` compares its two bases). Directions: a new mode, and 4
points drawn from the law. Each row changes one thing, all else exact and on a grid of 160 steps:

    score    a smooth random field is added, of rms 0.1 % to 10 % of the score's at every level
    probes   of the Hutchinson trace that log rho is followed with (base=None alone needs it)
    steps    of Heun's method
    prior    N(0, I) at t_max for log rho, as by default, in place of the noised law (base=None)
    float    the whole computation in float32
    mass     mass times tangent, and the counterfactual, against the sample of the law that really
             is changed by that mass, on the same grid and from the same noise

Three errors: `|T - T*| / |T*|` pooled over samples and directions, which a few samples between two
modes may rule; the same a sample, its median; and the median cosine. Intervals are 5–95 % of a
bootstrap over samples and seeds. Floor: rounding, 1e-7 in float32.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from rows import measure, options, read, table

import scoresens as ss
from scoresens.laws.perturbations import Perturbation

PROCESS = ss.VP()
SIZE, MODES, SAMPLES = 16, 6, 128
FINE = ss.Solve(steps=160)
TIGHT = ss.Solve(solver=diffrax.Dopri8(), rtol=1e-9, atol=1e-11)
BASES = ("model", "data")


class Case(NamedTuple):
    """The law, its directions and the noise."""

    law: ss.GaussianMixture
    directions: dict[str, Perturbation]
    changed: dict[str, Callable]  # mass -> the law changed by it, for directions with one row
    noise: jax.Array


@functools.cache
def case(dtype=jnp.float64) -> Case:
    """Six modes of standard deviation 0.25 to 0.5 around a sphere of radius 2.

    A new mode appears between them.
    """
    rng = np.random.default_rng(0)
    means = rng.normal(size=(MODES + 1, SIZE))
    means *= 2 / np.linalg.norm(means, axis=1, keepdims=True)
    means[-1] = 0.5 * (means[0] + means[1])
    variances = rng.uniform(0.25, 0.5, (MODES + 1, SIZE)) ** 2
    weights = rng.dirichlet(np.full(MODES, 5.0))
    which = rng.choice(MODES, 4, p=weights)
    points = means[which] + np.sqrt(variances[which]) * rng.normal(size=(4, SIZE))
    means, variances, weights, points = (
        jnp.asarray(a, dtype) for a in (means, variances, weights, points)
    )

    def mixture(masses, slices):
        return ss.GaussianMixture(masses, means[slices], variances[slices])

    law, mode = mixture(weights, slice(MODES)), mixture(jnp.ones(1, dtype), slice(MODES, None))

    def with_mode(mass):
        return mixture(jnp.append((1 - mass) * weights, mass), slice(None))

    def with_point(mass):
        return ss.GaussianMixture(
            jnp.append((1 - mass) * weights, mass),
            jnp.concatenate([means[:MODES], points[:1]]),
            jnp.concatenate([variances[:MODES], jnp.zeros((1, SIZE))]),
        )

    noise = PROCESS.sample_prior((SAMPLES, SIZE), key=jax.random.key(1)).astype(dtype)
    directions = {"mode": ss.add(mode), "points": ss.add(points), "point": ss.add(points[:1])}
    return Case(law, directions, {"mode": with_mode, "point": with_point}, noise)


def tangents(score, direction, base, solve, *, at=None, trace=None, seed=0, own_prior=False):
    """`[M, K, d]`, by the model's law or the data's. log rho starts from the law noised to t_max,
    unless from the process's own prior."""
    at = at or case()
    if base == "data":
        options = {"base": at.law}
    else:
        prior = None if own_prior else at.law
        options = {"trace": trace or ss.Exact(), "prior": prior, "key": jax.random.key(seed)}
    push = functools.partial(ss.sample_sensitivity, PROCESS, score, at.directions[direction])
    return np.asarray(push(at.noise, solve=solve, **options).tangent)


@functools.cache
def truth(direction):
    return tangents(exact(), direction, "data", TIGHT)


def exact():
    return ss.exact_score(PROCESS, case().law)


def errors(found, true) -> dict:
    """Pooled and median relative error, and median cosine, of `found [seeds, M, K, d]`, each with
    its interval."""
    found = np.stack(found)
    wrong, size = np.sum((found - true) ** 2, -1), np.sum(true**2, -1)
    cosine = np.sum(found * true, -1) / np.sqrt(np.sum(found**2, -1) * size)

    def summary(seeds, rows):
        pooled = np.sqrt(wrong[seeds][:, rows].mean(0).sum() / size[rows].sum())
        typical = np.sqrt(np.median(wrong[seeds][:, rows] / size[rows]))
        return pooled, typical, np.median(cosine[seeds][:, rows])

    rng, (seeds, rows) = np.random.default_rng(0), wrong.shape[:2]
    draws = [
        summary(rng.integers(seeds, size=seeds), rng.integers(rows, size=rows)) for _ in range(400)
    ]
    low, high = np.quantile(draws, (0.05, 0.95), axis=0)
    middle = summary(np.arange(seeds), np.arange(rows))
    return {
        name: [float(f"{value:.6g}") for value in values]
        for name, *values in zip(("pooled", "typical", "cosine"), low, middle, high, strict=True)
    }


def over_bases(tangents_of: Callable[[str, str], list], bases=BASES) -> dict:
    """Errors for each direction and base; `tangents_of(direction, base)` is one array a seed."""
    return {
        f"{direction}, {base}": errors(tangents_of(direction, base), truth(direction))
        for direction in ("mode", "points")
        for base in bases
    }


# ------------------------------------------------------------------ what goes wrong


def with_score_error(relative: float, seeds: int = 5) -> dict:
    """score"""
    return over_bases(
        lambda direction, base: [
            tangents(perturbed_score(relative, seed), direction, base, FINE)
            for seed in range(seeds)
        ]
    )


def perturbed_score(relative: float, seed: int, features: int = 256):
    """The exact score plus `relative rms_score(tau) f(log tau, x)`, f smooth, of unit variance.

    `f = sqrt(2 / F) sum_j a_j cos(w_j . x / spread + v_j log tau + b_j)`, w of about a radian
    across the law.
    """
    keys = jax.random.split(jax.random.key(seed), 4)
    field = (
        jax.random.normal(keys[0], (SIZE, features)),
        jax.random.normal(keys[1], (features, SIZE)) / np.sqrt(SIZE),
        jax.random.normal(keys[2], (features,)) / 2,
        jax.random.uniform(keys[3], (features,), maxval=2 * np.pi),
    )
    scale = jnp.asarray(relative * np.sqrt(2 / features))
    return Partial(_perturbed, PROCESS, case().law, field, scale, _score_sizes())


def _perturbed(process, law, field, scale, sizes, t, x):
    amplitudes, frequencies, rates, phases = field
    tau = process.noise_level(t)
    hat, alpha = process.to_canonical(t, x), process.alpha(t)
    score = (law.denoise(tau, hat) - hat) / jnp.square(tau)
    at = hat / jnp.sqrt(jnp.square(tau) + 0.4)
    noise = amplitudes @ jnp.cos(frequencies @ at + rates * jnp.log(tau) + phases)
    return (score + scale * jnp.interp(jnp.log(tau), *sizes) * noise) / alpha


@functools.cache
def _score_sizes():
    """log tau, and the rms of the score's entries there, over the law itself."""
    law, key = case().law, jax.random.key(2)
    start = ss.sample_ode(PROCESS, exact(), case().noise, solve=FINE).x
    taus = jnp.geomspace(1e-3, 200.0, 60)

    def size(tau):
        x = start + tau * jax.random.normal(key, start.shape)
        score = (jax.vmap(law.denoise, (None, 0))(tau, x) - x) / jnp.square(tau)
        return jnp.sqrt(jnp.mean(jnp.square(score)))

    return jnp.log(taus), jax.lax.map(size, taus)


def with_probes(count: int | None) -> dict:
    """probes"""
    trace, seeds = (ss.Exact(), 1) if count is None else (ss.Hutchinson(count), 8)
    return over_bases(
        lambda direction, base: [
            tangents(exact(), direction, base, FINE, trace=trace, seed=seed)
            for seed in range(seeds)
        ],
        ("model",),
    )


def with_steps(steps: int) -> dict:
    """steps"""
    solve = ss.Solve(steps=steps)
    return over_bases(lambda direction, base: [tangents(exact(), direction, base, solve)])


def in_single() -> dict:
    """float32, against float64 on the same grid"""
    at = case(jnp.float32)
    score = ss.exact_score(PROCESS, at.law)
    made = {}
    for direction in ("mode", "points"):
        for base in BASES:
            true = tangents(exact(), direction, base, FINE)
            found = tangents(score, direction, base, FINE, at=at)
            if found.dtype != np.float32:
                raise TypeError(f"asked for float32, came {found.dtype}")
            made[f"{direction}, {base}"] = errors([found.astype(np.float64)], true)
    return made


def with_truth() -> dict:
    """The two bases solved tightly, one against the other."""
    return over_bases(lambda direction, base: [tangents(exact(), direction, base, TIGHT)])


def with_own_prior() -> dict:
    """log rho from N(0, I) at t_max, as by default, in place of the noised law's."""
    return over_bases(
        lambda direction, base: [tangents(exact(), direction, base, TIGHT, own_prior=True)],
        ("model",),
    )


def with_mass(mass: float) -> dict:
    """mass"""
    at = case()
    here = np.asarray(ss.sample_ode(PROCESS, exact(), at.noise, solve=FINE).x)
    made = {}
    for direction in ("mode", "point"):
        law = at.changed[direction](mass)
        there = ss.sample_ode(PROCESS, ss.exact_score(PROCESS, law), at.noise, solve=FINE).x
        moved = np.asarray(there)[:, None] - here[:, None]
        finite = ss.counterfactual(
            PROCESS, exact(), at.directions[direction], at.noise, mass=mass, base=at.law, solve=FINE
        )
        first = mass * tangents(exact(), direction, "data", FINE)
        made[f"{direction}, first order"] = errors([first], moved)
        made[f"{direction}, counterfactual"] = errors([np.asarray(finite.x) - here[:, None]], moved)
    return made


def rows() -> dict[str, Callable[[], dict]]:
    """What there is to measure."""
    made: dict[str, Callable[[], dict]] = {
        "truth": with_truth,
        "float32": in_single,
        "prior N(0, I)": with_own_prior,
    }
    for relative in (0.001, 0.003, 0.01, 0.03, 0.1):
        made[f"score error {relative:.1%}"] = functools.partial(with_score_error, relative)
    for count in (1, 4, 16, None):
        made[f"probes {count or 'exact'}"] = functools.partial(with_probes, count)
    for steps in (10, 20, 40, 80, 160):
        made[f"steps {steps}"] = functools.partial(with_steps, steps)
    for mass in (1e-8, 1e-6, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3):
        made[f"mass {mass:g}"] = functools.partial(with_mass, mass)
    return made


def tables() -> str:
    """The markdown of `docs/robustness.md`: errors with their intervals, and median cosines."""
    done, parts = read("robustness"), []
    groups = [("truth", "float32", "score error", "steps"), ("probes", "prior"), ("mass",)]
    for group in groups:
        chosen = {name: row for name, row in done.items() if name.startswith(group)}
        columns = [c for c in next(iter(chosen.values())) if "," in c] if chosen else []
        lines = [
            [name, *(_cell(row[column]) for column in columns)] for name, row in chosen.items()
        ]
        parts.append(table(["pooled (5–95 %); typical; cosine", *columns], lines))
    return "\n\n".join(parts)


def _cell(entry):
    low, middle, high = entry["pooled"]
    return (
        f"{middle:.2g} ({low:.2g}–{high:.2g}); {entry['typical'][1]:.2g}; {entry['cosine'][1]:.4f}"
    )


def main() -> None:
    args = options(__doc__).parse_args()
    jax.config.update("jax_enable_x64", True)
    if args.table:
        print(tables())
    else:
        measure("robustness", rows(), args.only, args.fresh)


if __name__ == "__main__":
    main()

"""The derivative of a transport map beside that of a flow on transport couplings, in the plane.

Points in two moons, sources of a normal law, and their entropic coupling. The flow is a `Bridge` on
the coupled pairs, by its exact marginal velocity: what flow matching on these couplings learns,
without a network's error. The change: a share of the weight moves to one moon. The truth stands for
training again: the changed data are coupled anew, and the same sources go along the new flow.

    python benchmarks/transport.py            # results/transport.json, docs/figures/transport.png
    python benchmarks/transport.py --table    # the markdown in docs/neighbours.md
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import scoresens as ss
from scoresens.statistics import cosines, entropic_transport

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "transport.json"
FIGURE = ROOT / "docs" / "figures" / "transport.png"
EPSILON, SIGMA, MASSES = 0.2, 0.15, (0.002, 0.05, 0.2)
NAMES = {
    "map": "transport map, first order",
    "map_finite": "transport map of the changed data",
    "held": "flow, first order, coupling held",
    "held_finite": "flow, finite, coupling held",
    "moved": "flow, first order, coupling moved",
}


def moons(rng):
    """Forty points and the moon of each."""
    angle = np.pi * rng.random(40)
    upper = np.arange(40) < 20
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle)) - 0.5
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle)) - 0.25
    return 2 * np.stack([x, y], 1) + 0.05 * rng.normal(size=(40, 2)), upper


def coupled(sources, points, weights):
    """The pairs of a coupling as data of a bridge, and the solved transport."""
    solved = entropic_transport(sources, points, weights, EPSILON)
    targets = np.tile(points, (len(sources), 1))
    pairs = ss.pairs(targets, np.repeat(sources, len(points), 0))
    return ss.Points(pairs, jnp.asarray(solved.shares.ravel() / len(sources))), solved


def measured():
    """What each prediction says, and the truth, in units of the data."""
    rng = np.random.default_rng(0)
    points, upper = moons(rng)
    sources, weights = rng.normal(size=(48, 2)), np.full(40, 1 / 40)
    moon = upper / upper.sum()
    process, solve = ss.Bridge(sigma_min=SIGMA), ss.Solve(steps=20, rho=1.0, tau_min=0.01)
    noise, (law, solved) = jnp.asarray(sources), coupled(sources, points, weights)
    score, plan = ss.exact_score(process, law), law.weights

    def along(direction, finite=None):
        scale = 0.9 / float(jnp.max(-direction / plan))  # as much as leaves no weight negative
        toward = ss.reweight(law, plan + scale * direction)
        if finite is None:
            found = ss.sample_sensitivity(process, score, toward, noise, base=law, solve=solve)
            return np.asarray(found.tangent[:, 0]) / scale
        found = ss.counterfactual(
            process, score, toward, noise, mass=finite / scale, base=law, solve=solve
        )
        return np.asarray(found.x[:, 0])

    def sampled(mass):
        law, _ = coupled(sources, points, weights + mass * (moon - weights))
        path = ss.sample_ode(process, ss.exact_score(process, law), noise, solve=solve)
        return np.asarray(path.x)

    held = plan * jnp.asarray(np.tile(moon / weights - 1, len(sources)))
    rates, _ = solved.rates((moon - weights)[None])
    data = ss.Points(points)
    of_map = ss.transport_sensitivity(sources, data, ss.reweight(data, moon), epsilon=EPSILON)
    first = {
        "map": of_map.tangent[:, 0],
        "held": along(held),
        "moved": along(jnp.asarray(rates[0].ravel() / len(sources))),
    }
    before, rows, arrows = sampled(0.0), [], None
    for mass in MASSES:
        changed = entropic_transport(sources, points, weights + mass * (moon - weights), EPSILON)
        moves = {name: mass * tangent for name, tangent in first.items()}
        moves["map_finite"] = changed.images - solved.images
        moves["held_finite"] = along(held, mass) - before
        truth = sampled(mass) - before
        rows += [{"mass": mass, "name": name, **compared(moves[name], truth)} for name in NAMES]
        arrows = {"training again": truth, **{NAMES[n]: moves[n] for n in ("moved", "held", "map")}}
    draw(points, upper, before, arrows)
    return rows


def compared(found, truth):
    return {
        "cosine": float(np.median(np.asarray(cosines(found, truth)))),
        "pearson": float(np.corrcoef(found.ravel(), truth.ravel())[0, 1]),
        "error": float(np.linalg.norm(found - truth) / np.linalg.norm(truth)),
    }


def draw(points, upper, before, arrows):
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(14, 2.6), sharex=True, sharey=True)
    for axis, (name, moves) in zip(axes, arrows.items(), strict=True):
        axis.scatter(*points[upper].T, s=9, c="tab:orange")
        axis.scatter(*points[~upper].T, s=9, c="0.7")
        axis.quiver(
            *before.T,
            *moves.T,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.005,
            color="tab:blue",
        )
        axis.set_title(name, fontsize=9)
        axis.set_aspect("equal")
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=110)


def table(rows):
    lines = [
        "| prediction | mass | median cosine | pooled Pearson | relative L2 |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = " | ".join(f"{row[key]:.2f}" for key in ("cosine", "pearson", "error"))
        lines.append(f"| {NAMES[row['name']]} | {row['mass']} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    if "--table" not in sys.argv:
        RESULTS.write_text(json.dumps(measured(), indent=1) + "\n")
    print(table(json.loads(RESULTS.read_text())))

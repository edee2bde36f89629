"""All steps at once: sweeps of Picard's iteration beside the steps of a path.

The shipped digits model, 16 samples, Euler's rule on the grid of `Solve`. A sweep evaluates the
network at every node; on a device where they all run side by side it takes as long as one step:
`steps / sweeps` is the most to be gained there, for `sweeps` times as many evaluations.

    python benchmarks/picard.py            # results/picard.json
    python benchmarks/picard.py --table    # the markdown in docs/neighbours.md
"""

import json
import sys
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp

import scoresens as ss
from scoresens.flow.solve import grid
from scoresens.laws.scores import canonical_denoiser
from scoresens.models import pretrained

RESULTS = Path(__file__).parent / "results" / "picard.json"
STEPS, TOLERANCES = (10, 20, 40, 80), (1e-1, 1e-2, 1e-3)


def measured():
    process, network = ss.EDM(), pretrained("digits")[0]
    score = ss.from_denoiser(process, network)
    noise = process.sample_prior((16, 8, 8, 1), key=jax.random.key(0))
    return [row for steps in STEPS for row in rows(process, score, noise, steps)]


def rows(process, score, noise, steps):
    solve = ss.Solve(steps=steps, solver=diffrax.Euler())
    times = grid(process.t_max, solve.tau_min, solve)
    widths = jnp.diff(times).reshape(-1, 1, 1, 1, 1)

    def rate(t, x):
        return (x - canonical_denoiser(process, score, t, x)) / t

    @jax.jit
    def sweep(path):
        rates = jax.vmap(jax.vmap(rate, (None, 0)))(times[:-1], path[:-1])
        sums = jnp.cumsum(widths * rates, 0)
        return noise + jnp.concatenate([jnp.zeros_like(sums[:1]), sums])

    path = jnp.broadcast_to(noise, (steps + 1, *noise.shape))
    truth, errors = ss.sample_ode(process, score, noise, solve=solve).x, []
    for _ in range(steps):
        path = sweep(path)
        errors.append(float(jnp.max(jnp.abs(path[-1] - truth))))
    for tolerance in TOLERANCES:
        near = [number for number, error in enumerate(errors, 1) if error <= tolerance]
        yield {"steps": steps, "tolerance": tolerance, "sweeps": near[0] if near else None}


def table(found):
    head = " | ".join(f"within {tolerance:g}" for tolerance in TOLERANCES)
    lines = [f"| steps | sweeps, {head} | depth | evaluations |", "|---|" + "---|" * 5]
    for steps in STEPS:
        sweeps = [row["sweeps"] for row in found if row["steps"] == steps]
        costs = f"{steps / sweeps[1]:.1f} times less | {sweeps[1]} times more"
        lines.append(f"| {steps} | {' | '.join(map(str, sweeps))} | {costs} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--table" not in sys.argv:
        RESULTS.write_text(json.dumps(measured(), indent=1) + "\n")
    print(table(json.loads(RESULTS.read_text())))

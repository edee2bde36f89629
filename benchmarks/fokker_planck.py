"""What the Fokker-Planck system costs: Laplacians, residuals, and samples of both induced laws.

    laplacian d      each way to the Laplacian of a potential, over d bare JVPs of its gradient
    residual d       (7.1) and its score form, over d bare JVPs of the score; per second at d = 2
    precision        root mean square error of a sample against evaluations and time, from the
                     converged flow, for Euler's rule and ours; a reference network
    reference        the same rule as the literature's own code runs it, in eager PyTorch (only
                     where torch is installed), per sample
    look-up          paths with the score looked up against paths with the score evaluated

Compiled first; compared programs run in turn, A B A B, in one process, by processor time, which
other work disturbs least; medians over the turns. Rows of the last three kinds need --networks, a
folder of networks in the format of arXiv 2311.15996's.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rows import measure, options, read, table

import scoresens as ss
from scoresens.flow.euler import sample_euler
from scoresens.flow.tabulated import sample_both, sample_flow
from scoresens.fokker_planck.induced import rising_times
from scoresens.fokker_planck.residuals import potential_residual_at, score_residual_at
from scoresens.laws.scores import from_potential
from scoresens.models.potential import PotentialMLP, read_potential
from scoresens.studies.gap import PROCESS, euler_times

SIZES = {2: (4096, 80), 64: (128, 256), 784: (16, 256)}  # dimension: samples, width
TURNS = 9
SAMPLES = 4096  # of the precision rows
WITHIN = 6.0  # norms beyond it are of paths that leave for infinity


# ------------------------------------------------------------------ Laplacians and residuals


def laplacians(size: int) -> dict:
    """Every way to the Laplacian, and what the library takes, in turn."""
    potential, t, x = _problem(size)
    ways: dict[str, Callable] = {
        "forward": lambda p, t, x: p(t, x),
        "gradient": lambda p, t, x: jnp.sum(jax.grad(p, 1)(t, x)),
        "d JVPs": _bare_jvps,
        "linearized": _linearized,
        "folx": _forward_laplacian,
    }
    if size <= 64:
        ways["nested reverse"] = _nested
    times = _in_turns({name: _mapped(way, potential, t, x) for name, way in ways.items()})
    return {"samples": len(x), **_over(times, "d JVPs"), "us": _micros(times, len(x))}


def residuals(size: int) -> dict:
    """Residuals at the same points, in turn with d bare JVPs of the score."""
    potential, t, x = _problem(size)
    exact, probe = ss.Exact(), ss.Hutchinson()
    probes = probe.draw(jax.random.key(0), x[0])
    ways = {
        "d JVPs": _bare_jvps,
        "residual": lambda p, t, x: potential_residual_at(PROCESS, p, exact, None, t, x),
        "residual, 1 probe": lambda p, t, x: potential_residual_at(PROCESS, p, probe, probes, t, x),
        "score form": lambda p, t, x: score_residual_at(
            PROCESS, from_potential(p), exact, None, t, x
        ),
        "score form, 1 probe": lambda p, t, x: score_residual_at(
            PROCESS, from_potential(p), probe, probes, t, x
        ),
    }
    if size <= 64:
        ways["residual, nested reverse"] = _nested_residual
    times = _in_turns({name: _mapped(way, potential, t, x) for name, way in ways.items()})
    rates = {name: round(len(x) / float(np.median(spent))) for name, spent in times.items()}
    return {"samples": len(x), **_over(times, "d JVPs"), "per_second": rates}


def _problem(size):
    samples, width = SIZES[size]

    potential = PotentialMLP(size, width=width, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (samples, size))
    return potential, jnp.full(samples, 0.5), x


def _bare_jvps(potential, t, x):
    gradient = functools.partial(jax.grad(potential, 1), t)

    def push(i):
        unit = jnp.zeros(x.size, x.dtype).at[i].set(1.0)
        return jax.jvp(gradient, (x,), (unit,))[1]

    size = min(32, x.size)
    return jnp.sum(jax.lax.map(push, jnp.arange(x.size), batch_size=size))


def _linearized(potential, t, x):
    _, push = jax.linearize(functools.partial(jax.grad(potential, 1), t), x)
    return ss.Exact().apply(jax.vmap(push), None, jnp.zeros((0, x.size), x.dtype))[0]


def _forward_laplacian(potential, t, x):
    import folx

    return folx.forward_laplacian(functools.partial(potential, t))(x).laplacian


def _nested(potential, t, x):
    """Reverse mode over reverse mode, a direction at a time: what autograd users write."""
    gradient = functools.partial(jax.grad(potential, 1), t)
    rows = jax.lax.map(lambda i: jax.grad(lambda y: gradient(y)[i])(x)[i], jnp.arange(x.size))
    return jnp.sum(rows)


def _nested_residual(potential, t, x):
    rate, score = jax.grad(potential, (0, 1))(t, x)
    curve = _nested(potential, t, x) + jnp.vdot(score, score)
    return rate - x.size - jnp.vdot(x, score) - 0.5 * curve


def _mapped(way, potential, t, x):
    run = jax.jit(jax.vmap(way, (None, 0, 0)))
    return lambda: run(potential, t, x)


# ------------------------------------------------------------------ samplers


def precision(folder: Path, name: str) -> dict:
    """Errors and times of samplers of the flow, from the same noise."""
    score = from_potential(read_potential(folder / f"{name}.npz"))
    noise = PROCESS.sample_prior((SAMPLES, 2), key=jax.random.key(0))
    flow = functools.partial(ss.sample_ode, PROCESS, score, noise)
    tight = _solve(solver=diffrax.Tsit5(), rtol=1e-7, atol=1e-7, max_steps=30_000)
    truth = np.asarray(flow(solve=tight).x)
    inside = np.linalg.norm(truth, axis=1) < WITHIN
    rules: dict[str, tuple[Callable, float]] = {
        "Euler 890": (lambda: sample_euler(PROCESS, score, noise, _times()), 890)
    }
    for label, solver, steps, stages in (
        ("Heun 40", diffrax.Heun(), 40, 2),
        ("Heun 80", diffrax.Heun(), 80, 2),
        ("Bosh3 40", diffrax.Bosh3(), 40, 3),
        ("Bosh3 80", diffrax.Bosh3(), 80, 3),
        ("Tsit5 40", diffrax.Tsit5(), 40, 6),
    ):
        solve = _solve(solver=solver, steps=steps, rho=10.0)
        rules[label] = (functools.partial(flow, solve=solve), steps * stages)
    for tolerance in (1e-3, 1e-4, 1e-5):
        solve = _solve(solver=diffrax.Tsit5(), rtol=tolerance, atol=tolerance)
        steps = float(jnp.mean(flow(solve=solve).stats.steps))
        rules[f"Tsit5 {tolerance:g}"] = (functools.partial(flow, solve=solve), 6 * steps)
    times = _in_turns({label: (lambda run=run: run().x) for label, (run, _) in rules.items()}, 3)
    made: dict[str, object] = {"samples": SAMPLES, "left_out": int(np.sum(~inside))}
    for label, (run, evaluations) in rules.items():
        off = np.linalg.norm(np.asarray(run().x) - truth, axis=1)[inside]
        made[label] = {
            "rms": float(np.sqrt(np.mean(off**2))),
            "median": float(np.median(off)),
            "evaluations": round(evaluations),
            "ms_per_sample": round(1e3 * float(np.median(times[label])) / SAMPLES, 5),
        }
    return made


def look_ups(folder: Path, name: str) -> dict:
    """Looked-up paths beside evaluated ones, and what each sample costs."""
    score = from_potential(read_potential(folder / f"{name}.npz"))
    noise, key = PROCESS.sample_prior((SAMPLES, 2), key=jax.random.key(0)), jax.random.key(1)
    both = sample_both(PROCESS, score, noise, _times(), key=key)
    evaluated = [
        sample_euler(PROCESS, score, noise, _times(), route=route, solve=ss.Solve(throw=False)).x
        for route in (ss.Flow(), ss.Diffusion(key))
    ]
    solve = _solve(steps=100, rho=10.0)
    flow = sample_flow(PROCESS, score, noise, rising_times(PROCESS, solve)[::-1])
    tight = _solve(solver=diffrax.Tsit5(), rtol=1e-6, atol=1e-6, max_steps=30_000)
    pairs = {
        "ode": (both.ode, evaluated[0]),
        "sde": (both.sde, evaluated[1]),
        "flow": (flow, ss.sample_ode(PROCESS, score, noise, solve=tight).x),
    }
    made: dict[str, object] = {"samples": SAMPLES}
    for law, (looked, truth) in pairs.items():
        inside = np.linalg.norm(truth, axis=1) < WITHIN
        off = np.linalg.norm(np.asarray(looked - truth), axis=1)[inside]
        made[law] = {
            "rms": float(np.sqrt(np.mean(off**2))),
            "median": float(np.median(off)),
            "p99": float(np.quantile(off, 0.99)),
        }
    return made


def reference(folder: Path, name: str) -> dict:
    """Euler's rule in eager PyTorch, as published: autograd's gradient at each step."""
    import torch

    arrays = {k: torch.tensor(v) for k, v in np.load(folder / f"{name}.npz").items()}
    soft = torch.nn.Softplus(beta=100, threshold=20)

    def potential(t, x):
        h = torch.cat([torch.full((len(x), 1), t), x], 1)
        for layer in ("input", "hidden1", "hidden2"):
            h = soft(h @ arrays[f"{layer}_w"].T + arrays[f"{layer}_b"])
        return h @ arrays["output_w"].T + arrays["output_b"]

    count, times = 20_000, euler_times()
    x = (0.5**0.5) * torch.randn(count, 2)
    began, spent = time.perf_counter(), time.process_time()
    for t, size in zip(times[:-1], -np.diff(times), strict=True):
        x = x.detach().requires_grad_(True)
        (score,) = torch.autograd.grad(potential(float(t), x).sum(), x)
        x = x + (x + 0.5 * score) * float(size)
    return {
        "samples": count,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "wall_seconds": round(time.perf_counter() - began, 2),
        "processor_ms_per_sample": round(1e3 * (time.process_time() - spent) / count, 5),
    }


def _times():
    return jnp.asarray(euler_times())


def _solve(**given):
    return ss.Solve(throw=False, batch_size=SAMPLES, **given)


# ------------------------------------------------------------------ times and tables


def _in_turns(programs, turns=TURNS):
    """Seconds of processor time of each program at each turn, compiled before."""
    for run in programs.values():
        jax.block_until_ready(run())
    spent: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(turns):
        for name, run in programs.items():
            began = time.process_time()
            jax.block_until_ready(run())
            spent[name].append(time.process_time() - began)
    return spent


def _over(times, reference):
    """Median ratio and quartiles, each taken within a turn."""
    base = np.array(times[reference])
    return {
        name: [round(float(q), 3) for q in np.quantile(np.array(spent) / base, (0.25, 0.5, 0.75))]
        for name, spent in times.items()
        if name != reference
    }


def _micros(times, samples):
    return {name: round(1e6 * float(np.median(t)) / samples, 3) for name, t in times.items()}


def rows(folder: Path | None) -> dict[str, Callable[[], dict]]:
    """What there is to measure."""
    made: dict[str, Callable[[], dict]] = {}
    for size in SIZES:
        made[f"laplacian d={size}"] = functools.partial(laplacians, size)
        made[f"residual d={size}"] = functools.partial(residuals, size)
    if folder is not None:
        for name in ("circles2_w1.0", "circles2_w0.0"):
            made[f"precision {name}"] = functools.partial(precision, folder, name)
            made[f"look-up {name}"] = functools.partial(look_ups, folder, name)
        made["reference circles2_w1.0"] = functools.partial(reference, folder, "circles2_w1.0")
    return made


def tables() -> str:
    """The markdown of docs/gap.md."""
    done = read("fokker_planck")

    def spread(values):
        return f"{values[1]:.2f} ({values[0]:.2f}–{values[2]:.2f})"

    ratios, samplers = [], []
    for name, row in done.items():
        if name.startswith(("laplacian", "residual")):
            ratios += [[name, way, spread(v)] for way, v in row.items() if isinstance(v, list)]
        if name.startswith("precision"):
            samplers += [
                [name.split()[1], rule, f"{v['rms']:.1e}", f"{v['median']:.1e}",
                 f"{v['evaluations']}", f"{v['ms_per_sample']:.3f}"]
                for rule, v in row.items() if isinstance(v, dict)
            ]  # fmt: skip
    parts = [
        table(["", "way", "over d JVPs"], ratios),
        table(["network", "rule", "rms", "median", "evaluations", "ms a sample"], samplers),
    ]
    return "\n\n".join(parts)


def picture(file: Path) -> None:
    """Error against time a sample: the reference's code, its rule compiled, and our samplers."""
    from matplotlib.figure import Figure

    done = read("fokker_planck")
    eager = done["reference circles2_w1.0"]["processor_ms_per_sample"]
    names = [name for name in done if name.startswith("precision")]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        row = {rule: at for rule, at in done[name].items() if isinstance(at, dict)}
        euler = row.pop("Euler 890")
        axes.scatter(eager, euler["rms"], marker="X", s=70, color="#D55E00",
                     label="Euler, 890 steps, the literature's code (eager PyTorch)")  # fmt: skip
        axes.scatter(euler["ms_per_sample"], euler["rms"], marker="X", s=70, color="#E69F00",
                     label="the same rule, sample_euler")  # fmt: skip
        for kind, colour in (("Heun", "#0072B2"), ("Bosh3", "#009E73"), ("Tsit5 ", "#CC79A7")):
            own = {r: at for r, at in row.items() if r.startswith(kind) and r != "Tsit5 40"}
            label = "sample_ode, Tsit5, adaptive" if kind == "Tsit5 " else f"sample_ode, {kind}"
            axes.plot([at["ms_per_sample"] for at in own.values()],
                      [at["rms"] for at in own.values()],
                      "o-", color=colour, label=label)  # fmt: skip
            for rule, at in own.items():
                axes.annotate(rule.split()[1], (at["ms_per_sample"], at["rms"]), (3, 4),
                              textcoords="offset points", fontsize=7, color=colour)  # fmt: skip
        axes.set(xscale="log", yscale="log", title=name.split()[1],
                 xlabel="processor time a sample, ms")  # fmt: skip
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("root mean square error of x")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  fontsize=8, frameon=False)  # fmt: skip
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--networks", type=Path, help="a folder of reference networks")
    parser.add_argument("--picture", type=Path, help="draw error against time to this file")
    args = parser.parse_args()
    if args.picture:
        picture(args.picture)
    elif args.table:
        print(tables())
    else:
        measure("fokker_planck", rows(args.networks), args.only, args.fresh)


if __name__ == "__main__":
    main()

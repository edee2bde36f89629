"""What a sensitivity costs: time, network evaluations and memory.

    (a)  one direction, model's law      over sampling + log-likelihood, one probe each, same grid
    (b)  each further direction          over one bare `jax.jvp` of the network
    (c)  network evaluations a sample    counted by the score itself
    (d)  working memory                  against samples M and directions K

Compiled first; then the compared programs run in turn, A B A B, in one process, and each ratio is
taken within a turn: what is reported is the median ratio and its quartiles over the turns.

Floor: with F a forward pass and T a tangent pass (`jvp` less F), (a) cannot be less than
(F + 2 T) / (F + T), and (b) not less than T / (F + T), unless passes batched together are cheaper
than passes alone. F itself is compared with the network's multiplications at the rate of a large
matrix product.
"""

import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rows import measure, options, read, table
from timing import in_turns

import scoresens as ss
from scoresens import datasets
from scoresens.laws.scores import Score, canonical_denoiser
from scoresens.models import Denoiser, UNet, pretrained

PROCESS = ss.VP()
KEY = jax.random.key(0)


class Setting(NamedTuple):
    """A network and how long its runs are: ratios are per stage, so a slow network takes fewer."""

    score: Score
    shape: tuple[int, ...]
    solve: ss.Solve
    directions: tuple[int, ...]
    turns: int
    stages = property(lambda self: 2 * self.solve.steps)


def mlp() -> Setting:
    """The digits' residual MLP, 0.13 M parameters."""
    net, _ = pretrained("digits")
    score = ss.from_canonical(PROCESS, net)
    return Setting(score, net.network.shape, ss.Solve(), (1, 2, 4, 8, 16, 32), 15)


def unet() -> Setting:
    """A U-Net of 0.15 M parameters on 16 x 16 images, its parameters random: only its times mean
    anything, so that a density ratio may overflow (`throw=False`)."""
    shape = (16, 16, 1)
    graph, state = nnx.split(Denoiser(UNet(shape, rngs=nnx.Rngs(0)), 0.5))
    state = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(KEY, p.shape), state)
    score = ss.from_canonical(PROCESS, nnx.merge(graph, state))
    return Setting(score, shape, ss.Solve(steps=5, throw=False), (1, 2, 4, 8), 9)


NETWORKS: dict[str, Callable[[], Setting]] = {"mlp": mlp, "unet": unet}


# ------------------------------------------------------------------ (a) and (b): time


def one_direction(setting: Setting, samples: int) -> dict:
    """(a)"""
    noise, solve = _noise(setting, samples), setting.solve
    add, law = ss.add(_images(setting, 1)), {"key": KEY, "solve": solve}
    sample = functools.partial(ss.sample_ode, PROCESS, setting.score, noise)
    push = functools.partial(ss.sample_sensitivity, PROCESS, setting.score, add, noise)
    times = in_turns(
        {
            "sample": lambda: sample(solve=solve),
            "likelihood": lambda: sample(trace=ss.Hutchinson(1), **law),
            "sensitivity": lambda: push(**law),
            "sensitivity_of_data": lambda: push(base=_data(setting), solve=solve),
            "forward": _network_alone(setting, noise, tangent=False),
            "jvp": _network_alone(setting, noise, tangent=True),
        },
        setting.turns,
    )
    floor = 2 - times["forward"] / times["jvp"]
    return {
        "samples": samples,
        "ratio": _spread(times["sensitivity"] / times["likelihood"]),
        "floor": _spread(floor),
        "base_data_over_sampling": _spread(times["sensitivity_of_data"] / times["sample"]),
        "sample_over_network": _spread(times["sample"] / times["forward"]),
        "likelihood_over_network": _spread(times["likelihood"] / times["jvp"]),
        "ms_per_stage": _milliseconds(times, setting.stages),
    }


def further_directions(setting: Setting, samples: int) -> dict:
    """(b): the slope of the time against K, over the time of the network's bare JVPs."""
    noise, images = _noise(setting, samples), _images(setting, max(setting.directions))

    def program(count):
        add = ss.add(images[:count])
        return lambda: ss.sample_sensitivity(
            PROCESS, setting.score, add, noise, key=KEY, solve=setting.solve
        )

    programs = {str(count): program(count) for count in setting.directions}
    programs["forward"] = _network_alone(setting, noise, tangent=False)
    programs["jvp"] = _network_alone(setting, noise, tangent=True)
    times = in_turns(programs, setting.turns)
    counts = np.array(setting.directions)
    slope = np.polyfit(counts, np.stack([times[str(count)] for count in counts]), 1)[0]
    return {
        "samples": samples,
        "ratio": _spread(slope / times["jvp"]),
        "floor": _spread(1 - times["forward"] / times["jvp"]),
        "ms_per_stage": _milliseconds(times, setting.stages),
    }


def kernels(setting: Setting, samples: int) -> dict:
    """The data's own work at the same stages, over the network's bare JVPs."""
    noise, images = _noise(setting, samples), _images(setting, 1797)
    points = {
        "64 directions, a point each": ss.add(images[:64]),
        "1 direction, 178 points": ss.add(ss.Points(images[:178])),
        "1 direction, 1797 weights": ss.reweight(ss.Points(images), np.arange(1.0, 1798.0)),
    }

    @jax.jit
    def changes(x, perturbation):
        def one(tau, x):
            zero = jnp.zeros((), x.dtype)
            return perturbation.denoiser_derivative(tau, x, zero, x)

        def stage(i, tangent):  # carried whole, [M, K, *shape], as a path does
            tau = 10.0 * 0.9 ** jnp.asarray(i, x.dtype)
            return 0.5 * tangent + jax.vmap(one, (None, 0))(tau, x)

        start = jnp.zeros((samples, len(perturbation), *setting.shape))
        return jax.lax.fori_loop(0, setting.stages, stage, start)

    def posterior(tau, x, base):
        return base.posterior(tau, x).mean

    programs = {name: functools.partial(changes, noise, law) for name, law in points.items()}
    programs["base=data, 1797 points"] = _at_stages(
        posterior, setting.stages, noise, _data(setting)
    )
    programs["jvp"] = _network_alone(setting, noise, tangent=True)
    times = in_turns(programs, setting.turns)
    shares = {name: _spread(times[name] / times["jvp"]) for name in programs if name != "jvp"}
    return {"samples": samples, **shares, "ms_per_stage": _milliseconds(times, setting.stages)}


def _network_alone(setting, noise, *, tangent):
    """The bare network, or its JVP, as often as a path has stages."""

    def forward(tau, x, score):
        return canonical_denoiser(PROCESS, score, tau, x)

    def jvp(tau, x, score):
        value, image = jax.jvp(functools.partial(forward, tau, score=score), (x,), (x,))
        return 0.5 * (value + image)

    return _at_stages(jvp if tangent else forward, setting.stages, noise, setting.score)


def _at_stages(function, stages, x, args):
    """`function(tau, x, args) -> like x` mapped over samples, at falling noise levels in a loop."""

    @jax.jit
    def run(x, args):
        def stage(i, x):
            tau = 10.0 * 0.9 ** jnp.asarray(i, x.dtype)
            image = jax.vmap(function, (None, 0, None))(tau, x, args)
            return jnp.where(jnp.isfinite(image), jnp.clip(image, -3, 3), 1.0)

        return jax.lax.fori_loop(0, stages, stage, x)

    return lambda: run(x, args)


# ------------------------------------------------------------------ (c) evaluations


def evaluations(setting: Setting) -> dict:
    """(c): the default settings, counted by a score that counts."""
    count = {"calls": 0}

    def tick(_):
        count["calls"] += 1

    def counting(t, x):
        jax.debug.callback(tick, x)  # once a sample: x is mapped over, t is not
        return setting.score(t, x)

    noise, add, law = _noise(setting, 2), ss.add(_images(setting, 1)), {"key": KEY}
    base, score = _data(setting), jax.tree_util.Partial(counting)
    run = functools.partial(ss.sample_sensitivity, PROCESS, score, add, noise)
    verbs = {
        "sample_ode": lambda: ss.sample_ode(PROCESS, score, noise),
        "sample_ode, log_density": lambda: ss.sample_ode(
            PROCESS, score, noise, trace=ss.Hutchinson(1), **law
        ),
        "sample_sensitivity": lambda: run(**law),
        "sample_sensitivity, base=data": lambda: run(base=base),
        "counterfactual": lambda: ss.counterfactual(
            PROCESS, score, add, noise, mass=0.1, base=base
        ),
    }
    made = {}
    for name, verb in verbs.items():
        count["calls"] = 0
        jax.block_until_ready(verb())
        jax.effects_barrier()
        made[name] = count["calls"] / len(noise)
    return made


# ------------------------------------------------------------------ (d) memory


def memory(name: str, setting: Setting) -> dict:
    """(d): MB that the compiled program asks for beside its arguments and results; and, for the
    largest, what a fresh process grew by while it ran."""
    cells = [(16, 1), (64, 1), (256, 1), (1024, 1), (64, 4), (64, 16), (64, 64)]
    made = {f"M={m} K={k}": _temporary(setting, m, k) for m, k in cells}
    made["data, M=64 K=1 N=1797"] = _temporary(setting, 64, 1, of_data=True)
    command = [sys.executable, __file__, "--grown-by", name]
    grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return made | {"resident growth, M=256 K=64": round(float(grown.split()[-1]), 1)}


def _temporary(setting, samples, count, of_data=False):
    push = _pushed(setting, count, of_data)
    stats = push.lower(_noise(setting, samples)).compile().memory_analysis()
    return round(stats.temp_size_in_bytes / 1e6, 2)


def _pushed(setting, count, of_data=False):
    add, base = ss.add(_images(setting, count)), _data(setting) if of_data else None
    run = functools.partial(ss.sample_sensitivity, PROCESS, setting.score, add, base=base, key=KEY)
    return jax.jit(run)


def grown_by(setting: Setting) -> float:
    """MB of resident memory that running (not compiling) M = 256, K = 64 adds, results included."""
    noise = _noise(setting, 256)
    short = functools.partial(
        ss.sample_sensitivity, PROCESS, setting.score, ss.add(_images(setting, 64))
    )
    run = jax.jit(lambda noise: short(noise, key=KEY, solve=ss.Solve(steps=2)))
    run = run.lower(noise).compile()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, the compiler's, is forgotten
    before = _peak_memory()
    jax.block_until_ready(run(noise))
    return _peak_memory() - before


def _peak_memory():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status).group(1)) / 1e3


# ------------------------------------------------------------------ machine


def machine() -> dict:
    """The rate of a 1024 matrix product, and each network's multiplications at that rate."""
    square = jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)
    seconds = in_turns({"product": lambda: product(square, square)}, 50)["product"]
    rate = 2 * 1024**3 / np.median(seconds)
    made = {
        "gigaflops": round(rate / 1e9),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "jax": jax.__version__,
    }
    for name, make in NETWORKS.items():
        setting = make()
        made[f"{name} megaflops"] = round(_flops(setting) / 1e6, 2)
        made[f"{name} ms a stage at that rate, M=64"] = round(64e3 * _flops(setting) / rate, 3)
    return made


def _flops(setting):
    """Floating-point operations of one evaluation's products, from the compiler."""
    forward = jax.jit(lambda score, x: canonical_denoiser(PROCESS, score, jnp.float32(1), x))
    noise = _noise(setting, 1)[0]
    return forward.lower(setting.score, noise).cost_analysis()["flops"]


def _processor():
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found.group(1) if found else platform.machine()


# ------------------------------------------------------------------ inputs and outputs


def _noise(setting, samples):
    return PROCESS.sample_prior((samples, *setting.shape), key=KEY)


@functools.cache
def _digits():
    return datasets.load("digits").images


def _images(setting, count):
    """`count` digits, padded with background to the network's shape."""
    images = np.asarray(_digits()[:count])
    width = [(0, 0)] + [(0, new - old) for new, old in zip(setting.shape, (8, 8, 1), strict=True)]
    return jnp.asarray(np.pad(images, width, constant_values=-1.0))


def _data(setting):
    images = _images(setting, 1797)
    return ss.Points(images, bandwidth=ss.default_bandwidth(images))


def _spread(ratios):
    return [round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.5, 0.75))]


def _milliseconds(times, stages):
    return {name: round(1e3 * float(np.median(t)) / stages, 3) for name, t in times.items()}


def rows() -> dict[str, Callable[[], dict]]:
    """What there is to measure."""
    made: dict[str, Callable[[], dict]] = {"machine": machine}
    for name, make in NETWORKS.items():
        setting = functools.cache(make)
        made |= {
            f"{name} one direction M=64": lambda s=setting: one_direction(s(), 64),
            f"{name} one direction M=16": lambda s=setting: one_direction(s(), 16),
            f"{name} further directions M=64": lambda s=setting: further_directions(s(), 64),
            f"{name} kernels M=64": lambda s=setting: kernels(s(), 64),
            f"{name} evaluations": lambda s=setting: evaluations(s()),
            f"{name} memory": lambda s=setting, n=name: memory(n, s()),
        }
    made["mlp one direction M=256"] = lambda: one_direction(mlp(), 256)
    return made


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--grown-by", choices=NETWORKS, help="for (d): one run, its growth in MB")
    args = parser.parse_args()
    if args.grown_by:
        print(grown_by(NETWORKS[args.grown_by]()))
    elif args.table:
        print(tables())
    else:
        measure("cost", rows(), args.only, args.fresh)


def tables() -> str:
    """The markdown of `docs/performance.md`."""
    done = read("cost")

    def spread(values):
        return f"{values[1]:.2f} ({values[0]:.2f}–{values[2]:.2f})"

    time_rows, kernel_rows, memory_rows, count_rows = [], [], [], []
    for name, row in done.items():
        net = name.split()[0]
        if "one direction" in name:
            bare = row["ms_per_stage"]["sensitivity"] / row["ms_per_stage"]["jvp"]
            what = f"(a) {net}, M = {row['samples']}"
            line = [what, spread(row["ratio"]), "1.5", spread(row["floor"]), f"{bare:.2f}"]
            time_rows.append(line)
        if "further" in name:
            what = f"(b) {net}, M = {row['samples']}"
            time_rows.append([what, spread(row["ratio"]), "1.2", spread(row["floor"]), ""])
        if "kernels" in name:
            kernel_rows += [[net, what, spread(v)] for what, v in row.items()
                            if isinstance(v, list)]  # fmt: skip
        if "memory" in name:
            memory_rows += [[net, what, f"{v:.1f}"] for what, v in row.items() if "K=" in what]
        if "evaluations" in name and net == "mlp":
            count_rows += [[what, f"{v:.0f}"] for what, v in row.items() if what[0] in "sc" and
                           what != "seconds"]  # fmt: skip
    parts = [
        table(
            ["ratio: median (quartiles)", "measured", "asked", "passes alone", "over one bare JVP"],
            time_rows,
        ),
        table(["verb, default settings", "evaluations a sample"], count_rows),
        table(["network", "the data's work at a stage, M = 64", "over one JVP"], kernel_rows),
        table(["network", "default settings", "MB"], memory_rows),
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()

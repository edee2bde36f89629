"""Samples a second beside PyTorch: sampling, log-likelihood and one direction's tangent.

    ours                  `sample_sensitivity` of M samples at once, jitted, default settings
    ours, Heun alone      the same with log rho by Heun's rule too, as torch has it
    ours, one by one      a Python loop over a jitted function of one sample
    torch compiled, ...   the same network by `to_torch`, M samples at once, `torch.compile`
    torch eager, ...      the same without it
    torch, one by one     a Python loop over the fastest eager form, one sample at a time

All follow the same formulas (2.1), (3.1) and (4.1) with `base=None`, from the same noise and probe
and on the same grid by Heun's rule, in float32 on the same cores; the benchmark fails unless those
that follow log rho by that rule too give the same samples, log-densities and tangents, and all the
same samples. By default ours follows log rho from node to node, a better rule at two evaluations
more a sample: its log-densities are others (`apart`). Torch pushes the probe and the tangent
forward through the network in two forms: `mapped`, one forward pass and two tangents by `vmap` over
`jvp`, or `stacked`, one dual number each for a batch of 2 M, whose forward pass is done twice. The
loops are timed on a few samples, as they take equally long for each.

First called once, which is timed apart: it compiles. Then the programs run in turn, A B C A B C,
in one process, and each ratio is taken within a turn: what is reported is the median ratio and its
quartiles over the turns. The ratio that counts, `over_torch`, is to torch's fastest form.

Floor: a sample takes two network evaluations a step, each of one forward pass and two tangents,
hence three times the network's multiplications, at the rate of a large matrix product.

It wants torch: pip install -e '.[cli,torch]'.
"""

import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Container
from dataclasses import replace
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import torch
from cost import KEY, PROCESS, Setting, mlp, unet
from rows import Row, measure, options, read, table
from timing import in_turns, matrix_rate
from torch.autograd import forward_ad

import scoresens as ss
from scoresens import datasets
from scoresens.flow import starts
from scoresens.flow.solve import grid
from scoresens.importers import to_torch
from scoresens.models.preconditioning import TAU_FLOOR

TRACE = ss.Hutchinson(1)
LOOPED = 4  # samples of a loop over samples
APART = 2e-3  # what float32 may differ by: log rho by 1e-3 nats, a tangent by as much of itself
ALONE = "ours, Heun alone"
CORES = len(os.sched_getaffinity(0))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # x, the gain of log rho, the tangent
Pushed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # D, J_D probe, J_D tangent


class Program(NamedTuple):
    """Something to time, and how many samples it makes."""

    run: Callable[[], State]
    samples: int


def compared(setting: Setting, samples: int) -> Row:
    """All programs, side by side, which must compute the same."""
    row = measured(setting, samples, ours(setting, samples) | in_torch(setting, samples))
    if row["failed"]:
        raise SystemExit(f"these failed: {row['failed']}")
    _check(row["apart"])
    return row


def measured(setting: Setting, samples: int, programs: dict[str, Program]) -> Row:
    """Programs in turn: their first calls, their rates, and how far they are from ours."""
    torch.compiler.reset()
    answers, first, failed = {}, {}, {}
    for name, program in programs.items():
        began = time.perf_counter()
        try:
            answers[name] = jax.block_until_ready(program.run())
        except Exception as error:  # another version of torch's compiler may refuse
            failed[name] = f"{type(error).__name__}: {error}"[:300]
        first[name] = round(time.perf_counter() - began, 2)
    if len(answers) < 2:
        raise RuntimeError(f"nothing to compare, these failed: {failed}")
    apart = {
        name: _apart(answer, answers[_like(name, answers)]) for name, answer in answers.items()
    }
    seconds = in_turns({name: programs[name].run for name in answers}, setting.turns)
    each = {name: seconds[name] / programs[name].samples for name in answers}
    batched = [name for name in each if name.startswith("torch ")]
    fastest = min(batched, key=lambda name: np.median(each[name]))
    floor = 3 * 2 * setting.solve.steps * _operations(setting) / matrix_rate(1024, 1024, 1024)
    return {
        "samples": samples,
        "over_torch": _spread(each[fastest] / each["ours"]),
        "fastest_torch": fastest,
        "over": {name: _spread(each[name] / each["ours"]) for name in each if name != "ours"},
        "samples_per_second": {name: _three(1 / np.median(times)) for name, times in each.items()},
        "over_floor": {name: _three(np.median(times) / floor) for name, times in each.items()},
        "first_call_seconds": first,
        "apart": apart,
        "failed": failed,
        "cores": CORES,
        "torch": torch.__version__,
        "jax": jax.__version__,
    }


# ------------------------------------------------------------------ ours


class HeunAlone(diffrax.Heun):
    """Heun's rule for log rho as well: of this order, `solve.by_nodes` leaves it to the solver."""

    def order(self, terms):
        return 4


def ours(setting, samples) -> dict[str, Program]:
    noise, keys = _noise(setting, samples), _keys(samples)
    add = ss.add(_image(setting)[None])

    @functools.partial(jax.jit, static_argnames="solve")
    def push(noise, keys, solve=setting.solve):
        moved = ss.sample_sensitivity(
            PROCESS, setting.score, add, noise, trace=TRACE, key=keys, solve=solve
        )
        return moved.x, moved.log_density, moved.tangent[:, 0]

    alone, looped = replace(setting.solve, solver=HeunAlone()), min(LOOPED, samples)
    singles = [(noise[i : i + 1], keys[i : i + 1]) for i in range(looped)]

    def one_by_one():
        each = [push(*single) for single in singles]
        return tuple(np.concatenate(parts) for parts in zip(*each, strict=True))

    return {
        "ours": Program(lambda: push(noise, keys), samples),
        ALONE: Program(lambda: push(noise, keys, alone), samples),
        "ours, one by one": Program(one_by_one, looped),
    }


# ------------------------------------------------------------------ torch


class Setup(NamedTuple):
    """What a path needs in torch."""

    denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    push: Callable[..., Pushed]
    image: torch.Tensor  # [*shape], the direction's only point
    levels: torch.Tensor  # [steps + 1]
    log_alpha: float  # of the process, where the paths begin


def in_torch(setting, samples) -> dict[str, Program]:
    first = PROCESS.to_canonical(PROCESS.t_max, _noise(setting, samples))
    probes = jax.vmap(lambda key, x: TRACE.draw(key, x)[0])(_keys(samples), first)
    x, probe = _tensor(first), _tensor(probes)

    def program(step, setup, count=samples):
        def run():
            with torch.no_grad():
                return _ended(walk(step, setup, x[:count], probe[:count]))

        return Program(run, count)

    def loop(setup, count):
        def run():
            with torch.no_grad():
                each = [walk(heun, setup, x[i : i + 1], probe[i : i + 1]) for i in range(count)]
            return _ended(tuple(map(torch.cat, zip(*each, strict=True))))

        return Program(run, count)

    made = {}
    for push in (mapped, stacked):
        setup = _setup(setting, push, written_out=True)
        step = torch.compile(heun, dynamic=False, fullgraph=True)
        made[f"torch compiled, {push.__name__}"] = program(step, setup)
    for push in (mapped, stacked):
        setup = _setup(setting, push, written_out=False)
        made[f"torch eager, {push.__name__}"] = program(heun, setup)
    made["torch, one by one"] = loop(_setup(setting, stacked, False), min(LOOPED, samples))
    return made


def _setup(setting, push, written_out: bool) -> Setup:
    denoiser = setting.score.args[1]
    network = to_torch(denoiser).requires_grad_(False).network.to(DEVICE)
    network = _with_written_norms(network) if written_out else network
    spread = denoiser.sigma_data

    def denoise(tau, x):  # as `to_torch` has it, but the noise level is embedded once for all
        total = tau**2 + spread**2
        c_noise = tau.clamp(min=TAU_FLOOR).log().reshape(1) / 4
        inner = network(c_noise, x * total.rsqrt())
        return spread**2 / total * x + tau * spread * total.rsqrt() * inner

    t_max = jnp.float32(PROCESS.t_max)
    end = starts.lowest_level(PROCESS, setting.solve)
    levels = grid(PROCESS.noise_level(t_max), end, setting.solve)
    log_alpha = float(PROCESS.log_alpha(t_max))
    return Setup(denoise, push, _tensor(_image(setting)), _tensor(levels), log_alpha)


def walk(step: Callable, setup: Setup, x: torch.Tensor, probe: torch.Tensor) -> State:
    """Samples, their log-densities and their tangents, from canonical noise `[M, *shape]`."""
    size, levels = x[0].numel(), setup.levels
    prior = -0.5 * _dot(x, x) * math.exp(2 * setup.log_alpha)
    prior = prior - size * (0.5 * math.log(2 * math.pi) - setup.log_alpha)
    state = x, prior + yardstick(levels[0], size), torch.zeros_like(x)
    for tau, after in itertools.pairwise(levels):
        state = step(setup, tau, after, state, probe)
    x, gain, tangent = state
    return x, gain - yardstick(levels[-1], size), tangent


def heun(
    setup: Setup, tau: torch.Tensor, after: torch.Tensor, state: State, probe: torch.Tensor
) -> State:
    """One step of the explicit trapezoidal rule."""
    size = after - tau
    first = rates(setup, tau, state, probe)
    moved = tuple(y + size * k for y, k in zip(state, first, strict=True))
    second = rates(setup, after, moved, probe)
    ends = zip(state, first, second, strict=True)
    return tuple(y + 0.5 * size * (k + last) for y, k, last in ends)


def rates(setup: Setup, tau: torch.Tensor, state: State, probe: torch.Tensor) -> State:
    """d(x, gain, tangent)/dtau."""
    x, gain, tangent = state
    size, each = x[0].numel(), (-1, *[1] * (x.ndim - 1))
    denoised, image, pushed = setup.push(functools.partial(setup.denoise, tau), x, probe, tangent)
    grown = (_dot(probe, image) - size) / tau + size * tau / (tau**2 + starts.BREADTH**2)
    away = setup.image - x
    log_kernel = -0.5 * _dot(away, away) / tau**2
    log_kernel = log_kernel - size * (tau.log() + 0.5 * math.log(2 * math.pi))
    ratio = (log_kernel - gain + yardstick(tau, size)).exp().reshape(each)
    moved = pushed + ratio * (setup.image - denoised)
    return (x - denoised) / tau, grown, (tangent - moved) / tau


def mapped(
    denoise: Callable, x: torch.Tensor, probe: torch.Tensor, tangent: torch.Tensor
) -> Pushed:
    """One forward pass, and both tangents mapped over."""

    def push(along):
        return torch.func.jvp(denoise, (x,), (along,))

    both = torch.stack([probe, tangent])
    denoised, (image, pushed) = torch.func.vmap(push, out_dims=(None, 0))(both)
    return denoised, image, pushed


def stacked(
    denoise: Callable, x: torch.Tensor, probe: torch.Tensor, tangent: torch.Tensor
) -> Pushed:
    """A batch twice as large with a tangent each: less to dispatch, a forward pass too many."""
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.cat([x, x]), torch.cat([probe, tangent]))
        denoised, images = forward_ad.unpack_dual(denoise(dual))
    return (denoised[: len(x)], *images.chunk(2))


def yardstick(tau: torch.Tensor, size: int) -> torch.Tensor:
    """A gain minus its log-density, as in `paths`."""
    return 0.5 * size * (tau**2 + starts.BREADTH**2).log()


def _dot(a, b):
    return (a * b).flatten(1).sum(1)


# ------------------------------------------------------------------ norms that take tangents


class WrittenGroupNorm(torch.nn.GroupNorm):
    """The same in plain operations, which the compiler fuses."""

    def forward(self, h):
        groups = _standardized(h.unflatten(1, (self.num_groups, -1)).flatten(2), self.eps)
        return groups.reshape(h.shape) * self.weight[:, None, None] + self.bias[:, None, None]


class WrittenLayerNorm(torch.nn.LayerNorm):
    """The same; torch 2.13 fails to compile the forward derivative of its own (an internal assert
    on its fake tensors)."""

    def forward(self, h):
        return _standardized(h, self.eps) * self.weight + self.bias


def _standardized(h, eps):
    variance, mean = torch.var_mean(h, -1, keepdim=True, correction=0)
    return (h - mean) * (variance + eps).rsqrt()


def _with_written_norms(network: torch.nn.Module) -> torch.nn.Module:
    written = {torch.nn.GroupNorm: WrittenGroupNorm, torch.nn.LayerNorm: WrittenLayerNorm}
    for part in network.modules():
        part.__class__ = written.get(type(part), type(part))
    return network


# ------------------------------------------------------------------ agreement


def _like(name: str, answers: Container[str]) -> str:
    """What a program is held against: torch's against the same rule for log rho."""
    return ALONE if name.startswith("torch") and ALONE in answers else "ours"


def _apart(found: State, expected: State) -> dict[str, float]:
    """The worst sample's difference from ours, over what it differs from; log-densities below a
    nat, in nats."""
    made = {}
    for name, a, b in zip(("x", "log_density", "tangent"), found, expected, strict=True):
        a = np.asarray(a.cpu() if torch.is_tensor(a) else a).reshape(len(a), -1)
        b = np.asarray(b[: len(a)]).reshape(a.shape)
        least = 1.0 if name == "log_density" else 0.0
        difference, whole = np.linalg.norm(a - b, axis=1), np.linalg.norm(b, axis=1)
        made[name] = float(f"{np.max(difference / np.maximum(whole, least)):.2g}")
    return made


def _check(apart: dict[str, dict[str, float]]) -> None:
    """Stop where the programs do not compute the same."""
    apart = apart | {ALONE: {"x": apart[ALONE]["x"]}}  # the rest by another rule than ours
    wrong = {name: parts for name, parts in apart.items() if not max(parts.values()) < APART}
    wrong |= {name: parts for name, parts in apart.items() if np.isnan(list(parts.values())).any()}
    if wrong:
        raise SystemExit(f"these differ from ours by more than {APART}: {wrong}")


# ------------------------------------------------------------------ inputs and outputs


def _noise(setting, samples):
    return PROCESS.sample_prior((samples, *setting.shape), key=KEY)


def _keys(samples):
    """The library's own keys, one a sample."""
    return starts.sample_keys(TRACE, KEY, samples)


def _image(setting):
    """A digit, padded with background to the network's shape."""
    digit = datasets.load("digits").images[0]
    width = [(0, new - old) for new, old in zip(setting.shape, digit.shape, strict=True)]
    return jnp.asarray(np.pad(digit, width, constant_values=datasets.BACKGROUND))


def _tensor(values) -> torch.Tensor:
    return torch.from_numpy(np.array(values)).to(DEVICE)


def _ended(state: State) -> State:
    """The state once it is there: a card's programs return before they are done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return state


def _operations(setting) -> float:
    """Floating-point operations of one forward pass, counted by XLA."""
    forward = jax.jit(setting.score.args[1])
    x = jnp.zeros(setting.shape)
    return forward.lower(jnp.float32(1), x).compile().cost_analysis()["flops"]


def _spread(ratios):
    return [round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.5, 0.75))]


def _three(value) -> float:
    return float(f"{value:.3g}")


def rows() -> dict[str, Callable[[], Row]]:
    """What there is to measure."""
    return {
        "mlp M=64": lambda: compared(mlp(), 64),
        "mlp M=256": lambda: compared(mlp(), 256),
        "unet M=64": lambda: compared(unet(), 64),
    }


def markdown() -> str:
    """The table of docs/performance.md."""
    lines = []
    for name, row in read("throughput").items():
        network = name.split()[0]
        for program, rate in row["samples_per_second"].items():
            low, middle, high = row["over"].get(program, (1, 1, 1))
            ratio = "" if program == "ours" else f"{middle:.2f} ({low:.2f}–{high:.2f})"
            first = row["first_call_seconds"][program]
            apart = "" if program == "ours" else f"{max(row['apart'][program].values()):.0e}"
            mark = ", fastest" if program == row["fastest_torch"] else ""
            lines.append(
                [network, str(row["samples"]), program + mark, f"{rate:g}", ratio,
                 f"{row['over_floor'][program]:.1f}", f"{first:.0f}", apart]
            )  # fmt: skip
    header = ["network", "M", "program", "samples/s", "ours over it", "over the floor"]
    return table([*header, "first call, s", "apart by"], lines)


if __name__ == "__main__":
    given = options(__doc__).parse_args()
    if not given.table:
        torch.set_num_threads(CORES)
        torch._inductor.config.force_disable_caches = True  # a first call compiles
        measure("throughput", rows(), given.only, given.fresh)
    print(markdown())

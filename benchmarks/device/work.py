"""What is measured on a device, a function a row. Rows hold counts, seconds and bytes alone:
`report.py` divides."""

import functools
import importlib.metadata
import importlib.util
import math
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple
from unittest import mock

import cost
import counting
import jax
import jax.numpy as jnp
import laws
import networks
import numpy as np
from plan import PRECISIONS, VERBS
from points import KEY, states_and_points, tables_alone
from precision import errors as relative
from rows import Row
from timing import in_turns, matrix_rate

import scoresens as ss
from scoresens.laws.scores import Score
from scoresens.sensitivity.functionals import inner_product

PROCESS = networks.PROCESS
SAMPLES, STAGES = 16, 80  # of tables
LEAST = 2  # products that attribution to P = 1 functional cannot do without
TURNS = 5


class Case(NamedTuple):
    """A network, and what it is asked: few steps where one is slow, for all are alike."""

    score: Score
    shape: tuple[int, ...]
    samples: int
    solve: ss.Solve
    points: int


@functools.cache
def case_of(name: str, quick: bool) -> Case:
    """The digits' MLP; U-Nets of 0.16 M and of 35.7 M parameters, random. Quick: their likes."""
    few = ss.Solve(steps=1, throw=False)
    if name == "MLP":
        setting = cost.mlp()
        count, solve, points = (2, few, 64) if quick else (256, ss.Solve(throw=False), 1797)
        return Case(setting.score, setting.shape, count, solve, points)
    if name == "small U-Net":
        if quick:
            return Case(*networks.small(size=8, width=8), 2, few, 64)
        return Case(*networks.small(), 256, ss.Solve(steps=5, throw=False), 60_000)
    if quick:
        blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
        tiny = networks.cifar(sample_size=8, block_out_channels=(32,), layers_per_block=1, **blocks)
        return Case(*tiny, 2, few, 64)
    return Case(*networks.cifar(), 16, ss.Solve(steps=2, throw=False), 50_000)


@functools.cache
def passes(name: str, quick: bool) -> tuple[int, int, int]:
    """Operations of a network's forward pass, of a tangent's, of an adjoint's, for one sample."""
    score, shape = case_of(name, quick)[:2]
    forward = functools.partial(score, jnp.float32(0.5))
    along = jnp.ones(shape)
    programs = (
        forward,
        lambda x: jax.jvp(forward, (x,), (x,)),
        lambda x: jax.vjp(forward, x)[1](x),
    )
    alone, *more = (counting.product_flops(jax.make_jaxpr(p)(along).jaxpr) for p in programs)
    return alone, *(flops - alone for flops in more)


class Given(NamedTuple):
    """What the verbs are asked with."""

    score: Score
    noise: jax.Array
    change: ss.Perturbation
    data: ss.Points | None


def attributed(given: Given, solve: ss.Solve):
    ask = inner_product(jnp.ones(given.noise.shape[1:]))
    score, data = given.score, given.data
    return ss.attribute(PROCESS, score, data, ask, given.noise, top=10, solve=solve)


def plain(verb: Callable, **asked) -> Callable:
    """A verb of a score and of noise alone."""
    return lambda given, solve: verb(PROCESS, given.score, given.noise, solve=solve, **asked)


def changed(verb: Callable, of_data: bool = False, **asked) -> Callable:
    """A verb of a change of the data, too."""

    def ask(given, solve):
        base = {"base": given.data} if of_data else {}
        return verb(PROCESS, given.score, given.change, given.noise, solve=solve, **base, **asked)

    return ask


def score_moved(process, score, change, x, **asked):
    return ss.score_sensitivity(process, score, change, 0.5, x, **asked)


PROBED = {"trace": ss.Hutchinson(1), "key": KEY}
ASKS = {
    "sample_ode": plain(ss.sample_ode),
    "sample_sde": plain(ss.sample_sde, key=KEY),
    "encode, log-density": plain(ss.encode, **PROBED),
    "sample_sensitivity": changed(ss.sample_sensitivity, **PROBED),
    "sample_sensitivity, base=data": changed(ss.sample_sensitivity, of_data=True),
    "counterfactual, base=data": changed(ss.counterfactual, of_data=True, mass=0.2),
    "attribute, top 10": attributed,
    "score_sensitivity": changed(score_moved, **PROBED),
}


# ------------------------------------------------------------------ rows


def machine(quick: bool) -> Row:
    """What it is, the rate of a large product by default, and bytes a second of a copy."""
    array = jnp.ones(2**16 if quick else 2**28)
    copy = jax.jit(lambda x: x + 1)
    seconds = float(np.median(in_turns({"copy": lambda: copy(array)}, TURNS)["copy"]))
    torch = importlib.metadata.version("torch") if importlib.util.find_spec("torch") else None
    versions = {"python": platform.python_version(), "jax": jax.__version__, "torch": torch}
    return rate(None, quick) | {"bandwidth": 2 * array.nbytes / seconds} | versions


def rate(precision: str | None, quick: bool) -> Row:
    """Operations a second of a large product."""
    size = 256 if quick else 2048 if jax.default_backend() == "cpu" else 8192
    chosen = jax.default_matmul_precision(PRECISIONS[precision]) if precision else nullcontext()
    with chosen:
        return {"rate": matrix_rate(size, size, size, turns=TURNS)}


def verb(case_name: str, verb_name: str, quick: bool) -> Row:
    """A verb's seconds, those that its tracing and compiling took, and bytes."""
    case, verb = case_of(case_name, quick), VERBS[verb_name]
    noise = PROCESS.sample_prior((case.samples, *case.shape), key=KEY)
    change = ss.add(jax.random.normal(KEY, (verb.directions, *case.shape)))
    data = None
    if verb.products:
        points = jax.random.normal(KEY, (case.points, *case.shape))
        data = ss.Points(points, bandwidth=0.3 * math.prod(case.shape) ** 0.5)
    ask = functools.partial(ASKS[verb_name.split(", K")[0]], solve=case.solve)
    states = case.samples * 2 * case.solve.steps
    each = zip(verb.passes, passes(case_name, quick), strict=True)
    return {
        "samples": case.samples,
        "steps": case.solve.steps,
        "network_operations": states * sum(count * flops for count, flops in each),
        "data_operations": states * 2 * verb.products * case.points * math.prod(case.shape),
        **timed(ask, Given(case.score, noise, change, data)),
    }


def tables(points: int, size: int, precision: str, quick: bool) -> Row:
    """Attribution's tables alone."""
    sizes = (SAMPLES, STAGES, 200, 16) if quick else (SAMPLES, STAGES, points, size)
    row = timed(tables_alone(10), *states_and_points(*sizes, PRECISIONS[precision]))
    return {"sizes": sizes, "operations": 2 * math.prod(sizes) * LEAST, **row}


def errors(size: int, precision: str, quick: bool) -> Row:
    """Of attribution's scores, relative to float64's on the same device: median and worst."""
    sizes = (SAMPLES, STAGES, *((64, 16) if quick else (4096, size)))

    def scores(given):
        return np.asarray(jax.jit(tables_alone(None))(*given).scores, np.float64)[:, 0]

    exact, given = states_and_points(*sizes), states_and_points(*sizes, PRECISIONS[precision])
    with jax.enable_x64(True):
        true = scores(jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), exact))
    found = scores(given)
    return {"errors": relative(found, true)[:2]}


def law(*checks: str, quick: bool) -> Row:
    """Checks of tests/helpers/laws.py in float32, all of them small: the error that is nearest to
    its bound, and the bound."""
    process = ss.EDM()
    return {name: nearest(functools.partial(getattr(laws, f"check_{name}"), process))
            for name in checks}  # fmt: skip


def score_law(quick: bool) -> Row:
    """The same of the score's derivatives, at three noise levels."""
    check = functools.partial(laws.check_score_derivative, ss.EDM())
    levels = (0.05, 0.5, 5.0)
    return {f"score_derivative, tau = {tau}": nearest(lambda t=tau: check(t)) for tau in levels}


def nearest(check: Callable) -> list[float]:
    """Of all comparisons of a check, the error over its bound that is largest: both numbers."""
    seen = []

    def close(found, expected, *, relative=0.0, absolute=0.0):
        found, expected = np.asarray(found), np.asarray(expected)
        assert found.shape == expected.shape
        error, scale = (float(np.max(np.abs(x))) for x in (found - expected, expected))
        seen.append((error, absolute + relative * scale))

    with mock.patch.object(laws, "close", close):
        check()
    worst = max(seen, key=lambda one: math.inf if math.isnan(one[0]) else one[0] / one[1])
    return [float(f"{value:.3g}") for value in worst]


def black_box(size: int, quick: bool) -> Row:
    """|tangent| of the black box over that against the law itself, expected 1, at the default
    settings: the spectrum of images, and a flat one."""
    size = 16 if quick else size
    falling = np.arange(1, size + 1) ** -1.7
    spectra = {"image-like": falling * (0.25 * size / falling.sum()) + 1e-4,
               "isotropic": np.full(size, 0.25)}  # fmt: skip
    process, row = ss.EDM(), {}
    solve = ss.Solve(throw=False, **({"steps": 4} if quick else {}))
    noise = process.sample_prior((4, size), key=KEY)
    for name, spectrum in spectra.items():
        mean = jnp.zeros((1, size))
        spread, there = jnp.asarray(spectrum[None], jnp.float32), spectrum[2] ** 0.5
        law = ss.GaussianMixture(jnp.ones(1), mean, spread)
        change = ss.add(ss.GaussianMixture(jnp.ones(1), mean.at[0, 2].set(there), spread))
        ask = functools.partial(ss.sample_sensitivity, process, ss.exact_score(process, law))
        alone = ask(change, noise, prior=law, key=jax.random.key(1), solve=solve).tangent
        known = ask(change, noise, base=law, solve=solve).tangent
        ratio = jnp.linalg.norm(alone[:, 0], axis=-1) / jnp.linalg.norm(known[:, 0], axis=-1)
        row[name] = [float(f"{value:.4g}") for value in (ratio.min(), ratio.max())]
    return row


def beside_torch(network: str, samples: int, form: str, quick: bool) -> Row:
    """Sampling, likelihood and tangent at once: ours, and torch's (`throughput.py`), which may use
    TF32 as ours may."""
    if not importlib.util.find_spec("torch"):
        return {"skipped": "torch is not importable"}
    import throughput
    import torch

    torch.set_float32_matmul_precision("high")
    setting = getattr(cost, network)()
    if quick:
        samples, setting = 2, setting._replace(solve=ss.Solve(steps=1, throw=False), turns=1)
    programs = throughput.ours(setting, samples) | throughput.in_torch(setting, samples)
    wanted = {name: p for name, p in programs.items() if name == "ours" or form in name}
    return throughput.measured(setting, samples, wanted)


# ------------------------------------------------------------------ clocks and memory


def timed(function: Callable, *given) -> Row:
    """Seconds to trace, to compile and to run (median, quartiles); bytes beside arguments and
    results by the compiler, and the most that the process has held, if never more before."""
    before = peak()
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*given)
    traced = time.perf_counter()
    program = lowered.compile()
    compiled = time.perf_counter()
    answer = jax.block_until_ready(program(*given))
    leaves = [x for x in jax.tree.leaves(answer) if jnp.issubdtype(x.dtype, jnp.floating)]
    finite = all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)
    seconds = in_turns({"it": lambda: program(*given)}, TURNS)["it"]
    memory, after = program.memory_analysis(), peak()
    return {
        "seconds": [float(f"{q:.4g}") for q in np.quantile(seconds, (0.5, 0.25, 0.75))],
        "trace": round(traced - start, 2),
        "compile": round(compiled - traced, 2),
        "temporary": memory.temp_size_in_bytes if memory else None,
        "peak": after if after > before else None,
        "finite": finite,
    }


def peak() -> int:
    """Bytes that the process has held on the device at most; 0 where nobody counts."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)

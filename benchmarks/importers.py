"""What an imported model costs: the U-Net of ddpm-cifar10-32, 35.7 million parameters.

    forward, jvp    of the exported program, of the same network in flax.nnx, and of torch eager
    compile         of both programs of JAX, apart

Random parameters: only times mean anything, and the three outputs are compared. Compiled first;
then the three run in turn, A B C A B C, in one process, and each ratio is taken within a turn: what
is reported is the median ratio and its quartiles over the turns. Torch's jvp is
`torch.autograd.functional.jvp`, two reverse passes, with the attention written out: forward mode
(`torch.func.jvp`) fails in the fused attention and in the group norm.

Floor: the network's multiplications at the rate of a large matrix product.

It wants torch and diffusers: pip install -e '.[cli,diffusers]'.
"""

import copy
import os
import time

import diffusers
import jax
import numpy as np
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from networks import CIFAR
from rows import measure, options, read, table
from timing import in_turns, matrix_rate

from scoresens import importers
from scoresens.importers._torch import calling
from scoresens.importers.foreign import Exported
from scoresens.importers.unet2d import unet2d

TURNS = 7
STEP = 500.0


def networks():
    """The network of torch, and the two of JAX with the same parameters."""
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**CIFAR).eval()
    tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
    example = torch.zeros(1, 3, 32, 32), torch.zeros(1)
    seconds = time.perf_counter()
    program = importers.torch_export(calling(theirs, lambda m, x, t: m(x, t).sample), example)
    seconds = time.perf_counter() - seconds
    return theirs, Exported(program, True, 3), unet2d(dict(theirs.config), tensors), seconds


def with_plain_attention(theirs):
    """A copy whose attention is written out."""
    made = copy.deepcopy(theirs)
    for part in made.modules():
        if isinstance(part, Attention):
            part.set_processor(AttnProcessor())
    return made


def forward(network, x):
    return jax.vmap(lambda x: network(STEP, x))(x)


def tangent(network, x, along):
    return jax.jvp(lambda x: forward(network, x), (x,), (along,))


def compiled(function, *arguments):
    """The program, and the seconds it took to compile."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return program, time.perf_counter() - start


def costs(batch: int) -> dict:
    """Times of forward and jvp at a batch."""
    theirs, exported, native, export = networks()
    rng = np.random.default_rng(0)
    x, along = (rng.normal(size=(batch, 32, 32, 3)).astype(np.float32) for _ in range(2))
    first, first_along = (torch.from_numpy(np.moveaxis(a, -1, 1).copy()) for a in (x, along))
    step = torch.full((batch,), STEP)

    written_out = with_plain_attention(theirs)

    def torch_forward():
        with torch.no_grad():
            return np.moveaxis(theirs(first, step).sample.numpy(), 1, -1)

    def torch_tangent():
        said = torch.autograd.functional.jvp(
            lambda x: written_out(x, step).sample, first, first_along
        )
        return said[1].detach().numpy()

    programs, seconds = {}, {"export": export}
    for name, network in (("exported", exported), ("native", native)):
        for kind, function, arguments in (("forward", forward, (x,)), ("jvp", tangent, (x, along))):
            run, seconds[f"{name} {kind}"] = compiled(function, network, *arguments)
            programs[f"{name} {kind}"] = lambda run=run, n=network, a=arguments: run(n, *a)
    programs |= {"torch forward": torch_forward, "torch jvp": torch_tangent}
    expected, pushed = torch_forward(), np.moveaxis(torch_tangent(), 1, -1)
    errors = {
        name: [
            _relative(programs[f"{name} forward"](), expected),
            _relative(programs[f"{name} jvp"]()[1], pushed),
        ]
        for name in ("exported", "native")
    }
    times = in_turns(programs, TURNS)
    rate = matrix_rate(2048, 2048, 2048, turns=5)
    flops = programs_flops(forward, native, x)
    row: dict = {"batch": batch, "errors": errors, "compile_seconds": _rounded(seconds)}
    row["ms"] = {name: round(float(np.median(t)) * 1e3, 1) for name, t in times.items()}
    for kind in ("forward", "jvp"):
        row[f"{kind}_over_native"] = _spread(times[f"exported {kind}"] / times[f"native {kind}"])
        row[f"{kind}_over_torch"] = _spread(times[f"exported {kind}"] / times[f"torch {kind}"])
        row[f"native_{kind}_over_torch"] = _spread(times[f"native {kind}"] / times[f"torch {kind}"])
    row["forward_over_floor"] = round(float(np.median(times["exported forward"])) * rate / flops, 2)
    return row


def programs_flops(function, network, x) -> float:
    """Floating-point operations of the forward pass, counted by XLA."""
    return jax.jit(function).lower(network, x).compile().cost_analysis()["flops"]


def _relative(found, expected) -> float:
    return float(f"{np.abs(np.asarray(found) - expected).max() / np.abs(expected).max():.2g}")


def _spread(ratios: np.ndarray) -> list[float]:
    return [round(float(q), 2) for q in np.percentile(ratios, (50, 25, 75))]


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in seconds.items()}


def markdown() -> str:
    """The table of docs/performance.md."""
    lines = []
    for row in read("importers").values():
        for kind in ("forward", "jvp"):
            over = (row[f"{kind}_over_{other}"] for other in ("native", "torch"))
            ratios = ["{} ({} to {})".format(*spread) for spread in over]
            names = (f"{name} {kind}" for name in ("exported", "native", "torch"))
            times = [f"{row['ms'][name]:.0f}" for name in names]
            lines.append([str(row["batch"]), kind, *times, *ratios])
    header = ["batch", "", "exported, ms", "flax.nnx, ms", "torch, ms", "over nnx", "over torch"]
    return table(header, lines)


if __name__ == "__main__":
    given = options(__doc__).parse_args()
    if not given.table:
        torch.set_num_threads(os.cpu_count() or 1)
        rows = {f"batch {batch}": lambda batch=batch: costs(batch) for batch in (1, 4)}
        measure("importers", rows, given.only, given.fresh)
    print(markdown())

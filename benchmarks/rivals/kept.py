"""The rivals of a U-Net, of which nearly all that they cost is gradients: taken once, and kept.

    dot           their products
    trak, dtrak   traker's projection, whitening and scores, by its gradient_computer
    ekfac         scores by kronfluence's factors, which are of every eighth point

What the packages say of gradients of their own is the same to rounding (`check`).
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from meter import Meter
from methods import (
    BATCH,
    HEURISTIC,
    PROJECTED,
    QUERIES,
    Scores,
    dataset,
    ekfac_fitted,
    few,
    functional,
    loss,
    mean_eigenvalue,
    projected,
    squared_output,
    traker_task,
)  # fmt: skip
from study import Case, Table
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from scoresens._files import replacing
from scoresens.importers import to_torch

EVERY = 8  # point is one of the factors
SHARE = 0.1  # of each layer's mean eigenvalue, kronfluence's damping where none is given


class Gradients(NamedTuple):
    """In the order of the parameters of the torch module."""

    queries: Tensor  # [Q, P]
    training: Tensor  # [N, P]


def gradients(case: Case, output: Callable, file: Path, meter: Meter) -> Gradients:
    """Of an output at all queries and training points, from a file or left in it; what they cost
    is measured when they are made, and counts for each method that has them."""
    if not file.exists():
        module = to_torch(case.model)
        parameters = dict(module.named_parameters())

        def at(p, *row):
            return output(functional(module, p), *row)

        each = torch.func.vmap(torch.func.grad(at), (None, 0, 0, 0, 0))

        def made(table):
            rows = DataLoader(dataset(table), batch_size=few(case, BATCH))
            return torch.cat([_flat(each(parameters, *row)) for row in rows])

        fresh = Meter()
        with fresh.timing("query"):
            queries = made(case.queries)
        with fresh.timing("prepare"):
            training = made(case.training)
        seconds = [fresh.seconds(name) for name in ("query", "prepare")]
        with replacing(file) as beside, beside.open("wb") as open_file:
            np.savez(open_file, queries=queries, training=training, seconds=seconds)
    with np.load(file, allow_pickle=False) as kept:
        for name, seconds in zip(("query", "prepare"), kept["seconds"], strict=True):
            meter.before_each[name] = float(seconds)
        meter.noted |= {"bytes": file.stat().st_size}
        return Gradients(*(torch.from_numpy(kept[name]) for name in Gradients._fields))


def _flat(each: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.detach().flatten(1) for g in each.values()], 1)


# ------------------------------------------------------------------ the methods


def dot(case: Case, dampings: tuple[float, ...], meter: Meter, folder: Path) -> Scores:
    """Their products."""
    kept = gradients(case, loss, folder / "loss", meter)
    with meter.timing("query"):
        helps = kept.queries @ kept.training.T
    return Scores(np.array([np.inf]), -helps.numpy()[None])


def trak(case: Case, dampings: tuple[float, ...], meter: Meter, folder: Path) -> Scores:
    """TRAK of kept gradients of the loss."""
    return _traked(case, gradients(case, loss, folder / "loss", meter), dampings, meter)


def dtrak(case: Case, dampings: tuple[float, ...], meter: Meter, folder: Path) -> Scores:
    """TRAK of kept gradients of the squared norm of the network's output."""
    output = functools.partial(squared_output, case.model.sigma_data)
    return _traked(case, gradients(case, output, folder / "output", meter), dampings, meter)


def _traked(case: Case, kept: Gradients, dampings: tuple[float, ...], meter: Meter) -> Scores:
    from trak.gradient_computers import FunctionalGradientComputer

    class Kept(FunctionalGradientComputer):
        def compute_per_sample_grad(self, batch):
            return batch[0]

    training, asked = (
        DataLoader(TensorDataset(rows), batch_size=count)
        for rows, count in ((kept.training, PROJECTED), (kept.queries, QUERIES))
    )
    given = {"task": traker_task(loss), "gradient_computer": Kept}
    return projected(case, training, asked, dampings, meter, **given)


def ekfac(case: Case, dampings: tuple[float, ...], meter: Meter, folder: Path) -> Scores:
    """Influence functions with EK-FAC, by kept gradients of the loss."""
    kept = gradients(case, loss, folder / "loss", meter)
    some = Table(*(rows[::EVERY] for rows in case.training))
    with tempfile.TemporaryDirectory() as place:
        analyzer = ekfac_fitted(case._replace(training=some), place, meter)
        factors = analyzer.load_all_factors("ekfac")
    meter.noted |= {"of the factors": len(some.x)}
    unit, found = mean_eigenvalue(factors), []
    for damping in (*dampings, HEURISTIC):
        with meter.timing("query"):
            found.append(influence(case, factors, kept, damping * unit))
    return Scores(np.array([*dampings, HEURISTIC]), -np.stack(found))


def influence(case: Case, factors, kept: Gradients, damping: float) -> np.ndarray:
    """`[Q, N]` at one damping, or by kronfluence's heuristic (nan): how much the points help."""
    queries, training = (_matrices(case, rows) for rows in kept)
    total = np.zeros((len(kept.queries), len(kept.training)), np.float32)
    for name, matrix in factors["lambda_matrix"].items():
        left, right = (factors[f"{side}_eigenvectors"][name] for side in ("gradient", "activation"))
        eigenvalues = matrix / factors["num_lambda_processed"][name]
        floor = SHARE * eigenvalues.mean() if np.isnan(damping) else damping
        asked = left @ (left.T @ queries[name] @ right / (eigenvalues + floor)) @ right.T
        total += (asked.flatten(1) @ training[name].flatten(1).T).numpy()
    return total


def _matrices(case: Case, rows: Tensor) -> dict[str, Tensor]:
    """Of each layer, gradients `[B, out, in + 1]`, the bias last."""
    parameters = dict(to_torch(case.model).named_parameters())
    parts = rows.split([p.numel() for p in parameters.values()], 1)
    shaped = {name: part.unflatten(1, parameters[name].shape)
              for name, part in zip(parameters, parts, strict=True)}  # fmt: skip
    layers = [name.removesuffix(".weight") for name, p in parameters.items() if p.ndim > 1]
    return {
        name: torch.cat([shaped[f"{name}.weight"].flatten(2), shaped[f"{name}.bias"][..., None]], 2)
        for name in layers
    }


METHODS = {"dot": dot, "trak": trak, "dtrak": dtrak, "ekfac": ekfac}

r"""The rivals, each by the attributor of its own package.

With g_i and g_k the gradients of the loss at a query and at a training point (`study`), a unit of
weight moved to point k changes the parameters by -H^{-1} g_k and the loss at query i by

    scores[i, k] = -g_i . H^{-1} g_k.

traker gives them up to a factor that depends on the damping; dattri and kronfluence as they are.
The packages say how much k helps, the same without the sign. They differ in what stands for H:

    dot      the identity
    trak     sum_k P g_k (P g_k)^T + damping, for projections P g in place of g
    dtrak    the same, with gradients of sum_j w_j |D - c_skip x|^2 in place of the loss's
    ekfac    the Gauss-Newton matrix, Kronecker-factored, + damping; of linear layers, convolutions

D - c_skip x is c_out F, and w_j c_out^2 = 1 / (d K): the squared norm is that of the network's own
output F, as the loss is the squared error of F.

Dampings are in units of H's mean eigenvalue (without damping).

References: Pruthi et al. 2020, arXiv 2002.08484 (dot, TracIn at one checkpoint); Park et al. 2023,
arXiv 2303.14186 (TRAK); Zheng et al. 2023, arXiv 2311.00500 (D-TRAK); Grosse et al. 2023, arXiv
2308.03296 (EK-FAC).
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from meter import Meter, stored
from study import Case, Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from scoresens.importers import to_torch
from scoresens.models import UNet

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
HEURISTIC = float("nan")  # kronfluence's own: a tenth of each layer's mean eigenvalue
PROJECTION = 2048  # TRAK's dimension
BATCH = 128  # training points at a time
PROJECTED = 256  # of them for traker, which draws its projection again for each batch
QUERIES = 64  # queries at a time
SMALLER = 8  # times fewer of a U-Net's, for the memory of its convolutions


class Scores(NamedTuple):
    """What a rival says."""

    dampings: Float[np.ndarray, " D"]
    scores: Float[np.ndarray, "D Q N"]


# ------------------------------------------------------------------ the losses, of one or many


def loss(denoise: Callable, x: Tensor, levels: Tensor, weights: Tensor, noise: Tensor) -> Tensor:
    """The denoising loss, summed over whatever axes lead."""
    clean, place, level = _placed(x, levels, noise)
    return _weighed(weights, denoise(levels, place) - clean, level)


def sampled_loss(
    denoise: Callable, x: Tensor, levels: Tensor, weights: Tensor, noise: Tensor
) -> Tensor:
    """The loss with targets drawn from the model: N(D, 1 / (2 w)), of which w |D - y|^2 is the
    negative log-likelihood, so that the gradients' covariance is the Gauss-Newton matrix."""
    _, place, level = _placed(x, levels, noise)
    found = denoise(levels, place)
    spread = _over(2 * weights, level).rsqrt()
    target = found.detach() + spread * torch.randn_like(place)
    return _weighed(weights, found - target, level)


def squared_output(
    sigma_data: float,
    denoise: Callable,
    x: Tensor,
    levels: Tensor,
    weights: Tensor,
    noise: Tensor,
) -> Tensor:
    """The weighted squared norm of c_out F = D - c_skip x, the mean of |F|^2 over entries."""
    _, place, level = _placed(x, levels, noise)
    c_skip = sigma_data**2 / (level**2 + sigma_data**2)
    return _weighed(weights, denoise(levels, place) - c_skip * place, level)


def _placed(x: Tensor, levels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The clean point with an axis for its levels, its noised copies, and levels that spread."""
    axes = noise.ndim - levels.ndim
    level = levels.reshape(*levels.shape, *[1] * axes)
    clean = x.unsqueeze(-axes - 1)
    return clean, clean + level * noise, level


def _weighed(weights: Tensor, error: Tensor, level: Tensor) -> Tensor:
    return (_over(weights, level) * error**2).sum()


def _over(values: Tensor, level: Tensor) -> Tensor:
    return values.reshape(level.shape)


# ------------------------------------------------------------------ dattri


def dot(case: Case, dampings: tuple[float, ...], meter: Meter) -> Scores:
    """Gradient dot products: dattri's TracIn at one checkpoint, of rate 1, without projection.

    There is no damping: it is H's identity, the limit of much damping, and says so.
    """
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    meter.start_memory()
    module = to_torch(case.model)

    def of_parameters(params, row):
        return loss(functional(module, params), *row)

    task = AttributionTask(of_parameters, module, module.state_dict())
    attributor = TracInAttributor(task, weight_list=torch.ones(1), normalized_grad=False)
    vars(attributor)["projector_kwargs"] = None  # None as an argument means 512 dimensions
    with meter.timing("query"):
        helps = attributor.attribute(
            _loader(case.training, few(case, BATCH)), _loader(case.queries, few(case, QUERIES))
        )
    meter.noted |= {"bytes": 0}
    return Scores(np.array([np.inf]), -helps.T.numpy()[None])


def functional(module: nn.Module, *state) -> Callable:
    return lambda levels, place: torch.func.functional_call(module, state, (levels, place))


# ------------------------------------------------------------------ traker


def trak(case: Case, dampings: tuple[float, ...], meter: Meter) -> Scores:
    """TRAK with the loss for the model output function."""
    return _traked(case, loss, dampings, meter)


def dtrak(case: Case, dampings: tuple[float, ...], meter: Meter) -> Scores:
    """TRAK with the squared norm of the network's output for the model output function."""

    return _traked(case, functools.partial(squared_output, case.model.sigma_data), dampings, meter)


def _traked(case: Case, output: Callable, dampings: tuple[float, ...], meter: Meter) -> Scores:
    meter.start_memory()
    training = _loader(case.training, few(case, PROJECTED))
    asked = _loader(case.queries, few(case, QUERIES))
    return projected(case, training, asked, dampings, meter, task=traker_task(output))


def projected(
    case: Case,
    training: DataLoader,
    asked: DataLoader,
    dampings: tuple[float, ...],
    meter: Meter,
    **given: Any,
) -> Scores:
    """TRAK of what the loaders give its task, or its gradient computer."""
    from trak import TRAKer

    module = to_torch(case.model)
    with tempfile.TemporaryDirectory() as folder:
        traker = TRAKer(
            model=module,
            train_set_size=len(case.training.x),
            save_dir=folder,
            device="cpu",
            proj_dim=PROJECTION,
            use_half_precision=False,
            logging_level=30,
            **given,
        )
        with meter.timing("prepare"):
            traker.load_checkpoint(module.state_dict(), model_id=0)
            for batch in training:
                traker.featurize(batch=batch, num_samples=len(batch[0]))
        unit = float(np.square(traker.saver.current_store["grads"]).sum()) / PROJECTION
        found = [_trak_scores(traker, module, asked, unit * damping, meter) for damping in dampings]
        meter.noted |= {
            "bytes": stored(Path(folder, "0")),
            "projection": PROJECTION,
            "of one damping": round(meter.seconds("finalise"), 2),
        }
    return Scores(np.array(dampings), -np.stack(found))


def _trak_scores(
    traker, module: nn.Module, asked: DataLoader, damping: float, meter: Meter
) -> np.ndarray:
    """`[Q, N]` at one damping, of features that are made once and finalised for each."""
    name, count = f"damped by {damping:.6g}", len(asked.dataset)
    with meter.timing("finalise"):
        traker.score_computer.lambda_reg = damping
        traker.saver.model_ids[0]["is_finalized"] = 0
        traker.finalize_features()
    with meter.timing("query"):
        traker.start_scoring_checkpoint(name, module.state_dict(), model_id=0, num_targets=count)
        for batch in asked:
            traker.score(batch=batch, num_samples=len(batch[0]))
        return np.array(traker.finalize_scores(name)).T


def traker_task(output: Callable):
    from trak.modelout_functions import AbstractModelOutput

    class Output(AbstractModelOutput):
        def __init__(self):
            pass

        @staticmethod
        def get_output(model, weights, buffers, *row):
            return output(functional(model, weights, buffers), *row)

        @staticmethod
        def get_out_to_loss_grad(model, weights, buffers, batch):
            return torch.ones(len(batch[0]), 1)

    return Output()


# ------------------------------------------------------------------ kronfluence


def ekfac(case: Case, dampings: tuple[float, ...], meter: Meter) -> Scores:
    """Influence functions with EK-FAC, of linear layers, convolutions and their biases, not of
    normalisations."""
    meter.start_memory()
    with tempfile.TemporaryDirectory() as folder:
        analyzer = ekfac_fitted(case, folder, meter)
        unit = mean_eigenvalue(analyzer.load_all_factors("ekfac"))
        asked = (*dampings, HEURISTIC)
        found = [ekfac_scores(analyzer, case, damping * unit, meter) for damping in asked]
    return Scores(np.array(asked), -np.stack(found))


def ekfac_fitted(case: Case, folder: str, meter: Meter):
    """kronfluence's analyzer, with the factors of the training data in a folder."""
    from kronfluence.analyzer import Analyzer, prepare_model

    task = _kronfluence_task(case.training.levels.shape[1] if is_unet(case) else 1)
    module = prepare_model(to_torch(case.model), task)
    torch.manual_seed(0)
    analyzer = Analyzer(
        "rivals", module, task, cpu=True, output_dir=folder, disable_tqdm=True, log_level=30
    )
    data, batch = dataset(case.training), few(case, BATCH)
    with meter.timing("prepare"):
        analyzer.fit_all_factors("ekfac", data, per_device_batch_size=batch)
    meter.noted |= {"bytes": stored(Path(folder))}
    return analyzer


def ekfac_scores(analyzer, case: Case, damping: float, meter: Meter) -> np.ndarray:
    """`[Q, N]` at one damping: how much the points help."""
    from kronfluence.arguments import ScoreArguments

    name = f"damped by {damping:.6g}"
    with meter.timing("query"):
        analyzer.compute_pairwise_scores(
            name,
            "ekfac",
            query_dataset=dataset(case.queries),
            train_dataset=dataset(case.training),
            per_device_query_batch_size=few(case, QUERIES),
            per_device_train_batch_size=few(case, BATCH),
            score_args=ScoreArguments(damping_factor=None if np.isnan(damping) else damping),
        )
        return analyzer.load_pairwise_scores(name)["all_modules"].numpy()


def mean_eigenvalue(factors) -> float:
    """Of the corrected eigenvalues of all layers."""
    matrices, counts = factors["lambda_matrix"], factors["num_lambda_processed"]
    total = sum(float(matrices[name].sum() / counts[name]) for name in matrices)
    return total / sum(matrix.numel() for matrix in matrices.values())


def _kronfluence_task(folded: int):
    """The task of points with so many rows in every layer, whose gradients are added up: a U-Net's
    levels are to its layers images of their own, an MLP's are an axis of one row."""
    from kronfluence.task import Task

    class Denoising(Task):
        enable_post_process_per_sample_gradient = folded > 1

        def post_process_per_sample_gradient(self, module_name, gradient):
            return gradient.unflatten(0, (-1, folded)).sum(1)

        def compute_train_loss(self, batch, model, sample=False):
            return (sampled_loss if sample else loss)(model, *batch)

        def compute_measurement(self, batch, model):
            return loss(model, *batch)

    return Denoising()


# ------------------------------------------------------------------ data


def dataset(table: Table) -> TensorDataset:
    return TensorDataset(*map(torch.tensor, table))


def _loader(table: Table, count: int) -> DataLoader:
    return DataLoader(dataset(table), batch_size=count, shuffle=False)


def is_unet(case: Case) -> bool:
    return isinstance(case.model.network, UNet)


def few(case: Case, count: int) -> int:
    """So many points at a time, or fewer."""
    return max(1, count // SMALLER) if is_unet(case) else count


METHODS = {"dot": dot, "trak": trak, "dtrak": dtrak, "ekfac": ekfac}

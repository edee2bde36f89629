r"""Do the packages compute what `methods` says? By hand, on a tiny U-Net and a tiny MLP.

With g the gradients by autograd, one point at a time:

    dot       -g_i . g_k
    trak      the same in the limit of much damping, up to a factor, but for the projection
    ekfac     -sum over layers of g_i . Q (Lambda + damping)^{-1} Q^T g_k, for kronfluence's
              eigenvectors Q and eigenvalues Lambda; in the limit of much damping
              -(sum over layers of g_i . g_k) / damping
    Lambda    in each layer, adds up to the trace of the Gauss-Newton matrix
              mean over k of sum_j 2 w_j |dD(x_kj) / dlayer|^2, within what the draws allow

`python benchmarks/rivals/check.py`, in the rivals' environment: a minute.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import methods
import numpy as np
import study
import torch
from kept import Gradients, influence
from meter import Meter
from torch import Tensor, nn

from scoresens.models import ModelSettings, build
from scoresens.training.denoising import TrainSettings

POINTS, QUERIES, LEVELS = 5, 3, 3
DRAWN = 400  # times that each point is seen by the factors, whose targets are drawn
NETWORKS = {"U-Net": ModelSettings("unet", 4, 2), "MLP": ModelSettings("mlp", 8, 1)}


def main() -> None:
    for name, settings in NETWORKS.items():
        for check in (dot, trak, ekfac, gauss_newton):
            print(f"{name}, {check.__name__}: {check(case_of(settings))}", flush=True)


def case_of(settings: ModelSettings) -> study.Case:
    """A model with every parameter random, and random images."""
    rng = np.random.default_rng(0)
    model = build(settings, (8, 8, 1), sigma_data=0.5, key=jax.random.key(0))
    model = jax.tree.map(lambda a: jnp.asarray(_drawn(rng, a), jnp.float32), model)
    x = rng.normal(size=(POINTS + QUERIES, 8, 8, 1)).astype(np.float32)

    def table(rows, seed):
        key = jax.random.key(seed)
        return study.table(
            rows, count=LEVELS, key=key, settings=TrainSettings(), sigma_data=model.sigma_data
        )

    return study.Case(model, table(x[:POINTS], 0), table(x[POINTS:], 1), x[:0], 0)


def _drawn(rng, leaf):
    spread = 0.3 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
    return rng.normal(size=leaf.shape) * spread if leaf.ndim else leaf


# ------------------------------------------------------------------ what is checked


def dot(case: study.Case) -> str:
    found = methods.dot(case, (), Meter()).scores[0]
    return _near(found, -_product(*(_rows(g) for g in _of_both(case))), 1e-4)


def trak(case: study.Case) -> str:
    with contextlib.redirect_stderr(io.StringIO()):
        found = methods.trak(case, (1e4,), Meter()).scores[0]
    queries, training = (_rows(g) for g in _of_both(case))
    wanted = -_product(queries, training)
    factor = (found * wanted).sum() / (found * found).sum()
    lengths = queries.norm(dim=1)[:, None] * training.norm(dim=1)
    worst = float(np.abs((factor * found - wanted) / lengths.numpy()).max())
    most = 4 * (2 / methods.PROJECTION) ** 0.5  # an angle's spread under a random projection
    assert worst < most, f"off by {worst:.3f} of |g_i| |g_k|, at most {most:.3f} expected"
    return f"within {worst:.3f} of |g_i| |g_k| (allowed {most:.3f})"


def ekfac(case: study.Case) -> str:
    queries, training = _of_both(case)
    layers = _layers(case)
    rows = Gradients(_rows(queries), _rows(training))
    with tempfile.TemporaryDirectory() as folder:
        analyzer = methods.ekfac_fitted(case, folder, Meter())
        factors = analyzer.load_all_factors("ekfac")
        unit = methods.mean_eigenvalue(factors)
        told = []
        for damping in (1e-2 * unit, 1e9 * unit):
            found = methods.ekfac_scores(analyzer, case, damping, Meter())
            told.append(_near(influence(case, factors, rows, damping), found, 1e-4))
            wanted = sum(
                _product(*(_rotated(factors, layer, g) for g in (queries, training)),
                         1 / (_eigenvalues(factors, layer) + damping).ravel())
                for layer in layers
            )  # fmt: skip
            told.append(_near(found, wanted, 1e-3))
        theirs = methods.ekfac_scores(analyzer, case, methods.HEURISTIC, Meter())
        told.append(_near(influence(case, factors, rows, methods.HEURISTIC), theirs, 1e-4))
        plain = sum(_product(_joined(queries, layer), _joined(training, layer)) for layer in layers)
        told.append(_near(found * damping, plain, 1e-3))
    return ", ".join(told)


def gauss_newton(case: study.Case) -> str:
    """The sums of eigenvalues of all layers, over the traces; each is a mean of draws."""
    often = study.Table(*(np.repeat(rows, DRAWN, 0) for rows in case.training))
    with tempfile.TemporaryDirectory() as folder:
        analyzer = methods.ekfac_fitted(case._replace(training=often), folder, Meter())
        factors = analyzer.load_all_factors("ekfac")
    traces = _traces(case)
    ratios = {layer: float(_eigenvalues(factors, layer).sum()) / traces[layer] for layer in traces}
    worst = max(abs(ratio - 1) for ratio in ratios.values())
    # a point's squared gradient has a spread of sqrt(2) of its mean at most; one point may be all
    most = 4 * (2 / DRAWN) ** 0.5
    assert worst < most, f"eigenvalues add up to {ratios} of the Gauss-Newton traces"
    return f"traces within {worst:.1%} (allowed {most:.0%}), {len(ratios)} layers"


# ------------------------------------------------------------------ by hand


def _of_both(case: study.Case) -> list[list[dict[str, Tensor]]]:
    """The gradients of the loss at the queries and at the training points, by parameter."""
    module = methods.to_torch(case.model)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def gradients(row):
        value = methods.loss(module, *row)
        return dict(zip(names, torch.autograd.grad(value, parameters), strict=True))

    return [[gradients(row) for row in _each(table)] for table in (case.queries, case.training)]


def _each(table: study.Table) -> list[list[Tensor]]:
    return [[torch.tensor(a) for a in row] for row in zip(*table, strict=True)]


def _layers(case: study.Case) -> list[str]:
    """Linear layers and convolutions."""
    found = methods.to_torch(case.model).named_modules()
    return [name for name, part in found if isinstance(part, nn.Linear | nn.Conv2d)]


def _rows(gradients: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([torch.cat([g.ravel() for g in one.values()]) for one in gradients])


def _joined(gradients: list[dict[str, Tensor]], layer: str) -> Tensor:
    """A layer's gradients as rows, those of `[out, in ... | 1]`."""
    return torch.stack([_matrix(one, layer).ravel() for one in gradients])


def _matrix(one: dict[str, Tensor], layer: str) -> Tensor:
    weight, bias = one[f"{layer}.weight"], one[f"{layer}.bias"]
    return torch.cat([weight.flatten(1), bias[:, None]], 1)


def _rotated(factors, layer: str, gradients: list[dict[str, Tensor]]) -> Tensor:
    left, right = (factors[f"{side}_eigenvectors"][layer] for side in ("gradient", "activation"))
    return torch.stack([(left.T @ _matrix(one, layer) @ right).ravel() for one in gradients])


def _eigenvalues(factors, layer: str) -> Tensor:
    return factors["lambda_matrix"][layer] / factors["num_lambda_processed"][layer]


def _product(queries: Tensor, training: Tensor, scale: Tensor | float = 1.0) -> np.ndarray:
    return ((queries * scale) @ training.T).numpy()


def _traces(case: study.Case) -> dict[str, float]:
    """Of the Gauss-Newton matrix of the mean loss, a layer's diagonal block each."""
    module = methods.to_torch(case.model)
    state = {name: p.detach() for name, p in module.named_parameters()}
    traces = dict.fromkeys(_layers(case), 0.0)
    for x, levels, weights, noise in _each(case.training):
        place = x + levels.reshape(-1, 1, 1, 1) * noise

        def outputs(params, place=place, levels=levels, weights=weights):
            denoised = torch.func.functional_call(module, params, (levels, place))
            return (2 * weights).sqrt()[:, None] * denoised.flatten(1)

        jacobian: dict[str, Tensor] = _jacobian(outputs, state)
        for layer in traces:
            for part in ("weight", "bias"):
                traces[layer] += float((jacobian[f"{layer}.{part}"] ** 2).sum()) / POINTS
    return traces


def _jacobian(outputs: Callable, state: dict[str, Tensor]):
    return torch.func.jacrev(outputs)(state)


def _near(found: np.ndarray, wanted: np.ndarray, most: float) -> str:
    """The relative error, which may be no more than so much."""
    error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    assert error < most, f"relative error {error:.2e}, at most {most:.0e} expected"
    return f"{error:.0e}"


if __name__ == "__main__":
    main()

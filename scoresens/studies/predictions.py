r"""Predictions of what training on halves of the data does, by a model and by simpler rules.

A prediction starts from one model of all images and gives, for S halves with weights w_s, either
the displacement of the M samples, or the change of the denoising loss at the Q query images.

Ours, with a bump of bandwidth h on each point, or one as sharp as the model (`calibrate`):

    first order      sum_k (w_sk - 1/N) dx / deps_k, (4.1), dL / deps_k, (5.2)
    counterfactual   the samples and the losses of D + D_h(.; w_s) - D_h(.; 1/N), finite (6.3)

`data`: density ratios against the data's law; `model`: the model's own, smoothed by h (6.5);
`sharp`: the model's own, as it is. Without a network, but for the kernel where that is calibrated:

    closed form          the same of the data's own denoiser D_h in the network's place
    mean shift           D_h(x; w_s) - D_h(x; 1/N) at the sample alone, without noise
    optimal transport    T_s(x) - T(x), T_s the barycentric map from the model's samples to a half
    kernel, cosine, ...  each point pulls the sample, or lowers the loss, as it is near or alike
    patches              the same, by the weights of the data's denoiser of patches (NDA)
    random               draws without meaning: what no skill looks like

Reference: Zhao et al. 2025, arXiv 2510.14269 (NDA).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.distance import cdist

from scoresens.flow import sample_ode
from scoresens.flow.solve import Solve
from scoresens.flow.traces import Exact, TraceEstimator
from scoresens.laws.learned import Smoothed
from scoresens.laws.measures import Points
from scoresens.laws.perturbations import reweight
from scoresens.laws.scores import as_pytree, exact_score
from scoresens.models import Denoiser
from scoresens.sensitivity.counterfactual import counterfactual
from scoresens.sensitivity.losses import loss_sensitivity
from scoresens.sensitivity.tangents import sample_sensitivity
from scoresens.statistics.transport import transport_map
from scoresens.studies.retraining import Queries, noise_of_losses
from scoresens.training.denoising import loss_weight

ALONGSIDE = 488  # further samples that an optimal transport map is made from


class Case(NamedTuple):
    """What a prediction starts from."""

    model: Denoiser  # of all images
    images: Float[np.ndarray, "N *shape"]
    halves: Bool[np.ndarray, "S N"]
    queries: Queries
    samples: Float[np.ndarray, "M *shape"]  # of the model, from the queries' noise
    solve: Solve = Solve()
    trace: TraceEstimator = Exact()  # of the black boxes

    @property
    def weights(self) -> Float[np.ndarray, "S N"]:
        """Of the points in each half."""
        return self.halves / self.halves.sum(1, keepdims=True)

    @property
    def change(self) -> Float[np.ndarray, "S N"]:
        """How the points' weights change."""
        return self.weights - 1 / len(self.images)

    @property
    def score(self):
        return self.model.score

    @property
    def process(self):
        return self.model.process

    def base(self, name: str, data: Points) -> dict[str, Any]:
        """A law to take density ratios against, as options of a verb."""
        law = {"data": data, "model": Smoothed(data.bandwidth), "sharp": None}[name]
        return {"base": law, "trace": self.trace, "prior": data}


class Patches(NamedTuple):
    """How large the patches are that are compared, and at which of the loss's noise levels."""

    side: int  # in pixels
    share: tuple[float, float]  # from and to, of the levels as they rise


Prediction = Callable[[Case, Any], Float[np.ndarray, "S ..."]]  # by `Points`, or by `Patches`
Choice = Literal["kernel", "bandwidth", "patches", "none"]  # a kernel's bumps may be calibrated
PATCHES = {
    f"{side} x {side}{name}": Patches(side, share)
    for side in (3, 5, 7)
    for name, share in (("", (0, 1)), (", low noise", (0, 0.5)), (", high noise", (0.5, 1)))
}
Similarity = Callable[[np.ndarray, np.ndarray, float], Float[np.ndarray, "M N"]]


# ------------------------------------------------------------------ displacements, [S, M, *shape]


def first_order(case: Case, data: Points, base: str) -> np.ndarray:
    """The tangents (4.1) toward every half, at mass 1."""
    halved = reweight(data, case.halves.astype(np.float32))
    noise = case.queries.noise
    options = {"key": case.queries.key, "solve": case.solve, **case.base(base, data)}
    found = sample_sensitivity(case.process, case.score, halved, noise, **options)
    return np.moveaxis(np.asarray(found.tangent), 1, 0)


def finite(case: Case, data: Points, network: bool = True) -> np.ndarray:
    """The counterfactual against the data's law, of the network or of the data's own denoiser."""
    noise = case.queries.noise
    score = case.score if network else exact_score(case.process, data)
    halved = reweight(data, case.halves.astype(np.float32))
    after = counterfactual(
        case.process, score, halved, noise, mass=1.0, base=data, solve=case.solve
    ).x
    before = sample_ode(case.process, score, noise, solve=case.solve).x
    return np.moveaxis(np.asarray(after - before[:, None]), 1, 0)


def mean_shift(case: Case, data: Points) -> np.ndarray:
    """The mean of the half's points near each sample, less that of all."""
    flat = _flat(case.images)
    bumps = _bumps(case.samples, case.images, float(data.bandwidth))
    every = (*case.halves[:, None] * bumps, bumps)
    *means, whole = (weights @ flat / weights.sum(-1, keepdims=True) for weights in every)
    return _shaped(case, np.stack(means) - whole)


def pull(case: Case, data: Points, alike: Similarity) -> np.ndarray:
    """Each point pulls as it is near or alike: sum_k c_k w_k (y_k - x)."""
    flat, x = _flat(case.images), _flat(case.samples)
    likeness = alike(case.samples, case.images, float(data.bandwidth))
    toward = case.change[:, None] * likeness  # [S, M, N]
    return _shaped(case, toward @ flat - toward.sum(-1, keepdims=True) * x)


def optimal_transport(case: Case, _: Points) -> np.ndarray:
    """The change of the map to the data, from the samples and more of the same model."""
    key = jax.random.fold_in(case.queries.key, 2)
    noise = case.process.sample_prior((ALONGSIDE, *case.images.shape[1:]), key=key)
    more = sample_ode(case.process, case.score, noise, solve=case.solve).x
    x, y = (_flat(np.concatenate([case.samples, more])), _flat(case.images))
    rows = len(case.samples)
    whole = transport_map(x, y)[:rows]
    moved = np.stack([transport_map(x, y[half])[:rows] - whole for half in case.halves])
    return _shaped(case, moved)


def random_move(case: Case, _: Points) -> np.ndarray:
    """Standard normal displacements."""
    shape = (len(case.halves), *case.samples.shape)
    return np.random.default_rng(len(case.halves)).normal(size=shape)


# ------------------------------------------------------------------ changes of the loss, [S, Q]


def loss_first_order(case: Case, data: Points, base: str) -> np.ndarray:
    """The sum of `loss_scores` over the change of the points' weights."""
    options = case.base(base, data)
    scores = loss_scores(case.model, data, case.queries, case.solve, **options)
    return case.change @ scores.T


def loss_scores(
    model: Denoiser, data: Points, queries: Queries, solve: Solve = Solve(), **base: Any
) -> Float[np.ndarray, "Q N"]:
    """What a unit of weight on each point does to the losses at the queries, (5.2); `base` are
    options of `loss_sensitivity`."""
    weights = loss_weight(queries.levels, model.sigma_data) / queries.images[0].size
    options = {"levels": queries.levels, "key": queries.key, "weights": weights, "solve": solve}
    asked = model.process, model.score, data, queries.images
    found = loss_sensitivity(*asked, **options, **base)
    return np.asarray(found.scores)


def loss_finite(case: Case, data: Points, network: bool = True) -> np.ndarray:
    """The losses of `D + D_h(.; half) - D_h(.; all)`, or of D_h itself, less those before."""
    weights = jnp.asarray(case.weights, case.images.dtype)
    model = as_pytree(case.model if network else data.denoise)
    return np.asarray(_loss_finite(model, data, weights, case.queries, case.model.sigma_data)).T


@jax.jit
def _loss_finite(model, data, weights, queries, sigma_data):
    def change(row):
        i, x = row

        def at_level(row):
            tau, noise = row
            place = x + tau * noise
            before = model(tau, place) - x
            # of one law, whose kernels do not depend on the weights, they are taken once for all
            _, masses, means = jax.vmap(lambda w: data.sums(tau, place, w))(weights)
            halves = jax.vmap(jnp.divide)(means, masses)
            after = before + halves - data.denoise(tau, place)
            errors = jax.vmap(lambda error: jnp.sum(error**2))(after) - jnp.sum(before**2)
            return loss_weight(tau, sigma_data) / x.size * errors

        return jnp.mean(jax.lax.map(at_level, (queries.levels, noise_of_losses(queries, i))), 0)

    return jax.lax.map(change, (jnp.arange(len(queries.images)), queries.images))


def loss_alike(case: Case, data: Points, alike: Similarity) -> np.ndarray:
    """Each point lowers the loss as it is near or alike."""
    near = alike(np.asarray(case.queries.images), case.images, float(data.bandwidth))
    return -case.change @ near.T


def loss_patches(case: Case, patches: Patches) -> np.ndarray:
    """Each point lowers the loss as its patches weigh in the denoiser of patches: at the copies
    x + t n that the loss is taken at, the mean over places and levels of

        softmax over k of -|patch(x + t n) - patch(y_k)|^2 / 2 t^2.
    """
    queries, levels = case.queries, np.asarray(case.queries.levels)
    part = slice(*(round(share * len(levels)) for share in patches.share))
    images = jnp.asarray(case.images)

    def weights(i):
        noise = noise_of_losses(queries, i)[part]
        return _patch_weights(queries.images[i], levels[part], noise, images, patches.side)

    near = np.stack([weights(i) for i in range(len(queries.images))])
    return -case.change @ (len(images) * near).T


@functools.partial(jax.jit, static_argnames="side")
def _patch_weights(x, levels, noise, images, side):
    height, width = (min(side, size) for size in x.shape[:2])

    def at_level(row):
        t, n = row
        squares = jnp.sum(jnp.square(x + t * n - images), -1)
        for window in ((1, height, 1), (1, 1, width)):
            squares = jax.lax.reduce_window(squares, 0.0, jax.lax.add, window, (1, 1, 1), "VALID")
        return jnp.mean(jax.nn.softmax(-squares / (2 * t**2), 0), (1, 2))

    return jnp.mean(jax.lax.map(at_level, (jnp.asarray(levels), noise)), 0)


def random_loss(case: Case, _: Points) -> np.ndarray:
    """Standard normal scores of the points."""
    shape = (len(case.queries.images), len(case.images))
    return case.change @ np.random.default_rng(len(case.halves)).normal(size=shape).T


# ------------------------------------------------------------------ similarities, [M, N]


def _flat(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)


def _squares(x, images):
    return cdist(_flat(x), _flat(images), "sqeuclidean")


def _bumps(x, images, h):
    """N(x; y_k, h^2 I), up to a factor for each x."""
    logits = -0.5 * _squares(x, images) / h**2
    return np.exp(logits - logits.max(1, keepdims=True))


def kernel(x, images, h):
    """The bump of bandwidth h on each point, at the sample."""
    bumps = _bumps(x, images, h)
    return bumps / bumps.mean(1, keepdims=True)


def cosine(x, images, _):
    """The cosine of point and sample, both from the mean image."""
    centre = _flat(images).mean(0)
    return 1 - cdist(_flat(x) - centre, _flat(images) - centre, "cosine")


def inverse_square(x, images, _):
    """The inverse squared distance of point and sample."""
    return 1 / _squares(x, images)


def equal(x, images, _):
    """All points alike."""
    return np.ones((len(x), len(images)))


def nearness(x, images, _):
    """Minus the distance of point and sample."""
    return -np.sqrt(_squares(x, images))


def _shaped(case, moves):
    return moves.reshape(len(case.halves), *case.samples.shape)


MOVES: dict[str, tuple[Prediction, Choice]] = {
    "counterfactual (data)": (finite, "kernel"),
    "first order (data)": (functools.partial(first_order, base="data"), "kernel"),
    "first order (model)": (functools.partial(first_order, base="model"), "bandwidth"),
    "first order (sharp)": (functools.partial(first_order, base="sharp"), "none"),
    "closed form, no network": (functools.partial(finite, network=False), "kernel"),
    "mean shift": (mean_shift, "bandwidth"),
    "optimal transport": (optimal_transport, "none"),
    "kernel": (functools.partial(pull, alike=kernel), "bandwidth"),
    "cosine": (functools.partial(pull, alike=cosine), "none"),
    "inverse squared distance": (functools.partial(pull, alike=inverse_square), "none"),
    "equal pull": (functools.partial(pull, alike=equal), "none"),
    "random": (random_move, "none"),
}
LOSSES: dict[str, tuple[Prediction, Choice]] = {
    "counterfactual (data)": (loss_finite, "kernel"),
    "first order (data)": (functools.partial(loss_first_order, base="data"), "kernel"),
    "first order (model)": (functools.partial(loss_first_order, base="model"), "bandwidth"),
    "first order (sharp)": (functools.partial(loss_first_order, base="sharp"), "none"),
    "closed form, no network": (functools.partial(loss_finite, network=False), "kernel"),
    "kernel": (functools.partial(loss_alike, alike=kernel), "bandwidth"),
    "patches": (loss_patches, "patches"),
    "cosine": (functools.partial(loss_alike, alike=cosine), "none"),
    "distance": (functools.partial(loss_alike, alike=nearness), "none"),
    "random": (random_loss, "none"),
}

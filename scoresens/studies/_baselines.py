r"""What a prediction of a change must beat.

**Straight** toward the mean of what is added, and away from that of what is taken: (4.1) as it
would be with every ratio 1 and no network. **Wiener's filter**: of a law that is known by its mean
mu and its covariance S alone the denoiser is

    D_W(x) = mu + S (S + tau^2)^-1 (x - mu)

and a sample follows the network's denoiser plus the difference of two of these, of the changed data
and of the data. It asks for no kernel, and costs the same however many points there are.
"""

from collections.abc import Callable
from typing import cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scoresens.flow import sample_ode
from scoresens.flow.solve import Solve
from scoresens.laws.learned import Learned
from scoresens.laws.measures import Points
from scoresens.laws.perturbations import Perturbation
from scoresens.laws.processes import Process
from scoresens.laws.scores import Score
from scoresens.studies.changes import Change


def toward_mean(
    perturbation: Perturbation, x: Float[Array, "M *shape"]
) -> Float[Array, "M *shape"]:
    """sum_j c_j (y_j - x), or sum_j c_j u_j of a move, of the one direction."""
    shift = jnp.zeros_like(x)
    for part in perturbation[:1].parts:
        weights, measure = part.coefficients.reshape(-1), part.measure
        if part.velocity is not None:
            shift += jnp.tensordot(weights, part.velocity, 1)
        elif isinstance(measure, Learned):
            drawn = cast(Points, measure.prior).points  # its samples
            shift += weights[0] * (jnp.mean(drawn, 0) - x)
        else:
            points = cast(Points, measure).points
            shift += jnp.tensordot(weights, points, 1) - jnp.sum(weights) * x
    return shift


def wiener(
    process: Process,
    score: Score,
    data: Points,
    change: Change,
    noise: Float[Array, "M *shape"],
    solve: Solve,
) -> Float[Array, "M *shape"]:
    """Samples after the change, as mean and covariance tell of it.

    Args:
        process, score: of the canonical frame.
        data: the data, of equal weights.
        change: of these data, at its full mass.
        noise: `[M, *shape]` at tau = 80.
        solve: the numerics.

    Notes:
        Two eigendecompositions of d x d on the host: twenty seconds each at d = 3,072.
    """
    equal = np.full(len(data), 1 / len(data))
    before = _linear_denoiser(np.asarray(data.points), equal)
    images = data.points if change.images is None else change.images
    after = _linear_denoiser(np.asarray(images), change.weights)

    def changed(tau, x):
        return score(tau, x) + (after(tau, x) - before(tau, x)) / jnp.square(tau)

    return sample_ode(process, changed, noise, solve=solve).x


def _linear_denoiser(images: np.ndarray, weights: np.ndarray) -> Callable:
    """D_W of images of these weights."""
    flat, shares = images.reshape(len(images), -1), weights / weights.sum()
    mean = shares @ flat
    variances, basis = np.linalg.eigh((flat - mean).T * shares @ (flat - mean))
    parts = mean, np.maximum(variances, 0), basis
    centre, kept, axes = (jnp.asarray(part, images.dtype) for part in parts)

    def denoised(tau, x):
        along = kept / (kept + jnp.square(tau)) * ((x.reshape(-1) - centre) @ axes)
        return (centre + axes @ along).reshape(x.shape)

    return denoised

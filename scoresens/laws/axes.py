r"""The principal axes of a data set, and how well a network resolves each.

Training finds what varies much in the data long before it finds what varies little. With lambda_k
the variances of the data along their principal axes u_k, their sum lambda, and c a resolution,

    (6.7)  g_k = lambda_k / (lambda_k + c lambda)

is near 1 along an axis of large variance, and near 0 along one of small variance. `Resolved`
(`kernels`) weighs the distances of a kernel by it. A change of the data is learnt in the same
order: with a **spectral bias** b, the larger the shorter the training,

    (6.11)  (G v)_k = lambda_k / (lambda_k + b lambda) v_k

is what has been learnt of a change v of the denoiser.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scoresens import _checks
from scoresens._products import contracted
from scoresens._pytrees import register_dataclass
from scoresens._types import Scalar
from scoresens.laws import _reading

SAMPLE = 16_384  # points that the axes are those of
MOST = 4_096  # axes; of more dimensions, those of as many points
FAINT = 1e-7  # of the largest variance: below it is rounding


@register_dataclass
@dataclass(frozen=True)
class Axes:
    """r orthonormal directions, and the variances of the data along them. Made by
    `principal_axes`."""

    centre: Float[Array, " d"]
    basis: Float[Array, "d r"]
    variances: Float[Array, " r"]

    def coordinates(self, points: Float[Array, "*R d"]) -> Float[Array, "*R r"]:
        """Of points, from the centre."""
        return contracted("...d,dr->...r", points - self.centre, self.basis)

    def weights(self, resolution: Scalar) -> Float[Array, " r"]:
        """g of each axis (6.7), for the resolution c; of (6.11), for the spectral bias b."""
        return self.variances / (self.variances + resolution * jnp.sum(self.variances))

    def filtered(self, change: Float[Array, "*R d"], bias: Scalar) -> Float[Array, "*R d"]:
        """G v (6.11); across the axes it is 0."""
        along = self.weights(bias) * contracted("...d,dr->...r", change, self.basis)
        return contracted("...r,dr->...d", along, self.basis)


def principal_axes(points: Any) -> Axes:
    """The axes along which a data set varies, those of the largest variance first.

    Args:
        points: `[N, *shape]`, an array, a memory map or a `Stream`; the axes are those of 16,384
            evenly spaced points where there are more.

    Returns:
        At most min(d, N - 1, 4,096) axes: what does not vary has none.

    Raises:
        ValueError: fewer than two points, integers, NaN, or points that are all the same.

    Notes:
        One eigendecomposition on the host, of the d x d covariance or of the points' own products
        where these are fewer: about a second at d = 784, twenty at 3,072 or more.
    """
    count, most = len(points), SAMPLE if math.prod(points.shape[1:]) <= MOST else MOST
    flat = _reading.chosen(points, _reading.evenly(count, most))
    centre = flat.mean(0)
    offsets = flat - centre
    if flat.shape[1] <= len(flat):
        variances, basis = np.linalg.eigh(offsets.T @ offsets / len(flat))
    else:
        variances, among = np.linalg.eigh(offsets @ offsets.T / len(flat))
        basis = offsets.T @ among / np.sqrt(np.maximum(variances, 1e-300) * len(flat))
    kept = np.flatnonzero(variances > FAINT * max(variances[-1], 0))[::-1]
    if not kept.size:
        raise ValueError(f"principal_axes needs points that differ, got {count} that do not")
    parts = centre, basis[:, kept], variances[kept]
    return Axes(*(jnp.asarray(part, _checks.wide(points.dtype)) for part in parts))

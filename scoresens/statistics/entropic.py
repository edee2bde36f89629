r"""Entropic optimal transport between sources and weighted points, and its derivative.

    min over couplings P of a and b of   sum_ij P_ij |x_i - y_j|^2 + epsilon KL(P | a b)
    P_ij = a_i b_j k_ij,   k_ij = exp((f_i + g_j - |x_i - y_j|^2) / epsilon),
    sum_j b_j k_ij = 1,    sum_i a_i k_ij = 1

with a = 1 / M. The second constraint gives g_j to points of no weight too, so that weight may come
to where there is none. Where b moves by db and the squared distances by dC, phi = df / epsilon and
gamma = dg / epsilon are those of the constraints' derivatives,

    (I - Q k^T / M) phi = Q.dC 1 / epsilon - Q gamma_0 - k db,      Q_ij = b_j k_ij
    gamma = gamma_0 - k^T phi / M,                                  gamma_0 = k.dC^T 1 / (M epsilon)

one linear system `[M, M]` for all directions, singular along phi = 1, which changes nothing.

Not by ott-jax: its implicit derivative is of reverse mode alone, where a handful of directions are
asked for of many outputs, and it imports packages that are no longer maintained.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float
from scipy.linalg import lu_factor, lu_solve
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from scoresens import _checks

ROUNDS = 10_000
ROUNDING = 64  # roundings of an exponent, at which potentials stand still


class Entropic(NamedTuple):
    """A solved transport."""

    x: Float[np.ndarray, "M d"]
    y: Float[np.ndarray, "N d"]
    weights: Float[np.ndarray, " N"]  # b, summing to 1
    kernel: Float[np.ndarray, "M N"]  # k
    epsilon: float

    @property
    def shares(self) -> Float[np.ndarray, "M N"]:
        """Q: how each source is shared out, rows summing to 1."""
        return self.kernel * self.weights

    @property
    def images(self) -> Float[np.ndarray, "M d"]:
        """Where each source goes: the mean of its targets (the barycentric map)."""
        return self.shares @ self.y

    def rates(
        self, masses: Float[np.ndarray, "K N"], moves: Float[np.ndarray, "K N d"] | None = None
    ) -> tuple[Float[np.ndarray, "K M N"], Float[np.ndarray, "K M d"]]:
        """Derivatives of `shares` and of `images`.

        Args:
            masses: of the weights, rows summing to 0.
            moves: of the points; None: they stand still.
        """
        count, shares = len(self.x), self.shares
        system = np.eye(count) - shares @ self.kernel.T / count + 1 / count
        solved, found = lu_factor(system), []
        for k, mass in enumerate(masses):
            costs = 0.0 if moves is None else self._costs(moves[k])
            start = (self.kernel * costs).mean(0)
            right = np.sum(shares * costs, 1) - shares @ start - self.kernel @ mass
            phi = lu_solve(solved, right)
            gamma = start - self.kernel.T @ phi / count
            rate = self.kernel * mass + shares * (phi[:, None] + gamma - costs)
            carried = 0.0 if moves is None else shares @ moves[k]
            found.append((rate, rate @ self.y + carried))
        rates, images = zip(*found, strict=True)
        return np.stack(rates), np.stack(images)

    def _costs(self, move):
        """dC / epsilon as the points move."""
        return 2 * (np.sum(self.y * move, 1) - self.x @ move.T) / self.epsilon


def entropic_transport(
    x: Float[ArrayLike, "M d"],
    y: Float[ArrayLike, "N d"],
    weights: Float[ArrayLike, " N"],
    epsilon: float,
) -> Entropic:
    """Entropic transport from equally weighted sources x to points y of these weights.

    Args:
        x: `[M, d]`.
        y: `[N, d]`.
        weights: `[N]`, non-negative, of any positive sum.
        epsilon: how blurred the coupling is, > 0, in units of squared distances.

    Raises:
        ValueError: shapes that do not fit, NaN, or an epsilon that is not positive.
        FloatingPointError: potentials that do not settle: take a larger epsilon.

    Notes:
        In float64 on the host. Cost: `M N` exponentials a turn; turns grow as the largest squared
        distance over epsilon. Memory: a few tables `[M, N]`.

    References:
        Cuturi 2013, arXiv 1306.0895; its derivative: Eisenberger et al. 2022, arXiv 2205.06688.
    """
    x, y = _rows("x", x), _rows("y", y)
    shares = _checks.floats("weights", weights).astype(np.float64)
    _checks.weights("weights", shares, (len(y),))
    _checks.positive("epsilon", epsilon)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must be of one dimension, got {x.shape[1]} and {y.shape[1]}")
    shares = shares / shares.sum()
    costs = cdist(x, y, "sqeuclidean") / epsilon
    if not np.isfinite(costs).all():
        raise ValueError("squared distances over epsilon overflow: rescale x, y and epsilon")
    return Entropic(x, y, shares, _settled(costs, shares), float(epsilon))


def _settled(costs, weights):
    """k, by turns of the two constraints (Sinkhorn's algorithm)."""
    allowed = ROUNDING * np.finfo(float).eps * max(1.0, float(costs.max()))
    with np.errstate(divide="ignore"):
        logs = np.log(weights)
    f = np.zeros(len(costs))
    for _ in range(ROUNDS):
        g = -_log_sum(f[:, None] - costs, 0) + np.log(len(costs))
        before, f = f, -_log_sum(logs + g - costs, 1)
        if np.max(np.abs(f - before)) <= allowed:
            break
    else:
        raise FloatingPointError(
            f"transport did not settle in {ROUNDS} turns: take a larger epsilon (squared distances "
            f"are up to {costs.max():.3g} epsilon)"
        )
    g = -_log_sum(f[:, None] - costs, 0) + np.log(len(costs))
    return np.exp(f[:, None] + g - costs)


def _log_sum(logs, axis) -> np.ndarray:
    return np.asarray(logsumexp(logs, axis=axis))


def _rows(name, value):
    value = _checks.floats(name, value).astype(np.float64)
    if value.ndim != 2 or not value.size:
        raise ValueError(f"{name} must be rows [M, d] with M >= 1, got shape {value.shape}")
    _checks.finite(name, value)
    return value

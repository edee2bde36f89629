r"""The derivative of an optimal transport map in the data: a baseline without noise or network.

Entropic transport takes sources (the noise of samples, say) to the weighted points of the data,

    T(x_i) = sum_j P_ij y_j / a_i

and a change of data `chi_k = sum_j c_kj (nu_j - rho)` moves the weights by `c_kj`, less the share
that each point gives up, or the points themselves (`statistics.entropic`). What
`sample_sensitivity` is to a sampler, this is to the map that takes sources to data at least cost.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

from scoresens import _checks
from scoresens.laws.measures import Points
from scoresens.laws.perturbations import Perturbation, check_perturbation
from scoresens.statistics.entropic import entropic_transport


class TransportSensitivity(NamedTuple):
    """Where M sources go, and how that moves with K directions."""

    x: Float[np.ndarray, "M *shape"]
    tangent: Float[np.ndarray, "M K *shape"]  # d x / d mass, units of the data
    shares: Float[np.ndarray, "M N"]  # of each source that go to each point of the data


def transport_sensitivity(
    sources: Float[ArrayLike, "M *shape"],
    data: Points,
    perturbation: Perturbation,
    *,
    epsilon: float,
) -> TransportSensitivity:
    """Where entropic transport takes sources among the data, and its derivative as the data change.

    Args:
        sources: `[M, *shape]`, of equal weights.
        data: the points; their bandwidth plays no part.
        perturbation: K directions of points: `add`, `remove`, `reweight`, `replace`, `move`.
        epsilon: how blurred the coupling is, > 0, in units of squared distances.

    Returns:
        TransportSensitivity: `x [M, *shape]`, the mean of each source's targets, `tangent
            [M, K, *shape]`, per unit of mass, in float64.

    Raises:
        ValueError: shapes that do not fit, laws that are no points, other data than the
            perturbation was made from, an epsilon that is not positive.
        FloatingPointError: a transport that does not settle: take a larger epsilon.

    Notes:
        In float64 on the host; nothing of it is traced. Cost: Sinkhorn's turns over the table
        `[M, N]`, one factorisation `[M, M]`, and K passes over the table; memory K tables. As
        epsilon goes to 0 the map turns piecewise constant in the weights, and its derivative into
        steps: an epsilon far below the spacing of the data says nothing.

    References:
        Cuturi 2013, arXiv 1306.0895; Eisenberger et al. 2022, arXiv 2205.06688.
    """
    if not isinstance(data, Points):
        raise ValueError(f"data must be Points(...), got {type(data).__name__}")
    check_perturbation(perturbation)
    sources = _checks.samples("sources", sources, data.shape)
    points, masses, moves = _table(data, perturbation)
    weights = np.zeros(len(points))
    weights[: len(data)] = data.normalized_weights
    x = np.asarray(sources, np.float64).reshape(len(sources), -1)
    found = entropic_transport(x, points, weights, epsilon)
    _, rates = found.rates(masses, moves)
    tangent = np.swapaxes(rates, 0, 1).reshape(len(sources), len(perturbation), *data.shape)
    return TransportSensitivity(
        found.images.reshape(sources.shape), tangent, found.shares[:, : len(data)]
    )


def _table(data, perturbation):
    """The data's points and the new ones `[A, d]`; what each direction does to their weights
    `[K, A]`; and to their places `[K, A, d]`, None where none moves."""
    own, count = np.asarray(data.points, np.float64).reshape(len(data), -1), len(perturbation)
    rho = np.asarray(data.normalized_weights, np.float64)
    points, terms, moved = [own], [], []
    for part in perturbation.parts:
        if not isinstance(part.measure, Points):
            raise ValueError(
                "transport_sensitivity moves the weights of points, and this perturbation has a "
                f"{type(part.measure).__name__}: add Points of it"
            )
        new = np.asarray(part.measure.points, np.float64).reshape(len(part.measure), -1)
        if part.index is None:
            index = sum(map(len, points)) + np.arange(len(new))
            points.append(new)
        else:
            index = np.asarray(part.index)
            _same(own, index, new)
        table = np.asarray(part.coefficients, np.float64)
        table = np.diag(table) if part.single else table
        if part.velocity is None:
            terms.append((index, table))
        else:
            velocity = np.asarray(part.velocity, np.float64).reshape(len(new), -1)
            moved.append((index, (table != 0)[..., None] * velocity))
    points = np.concatenate(points)
    masses = _summed((count, len(points)), terms)
    for _, table in terms:
        masses[:, : len(own)] -= np.outer(table.sum(1), rho)
    return points, masses, _summed((count, *points.shape), moved) if moved else None


def _summed(shape, terms):
    """The tables of some points each as one of all points."""
    found = np.zeros(shape)
    for index, table in terms:
        np.add.at(found, (np.arange(len(found))[:, None], index), table)
    return found


def _same(own, index, points):
    if index.max() >= len(own) or not np.array_equal(own[index], points):
        raise ValueError(
            "data holds other points than those that the perturbation edits; pass the same Points "
            "to both"
        )

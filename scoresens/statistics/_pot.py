"""Exact transport by POT, not ott-jax: POT has an exact network simplex for any weights, and the
distances of interest are smaller than the blur of an entropic solution.

It runs on the host, in float64, and is not differentiable.
"""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float

from scoresens._extras import needed

PIVOTS = 1_000_000_000  # of the network simplex: no limit in practice


def exact_transport(
    a: Float[np.ndarray, " M"], b: Float[np.ndarray, " N"], cost: Any, advice: str
) -> tuple[Any, float]:
    """The coupling `[M, N]` of least cost, dense or sparse as the cost is, and that cost.

    Args:
        a, b: the masses of sources and of targets; their sums agree.
        cost: `[M, N]`, dense or sparse.
        advice: what to do where the network simplex does not end, for the error.

    Raises:
        FloatingPointError: if the network simplex does not end.
        ImportError: without POT.

    References:
        Bonneel, van de Panne, Paris, Heidrich 2011, doi 10.1145/2070781.2024192 (the simplex).
    """
    solver = needed("ot", "the distance between laws", "gap").emd  # two seconds, the first time
    with warnings.catch_warnings():  # with which POT says that a solution is wrong
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        try:
            plan, log = solver(a, b, cost, numItermax=PIVOTS, center_dual=False, log=True)
        except (UserWarning, RuntimeWarning) as warning:
            raise FloatingPointError(f"POT did not converge ({warning}): {advice}") from None
    return plan, float(log["cost"])

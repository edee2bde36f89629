"""A quantile that holds for a group never seen: conformal prediction from groups of draws.

Draws of one group (the samples of one change of the data) are alike, draws of different groups are
not: what can be exchanged with the unseen is a whole group. Of K groups of scores S_k1 ... S_kn_k,
each counts as much as any other, and the unseen one as much as each of them, at infinity:

    q = min { s : 1/(K + 1) sum_k #{ i : S_ki <= s } / n_k  >=  level }

If the K + 1 groups are exchangeable, a score of the unseen one lies at or below q with at least
this probability, on average over groups, whatever their laws and however many draws they have. It
says nothing of one group by itself. Below level = K / (K + 1) there is a finite q.

References: Lee, Barber and Willett 2023, arXiv 2306.06342; Dunn, Wasserman and Ramdas 2018, arXiv
1809.07441.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def unseen_quantile(groups: Sequence[Float[np.ndarray, " _"]], level: float) -> float:
    """What a score of a group that was not seen stays below, or at, with this probability.

    Args:
        groups: the scores of each of K groups, of any numbers above 0.
        level: above 0 and below 1.

    Returns:
        q, infinity where K groups are too few for the level.

    Raises:
        ValueError: no group, an empty one, scores that are NaN, a level outside (0, 1).

    Notes:
        Cost: one sort of all scores.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie above 0 and below 1, got {level}")
    if not groups or not all(map(len, groups)):
        raise ValueError(f"needs groups of one score or more, got {[len(g) for g in groups]}")
    scores = np.concatenate(groups)
    if np.isnan(scores).any():
        raise ValueError(f"scores must be numbers, got {int(np.isnan(scores).sum())} NaN")
    shares = np.concatenate([np.full(len(g), 1 / len(g)) for g in groups]) / (len(groups) + 1)
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(shares[order]) >= level - 1e-12  # sums of shares are rounded
    return float(scores[order][np.argmax(reached)]) if reached[-1] else float("inf")

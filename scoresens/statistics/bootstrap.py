"""The bootstrap: how far a number might stray, had other things of the same kind been drawn.

Of n independent things, n are drawn again with replacement, many times over; the 95 % interval of a
number is between the 2.5 and the 97.5 percentile of what it would have been.

Reference: Efron 1979, doi 10.1214/aos/1176344552.
"""

import numpy as np
from jaxtyping import Float, Int

from scoresens.statistics.estimates import Estimate


def resampled_rows(
    count: int, resamples: int, rng: np.random.Generator | int
) -> Int[np.ndarray, "resamples count"]:
    """Rows of `count` indices drawn with replacement; `rng` is a generator, or a seed."""
    return np.random.default_rng(rng).integers(count, size=(resamples, count))


def percentiles(value: float, drawn: Float[np.ndarray, " resamples"]) -> Estimate:
    """A number with the percentiles of its resamples; without any, the number is its own
    interval."""
    low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (value, value)
    return Estimate(float(value), float(low), float(high))

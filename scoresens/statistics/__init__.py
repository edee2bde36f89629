"""Numbers that come from draws, with what the draws leave open; distances between laws."""

from scoresens.statistics.displacements import Named, cosines, looks_like, norms
from scoresens.statistics.distances import (
    Grid,
    Histogram,
    histogram,
    resampled,
    sampling_floor,
    sinkhorn_divergence,
    sliced_wasserstein,
    transport_map,
    wasserstein,
    wasserstein_interval,
    wasserstein_of_histograms,
)
from scoresens.statistics.estimates import Estimate

__all__ = [
    "Estimate",
    "Grid",
    "Histogram",
    "Named",
    "cosines",
    "histogram",
    "looks_like",
    "norms",
    "resampled",
    "sampling_floor",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "transport_map",
    "wasserstein",
    "wasserstein_interval",
    "wasserstein_of_histograms",
]

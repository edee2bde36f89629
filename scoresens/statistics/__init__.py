"""Numbers that come from draws, with what the draws leave open: estimates with their intervals,
the bootstrap, conformal quantiles, distances between laws, displacements of samples."""

from scoresens.statistics.bootstrap import percentiles, resampled_rows
from scoresens.statistics.components import principal_components
from scoresens.statistics.conformal import unseen_quantile
from scoresens.statistics.displacements import Named, cosines, looks_like, norms
from scoresens.statistics.entropic import Entropic, entropic_transport
from scoresens.statistics.estimates import Estimate
from scoresens.statistics.histograms import (
    Grid,
    Histogram,
    histogram,
    sampling_floor,
    wasserstein_interval,
    wasserstein_of_histograms,
)
from scoresens.statistics.transport import transport_map

__all__ = [
    "Entropic", "Estimate", "Grid", "Histogram", "Named", "cosines", "entropic_transport",
    "histogram", "looks_like", "norms", "percentiles", "principal_components", "resampled_rows",
    "sampling_floor", "transport_map", "unseen_quantile", "wasserstein_interval",
    "wasserstein_of_histograms",
]  # fmt: skip

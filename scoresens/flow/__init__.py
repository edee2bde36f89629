"""How noise becomes a sample: paths of the probability flow and of the reverse SDE, and the
log-densities that are followed along them.
"""

from scoresens.flow.diffusion import Ito
from scoresens.flow.euler import sample_euler
from scoresens.flow.inversion import Inversion, Replay, invert
from scoresens.flow.routes import Diffusion, Flow, Route
from scoresens.flow.sampling import Path, encode, log_density_along, sample, sample_ode, sample_sde
from scoresens.flow.solve import Solve, Stats
from scoresens.flow.traces import Exact, Hutchinson, HutchPlusPlus, TraceEstimator

__all__ = [
    "Diffusion", "Exact", "Flow", "HutchPlusPlus", "Hutchinson", "Inversion", "Ito", "Path",
    "Replay", "Route", "Solve", "Stats", "TraceEstimator", "encode", "invert", "log_density_along",
    "sample", "sample_euler", "sample_ode", "sample_sde",
]  # fmt: skip

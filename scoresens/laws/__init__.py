"""What data are, what noise makes of them, and how they change.

Processes and the canonical frame; scores and the networks they come from; laws of data, noised in
closed form; perturbations of them, infinitesimal and finite.
"""

from scoresens.laws.axes import Axes, principal_axes
from scoresens.laws.conditional import ConditionalFlow
from scoresens.laws.conditioned import Conditioned, condition
from scoresens.laws.discrete_vp import DiscreteVP
from scoresens.laws.flows import Bridge, DiagonalGaussian, Torus, blurring, pairs, wrapped
from scoresens.laws.kernels import Kernel
from scoresens.laws.learned import Learned, Smoothed
from scoresens.laws.measures import (
    GaussianMixture,
    Law,
    Measure,
    Mixture,
    Points,
    Posterior,
    default_bandwidth,
)
from scoresens.laws.noises import Gaussian, Laplace, Noise, StudentT
from scoresens.laws.perturbations import Perturbation, add, move, remove, replace, reweight
from scoresens.laws.processes import (
    EDM,
    OU,
    VE,
    VP,
    Cosine,
    FlowMatching,
    Process,
    SubVP,
)
from scoresens.laws.scores import (
    Guided,
    Pair,
    exact_score,
    from_canonical,
    from_denoiser,
    from_noise,
    from_potential,
    from_v,
    from_velocity,
    guide,
    to_denoiser,
    to_noise,
    to_v,
    to_velocity,
)

__all__ = [
    "EDM", "OU", "VE", "VP", "Axes", "Bridge", "ConditionalFlow", "Conditioned", "Cosine",
    "DiagonalGaussian", "DiscreteVP", "FlowMatching", "Gaussian", "GaussianMixture", "Guided",
    "Kernel", "Laplace", "Law", "Learned", "Measure", "Mixture", "Noise", "Pair", "Perturbation",
    "Points", "Posterior", "Process", "Smoothed", "StudentT", "SubVP", "Torus", "add", "blurring",
    "condition", "default_bandwidth", "exact_score", "from_canonical", "from_denoiser",
    "from_noise", "from_potential", "from_v", "from_velocity", "guide", "move", "pairs",
    "principal_axes", "remove", "replace", "reweight", "to_denoiser", "to_noise", "to_v",
    "to_velocity", "wrapped",
]  # fmt: skip

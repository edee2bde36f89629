"""scoresens: what would a diffusion model's scores and samples be, had its training data been
others?

Everything is a *process*, a *score*, a *perturbation* of the data and a *path*.
`sample_sensitivity` pushes perturbations forward along the path of a sample; `counterfactual` walks
the path of the model that was never trained; `score_sensitivity` is the derivative of the score
itself.
"""

from scoresens import functionals
from scoresens.attribution import Attribution, attribute
from scoresens.counterfactual import Counterfactual, counterfactual
from scoresens.drives import Smoothed
from scoresens.learned import Learned
from scoresens.losses import LossSensitivity, loss_sensitivity
from scoresens.measures import GaussianMixture, Measure, Points, Posterior, default_bandwidth
from scoresens.paths import Path, encode, log_density_along, sample_ode
from scoresens.perturbations import Perturbation, add, move, remove, replace, reweight
from scoresens.processes import EDM, OU, VE, VP, Cosine, FlowMatching, Process, SubVP
from scoresens.scores import (
    Guided,
    Pair,
    exact_score,
    from_canonical,
    from_denoiser,
    from_noise,
    from_v,
    from_velocity,
    guide,
    to_denoiser,
    to_noise,
    to_v,
    to_velocity,
)
from scoresens.sde import Ito, sample_sde
from scoresens.sensitivity import (
    SampleSensitivity,
    ScoreSensitivity,
    sample_sensitivity,
    score_sensitivity,
)
from scoresens.solve import Solve, Stats
from scoresens.traces import Exact, Hutchinson, HutchPlusPlus, TraceEstimator

__version__ = "0.1.0"

__all__ = [
    "EDM",
    "OU",
    "VE",
    "VP",
    "Attribution",
    "Cosine",
    "Counterfactual",
    "Exact",
    "FlowMatching",
    "GaussianMixture",
    "Guided",
    "HutchPlusPlus",
    "Hutchinson",
    "Ito",
    "Learned",
    "LossSensitivity",
    "Measure",
    "Pair",
    "Path",
    "Perturbation",
    "Points",
    "Posterior",
    "Process",
    "SampleSensitivity",
    "ScoreSensitivity",
    "Smoothed",
    "Solve",
    "Stats",
    "SubVP",
    "TraceEstimator",
    "add",
    "attribute",
    "counterfactual",
    "default_bandwidth",
    "encode",
    "exact_score",
    "from_canonical",
    "from_denoiser",
    "from_noise",
    "from_v",
    "from_velocity",
    "functionals",
    "guide",
    "log_density_along",
    "loss_sensitivity",
    "move",
    "remove",
    "replace",
    "reweight",
    "sample_ode",
    "sample_sde",
    "sample_sensitivity",
    "score_sensitivity",
    "to_denoiser",
    "to_noise",
    "to_v",
    "to_velocity",
]

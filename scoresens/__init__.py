"""scoresens: what would a diffusion model's scores and samples be, had its training data been
others?

Everything is a *process*, a *score*, a *perturbation* of the data and a *path*.
`sample_sensitivity` pushes perturbations forward along the path of a sample; `counterfactual` walks
the path of the model that was never trained; `score_sensitivity` is the derivative of the score
itself. `fokker_planck_residual` and `gap_certificate` say how far a model is from the physics that
it claims to follow.
"""

from scoresens import functionals
from scoresens.attribution import Attribution, attribute
from scoresens.collocation import Collocation, along_forward, along_reverse, in_box
from scoresens.counterfactual import Counterfactual, counterfactual
from scoresens.drives import Smoothed
from scoresens.estimates import Estimate
from scoresens.fokker_planck import (
    NonConservative,
    fokker_planck_residual,
    non_conservative_part,
    score_residual,
)
from scoresens.gap import Certificate, Gap, gap_certificate, ode_sde_gap
from scoresens.induced import (
    InducedDensity,
    Paths,
    forward_paths,
    induced_log_density,
    reverse_paths,
    sample_euler,
)
from scoresens.learned import Learned
from scoresens.losses import LossSensitivity, loss_sensitivity
from scoresens.measures import GaussianMixture, Measure, Points, Posterior, default_bandwidth
from scoresens.paths import Path, encode, log_density_along, sample_ode
from scoresens.perturbations import Perturbation, add, move, remove, replace, reweight
from scoresens.processes import (
    EDM,
    OU,
    VE,
    VP,
    Cosine,
    DiscreteVP,
    FlowMatching,
    Process,
    SubVP,
)
from scoresens.scores import (
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
    "Certificate",
    "Collocation",
    "Cosine",
    "Counterfactual",
    "DiscreteVP",
    "Estimate",
    "Exact",
    "FlowMatching",
    "Gap",
    "GaussianMixture",
    "Guided",
    "HutchPlusPlus",
    "Hutchinson",
    "InducedDensity",
    "Ito",
    "Learned",
    "LossSensitivity",
    "Measure",
    "NonConservative",
    "Pair",
    "Path",
    "Paths",
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
    "along_forward",
    "along_reverse",
    "attribute",
    "counterfactual",
    "default_bandwidth",
    "encode",
    "exact_score",
    "fokker_planck_residual",
    "forward_paths",
    "from_canonical",
    "from_denoiser",
    "from_noise",
    "from_potential",
    "from_v",
    "from_velocity",
    "functionals",
    "gap_certificate",
    "guide",
    "in_box",
    "induced_log_density",
    "log_density_along",
    "loss_sensitivity",
    "move",
    "non_conservative_part",
    "ode_sde_gap",
    "remove",
    "replace",
    "reverse_paths",
    "reweight",
    "sample_euler",
    "sample_ode",
    "sample_sde",
    "sample_sensitivity",
    "score_residual",
    "score_sensitivity",
    "to_denoiser",
    "to_noise",
    "to_v",
    "to_velocity",
]

"""scoresens: what would a diffusion model's scores and samples be, had its training data been
others?

Everything is a *process*, a *score*, a *perturbation* of the data and a *path*.
`sample_sensitivity` pushes perturbations forward along the path of a sample; `counterfactual` walks
the path of the model that was never trained; `score_sensitivity` is the derivative of the score
itself. `fokker_planck_residual` and `gap_certificate` say how far a model is from the physics that
it claims to follow.
"""

from scoresens.flow import (
    Diffusion,
    Exact,
    Flow,
    Hutchinson,
    HutchPlusPlus,
    Ito,
    Path,
    Route,
    Solve,
    Stats,
    TraceEstimator,
    encode,
    log_density_along,
    sample,
    sample_euler,
    sample_ode,
    sample_sde,
)
from scoresens.fokker_planck import (
    Certificate,
    Collocation,
    Gap,
    InducedDensity,
    NonConservative,
    Paths,
    along_forward,
    along_reverse,
    fokker_planck_residual,
    forward_paths,
    gap_certificate,
    in_box,
    induced_log_density,
    non_conservative_part,
    ode_sde_gap,
    reverse_paths,
    score_residual,
)
from scoresens.laws import (
    EDM,
    OU,
    VE,
    VP,
    Cosine,
    DiscreteVP,
    FlowMatching,
    GaussianMixture,
    Guided,
    Learned,
    Measure,
    Mixture,
    Pair,
    Perturbation,
    Points,
    Posterior,
    Process,
    Smoothed,
    SubVP,
    add,
    default_bandwidth,
    exact_score,
    from_canonical,
    from_denoiser,
    from_noise,
    from_potential,
    from_v,
    from_velocity,
    guide,
    move,
    remove,
    replace,
    reweight,
    to_denoiser,
    to_noise,
    to_v,
    to_velocity,
)
from scoresens.sensitivity import (
    Attribution,
    Calibrated,
    Counterfactual,
    LossSensitivity,
    SampleSensitivity,
    ScoreSensitivity,
    attribute,
    calibrate,
    counterfactual,
    functionals,
    loss_sensitivity,
    sample_sensitivity,
    score_sensitivity,
)
from scoresens.statistics import Estimate

__version__ = "0.1.0"

__all__ = [
    "EDM", "OU", "VE", "VP", "Attribution", "Calibrated", "Certificate", "Collocation", "Cosine",
    "Counterfactual", "Diffusion", "DiscreteVP", "Estimate", "Exact", "Flow", "FlowMatching", "Gap",
    "GaussianMixture", "Guided", "HutchPlusPlus", "Hutchinson", "InducedDensity", "Ito", "Learned",
    "LossSensitivity", "Measure", "Mixture", "NonConservative", "Pair", "Path", "Paths",
    "Perturbation", "Points", "Posterior", "Process", "Route", "SampleSensitivity",
    "ScoreSensitivity", "Smoothed", "Solve", "Stats", "SubVP", "TraceEstimator", "add",
    "along_forward", "along_reverse", "attribute", "calibrate", "counterfactual",
    "default_bandwidth", "encode", "exact_score", "fokker_planck_residual", "forward_paths",
    "from_canonical", "from_denoiser",
    "from_noise", "from_potential", "from_v", "from_velocity", "functionals", "gap_certificate",
    "guide", "in_box", "induced_log_density", "log_density_along", "loss_sensitivity", "move",
    "non_conservative_part", "ode_sde_gap", "remove", "replace", "reverse_paths", "reweight",
    "sample", "sample_euler", "sample_ode", "sample_sde", "sample_sensitivity", "score_residual",
    "score_sensitivity", "to_denoiser", "to_noise", "to_v", "to_velocity",
]  # fmt: skip

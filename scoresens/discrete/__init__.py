"""Discrete states: the sensitivity of models of sequences of symbols to their training data.

The sister of the continuous world, for Markov chains in continuous time (SEDD, D3PM, masked
models): a *process* (`Uniform`, `Masked`), a *denoiser*, a *perturbation* of the data, and a
*record* of what is given a log-probability. `sensitivity` pushes a perturbation forward,
`attribute` reads off every data point, `counterfactual` is the model that was never trained.
"""

from scoresens.discrete.denoisers import (
    ConcreteScore,
    Denoiser,
    concrete_score,
    exact_denoiser,
    from_concrete_score,
    from_denoiser,
)
from scoresens.discrete.perturbations import Perturbation, add, remove, reweight
from scoresens.discrete.processes import Masked, Process, Uniform
from scoresens.discrete.records import (
    Jumps,
    Leaps,
    Noised,
    Record,
    log_density_along,
    log_probability,
    noised,
)
from scoresens.discrete.sampling import sample, sample_exact
from scoresens.discrete.sensitivities import (
    Attribution,
    attribute,
    counterfactual,
    score_sensitivity,
    sensitivity,
)
from scoresens.discrete.sequences import Posterior, Sequences

__all__ = [
    "Attribution", "ConcreteScore", "Denoiser", "Jumps", "Leaps", "Masked", "Noised",
    "Perturbation", "Posterior", "Process", "Record", "Sequences", "Uniform", "add", "attribute",
    "concrete_score", "counterfactual", "exact_denoiser", "from_concrete_score", "from_denoiser",
    "log_density_along", "log_probability", "noised", "remove", "reweight", "sample",
    "sample_exact", "score_sensitivity", "sensitivity",
]  # fmt: skip

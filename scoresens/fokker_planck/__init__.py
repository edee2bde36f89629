"""How far a model is from the physics it claims to follow: residuals of the Fokker-Planck equation,
the laws that its two samplers induce, and a bound on the distance between them.
"""

from scoresens.fokker_planck.certificate import Certificate, Gap, gap_certificate, ode_sde_gap
from scoresens.fokker_planck.collocation import Collocation, along_forward, along_reverse, in_box
from scoresens.fokker_planck.induced import (
    InducedDensity,
    Paths,
    forward_paths,
    induced_log_density,
    reverse_paths,
)
from scoresens.fokker_planck.residuals import (
    NonConservative,
    fokker_planck_residual,
    non_conservative_part,
    score_residual,
)

__all__ = [
    "Certificate", "Collocation", "Gap", "InducedDensity", "NonConservative", "Paths",
    "along_forward", "along_reverse", "fokker_planck_residual", "forward_paths", "gap_certificate",
    "in_box", "induced_log_density", "non_conservative_part", "ode_sde_gap", "reverse_paths",
    "score_residual",
]  # fmt: skip

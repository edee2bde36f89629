"""What a change of the training data does to scores, samples and losses.

One perturbation pushed forward along the path, one functional pulled back to every data point, or
the path of the model that was never trained.
"""

from scoresens.sensitivity import functionals
from scoresens.sensitivity.attribution import Attribution, attribute
from scoresens.sensitivity.calibration import Calibrated, calibrate
from scoresens.sensitivity.counterfactual import Counterfactual, counterfactual
from scoresens.sensitivity.editing import edit
from scoresens.sensitivity.losses import LossSensitivity, loss_sensitivity
from scoresens.sensitivity.tangents import (
    SampleSensitivity,
    ScoreSensitivity,
    sample_sensitivity,
    score_sensitivity,
)
from scoresens.sensitivity.transport import TransportSensitivity, transport_sensitivity

__all__ = [
    "Attribution", "Calibrated", "Counterfactual", "LossSensitivity", "SampleSensitivity",
    "ScoreSensitivity", "TransportSensitivity", "attribute", "calibrate", "counterfactual", "edit",
    "functionals", "loss_sensitivity", "sample_sensitivity", "score_sensitivity",
    "transport_sensitivity",
]  # fmt: skip

"""Is it true? Predictions beside what training really does: fine-tuning, training from scratch on
changed data and on halves of it; and the gap between samplers of trained networks.
"""

from scoresens.studies.changes import Change, ChangeSettings, make_change
from scoresens.studies.finetuning import (
    Finetuning,
    calibration,
    compare,
    predict_change,
    real_changes,
    reliability,
)
from scoresens.studies.halves import HalvesSettings
from scoresens.studies.retraining import Outputs, Queries, Retraining, Trial
from scoresens.studies.trust import cosine_bound, mismatch

__all__ = [
    "Change", "ChangeSettings", "Finetuning", "HalvesSettings", "Outputs", "Queries", "Retraining",
    "Trial", "calibration", "compare", "cosine_bound", "make_change", "mismatch", "predict_change",
    "real_changes", "reliability",
]  # fmt: skip

"""Training of networks: on the denoising loss, with draws that two trainings can share, and with
the Fokker-Planck residual as a penalty; of networks of symbols, on their cross-entropy.
"""

from scoresens.training.denoising import TrainSettings, denoising_loss, train, train_to_file
from scoresens.training.residual import RegularizedSettings, train_regularized
from scoresens.training.soap import soap
from scoresens.training.symbols import train_symbols

__all__ = [
    "RegularizedSettings", "TrainSettings", "denoising_loss", "soap", "train", "train_regularized",
    "train_symbols", "train_to_file",
]  # fmt: skip

"""Denoising networks, of symbols too, potentials in the plane, and the files that keep them."""

from scoresens.models.architectures import ModelSettings, build
from scoresens.models.checkpoints import load, pretrained, save
from scoresens.models.mlp import ResidualMLP
from scoresens.models.potential import PotentialMLP, ScoreMLP, read_potential, write_potential
from scoresens.models.preconditioning import Denoiser
from scoresens.models.symbols import SymbolMLP
from scoresens.models.unet import UNet

__all__ = [
    "Denoiser", "ModelSettings", "PotentialMLP", "ResidualMLP", "ScoreMLP", "SymbolMLP", "UNet",
    "build", "load", "pretrained", "read_potential", "save", "write_potential",
]  # fmt: skip

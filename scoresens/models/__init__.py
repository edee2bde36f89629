"""Denoising networks, and the files that keep them."""

from scoresens.models.architectures import ModelSettings, build
from scoresens.models.checkpoints import load, pretrained, save
from scoresens.models.mlp import ResidualMLP
from scoresens.models.preconditioning import Denoiser
from scoresens.models.unet import UNet

__all__ = [
    "Denoiser",
    "ModelSettings",
    "ResidualMLP",
    "UNet",
    "build",
    "load",
    "pretrained",
    "save",
]

"""Networks by name: what a configuration file or a checkpoint needs to build a model again."""

import math
from dataclasses import dataclass
from typing import Literal

import jax
from flax import nnx

from scoresens.laws.noises import Noise, noise_of
from scoresens.models.mlp import ResidualMLP
from scoresens.models.preconditioning import Denoiser
from scoresens.models.unet import UNet

ARCHITECTURES = {"mlp": ResidualMLP, "unet": UNet}


@dataclass(frozen=True)
class ModelSettings:
    """A network's architecture.

    Args:
        kind: `"mlp"` (`ResidualMLP`, any shape) or `"unet"` (`UNet`, images).
        width: units of a hidden layer, or channels at full resolution.
        depth: residual blocks, or resolutions.
        degrees_of_freedom: nu of the Student-t noise that it denoises (PFGM++'s D); None: Gaussian.

    Raises:
        ValueError: for an unknown kind, a width or depth below 1, or nu that is not positive.
    """

    kind: Literal["mlp", "unet"]
    width: int
    depth: int
    degrees_of_freedom: float | None = None

    @property
    def noise(self) -> Noise:
        """The law of the noise that it denoises."""
        return noise_of(self.degrees_of_freedom)

    def __post_init__(self):
        if self.kind not in ARCHITECTURES:
            known = ", ".join(sorted(ARCHITECTURES))
            raise ValueError(f"unknown kind of model {self.kind!r}: choose one of {known}")
        if self.width < 1 or self.depth < 1:
            raise ValueError(
                f"width and depth must be at least 1, got {self.width} and {self.depth}"
            )
        noise_of(self.degrees_of_freedom)


def build(
    settings: ModelSettings, shape: tuple[int, ...], sigma_data: float, *, key: jax.Array
) -> Denoiser:
    """A new, untrained denoiser: the exact one of `N(0, sigma_data^2 I)`.

    Args:
        settings: the network's architecture.
        shape: the shape of one sample.
        sigma_data: standard deviation of the data's entries.
        key: random key for the initial parameters.

    Raises:
        ValueError: if the network cannot take this shape, or sigma_data is not positive.
    """
    if not shape or math.prod(shape) < 1:
        raise ValueError(f"the shape of one sample must have entries, got {tuple(shape)}")
    network = ARCHITECTURES[settings.kind](
        shape, width=settings.width, depth=settings.depth, rngs=nnx.Rngs(key)
    )
    return Denoiser(network, sigma_data, settings.noise)

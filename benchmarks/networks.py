"""Networks that several benchmarks time."""

from flax import nnx

import scoresens as ss
from scoresens.importers.unet2d import UNet2D
from scoresens.models import Denoiser, UNet

PROCESS = ss.VP()

CIFAR = {  # that of ddpm-cifar10-32
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
    "block_out_channels": (128, 256, 256, 256), "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip


def cifar(**changes):
    """The U-Net of ddpm-cifar10-32, random, with other settings if any; and its samples' shape."""
    settings = CIFAR | changes
    size = settings["sample_size"]
    return ss.from_noise(PROCESS, UNet2D(settings, rngs=nnx.Rngs(0))), (size, size, 3)


def small(size=28, width=16):
    """The package's U-Net on images of so many pixels a side, random; and their shape."""
    network = Denoiser(UNet((size, size, 1), width=width, rngs=nnx.Rngs(0)), 0.5)
    return ss.from_canonical(PROCESS, network), network.network.shape

"""Models out of this library and into it: between JAX and other frameworks.

A converted model is a `Foreign` in one safetensors file: `load(path)[0].score` is its score,
without torch. `from_diffusers`, `from_torch` and `from_edm` make them.
"""

from scoresens.importers.diffusers import autoencoder_from_diffusers, from_diffusers
from scoresens.importers.files import load, save
from scoresens.importers.foreign import Exported, Foreign, Native
from scoresens.importers.latent import Autoencoder, decoded
from scoresens.importers.modules import from_edm, from_torch
from scoresens.importers.program import Program
from scoresens.importers.schedules import Schedule, schedule
from scoresens.importers.torch_export import torch_export
from scoresens.importers.torch_module import to_torch

__all__ = [
    "Autoencoder", "Exported", "Foreign", "Native", "Program", "Schedule",
    "autoencoder_from_diffusers", "decoded", "from_diffusers", "from_edm", "from_torch", "load",
    "save", "schedule", "to_torch", "torch_export",
]  # fmt: skip

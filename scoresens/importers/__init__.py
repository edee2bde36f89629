"""Models out of this library and into it: between JAX and other frameworks."""

from scoresens.importers.torch_module import to_torch

__all__ = ["to_torch"]

"""Sensitivity analysis of diffusion models."""

from importlib.metadata import version

__version__ = version("scoresens")

"""float64, eight virtual devices, checked annotations: set before scoresens is first imported."""

import os

import jax
import jaxtyping

devices = "--xla_force_host_platform_device_count=8"  # read when JAX starts its first backend
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip()
jax.config.update("jax_enable_x64", True)
jaxtyping.install_import_hook("scoresens", "beartype.beartype")

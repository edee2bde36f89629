"""Processes that are known at steps alone, as networks of discrete time are trained on."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens._types import Scalar
from scoresens.laws.noises import Gaussian, Noise
from scoresens.laws.processes import Process, positive_fields


@register_dataclass
@dataclass(frozen=True)
class DiscreteVP(Process):
    """Variance preserving, known at T discrete steps, as the networks of DDPM are trained.

    Step k = 0 .. T - 1 is the time (k + 1) / T, and `step` is what such a network takes for time.
    Between steps log tau is linear in t; below the first, tau is linear in t down to 0 at t = 0
    (where the network sees step 0).

    Args:
        noise_levels: `[T]`, tau = sqrt(1 / alphas_cumprod - 1) at each step, positive and rising.
        t_max: where paths start; left out, at the last step, or at tau = 80 if that comes before.

    References:
        Ho et al. 2020, arXiv 2006.11239, equation 4.
    """

    noise_levels: Float[Array | np.ndarray, " T"]
    t_max: Scalar | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    noise: Noise = Gaussian()

    def __post_init__(self):
        levels = _checks.floating("DiscreteVP.noise_levels", self.noise_levels)
        _checks.positive("DiscreteVP.noise_levels", levels)
        rising = levels.ndim == 1 and len(levels) > 1
        if not rising or (_checks.is_concrete(levels) and np.any(np.diff(np.asarray(levels)) <= 0)):
            raise ValueError(
                "DiscreteVP.noise_levels must be one rising row of at least two numbers, got shape "
                f"{levels.shape}: sqrt(1 / alphas_cumprod - 1), from the first step to the last"
            )
        object.__setattr__(self, "noise_levels", levels)
        if self.t_max is None:
            object.__setattr__(self, "t_max", jnp.minimum(1.0, self.time(80.0)))
        positive_fields(self, "t_max")

    def log_alpha(self, t):
        return -0.5 * jnp.log1p(jnp.square(self.noise_level(t)))

    def sigma(self, t):
        return self.noise_level(t) * self.alpha(t)

    def variance(self, t):
        squared = jnp.square(self.noise_level(t))
        return squared / (1 + squared)

    def noise_level(self, t):
        ascent = jnp.interp(self.step(t), self._steps, jnp.log(self.noise_levels))
        return jnp.exp(ascent) * jnp.minimum(1, t * len(self.noise_levels))

    def time(self, tau):
        first = self.noise_levels[0]
        ascent = jnp.log(jnp.maximum(tau, first))
        step = jnp.interp(ascent, jnp.log(self.noise_levels), self._steps)
        return (step + jnp.minimum(1, tau / first)) / len(self.noise_levels)

    def step(self, t: Scalar) -> Scalar:
        """The step, from 0 to T - 1 and between them, that a network of discrete time takes for
        t."""
        return jnp.maximum(jnp.asarray(t) * len(self.noise_levels) - 1, 0)

    @property
    def prior_std(self):
        return 1.0

    @property
    def _steps(self):
        return jnp.arange(len(self.noise_levels), dtype=self.noise_levels.dtype)

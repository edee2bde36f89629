r"""Another diffusion model as a law: `nu` in a perturbation toward what that model has learned.

A model's denoiser is known everywhere, its log-density along a path alone, where it rides beside
the sample: for a curve dx/dtau = u in the canonical frame (1.3),

    (3.2)  d log nu/dtau = (tr J_D - d) / tau + (u - v_nu).s_nu

So a `Learned` law answers no question at a place of its own; at each stage of a path the verbs put
in its stead what is `Known` of it there.

A model's law **smoothed** by h, with every point a bump, is met at level tau as the law itself at
`tau_h = sqrt(tau^2 + h^2)`, and its denoiser is

    (6.5)  D_h(x, tau) = x + tau^2 / tau_h^2 (D(x, tau_h) - x)
"""

from dataclasses import dataclass, field, replace

import jax.numpy as jnp
from jaxtyping import Array, Float

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.laws.measures import Measure, Posterior
from scoresens.laws.processes import Process, Scalar
from scoresens.laws.scores import Score, as_pytree, canonical_denoiser


@register_dataclass
@dataclass(frozen=True)
class Learned(Measure):
    """The law of another diffusion model.

    Args:
        process: the process that it was trained on.
        score: `score(t, x)` of one sample in that process's frame.
        sample_shape: shape of one sample.
        prior: the law whose noised log-density its own begins with, as `prior` of
            `sample_ode`; None is its process's prior, which must end at the noise level where the
            path begins.
        bandwidth: h of its smoothing; 0 takes over that of the law it is added to.
    """

    process: Process
    score: Score
    sample_shape: tuple[int, ...] = field(metadata={"static": True})
    prior: Measure | None = None
    bandwidth: Scalar = 0.0

    def __post_init__(self):
        object.__setattr__(self, "score", as_pytree(self.score))
        _checks.non_negative("bandwidth", self.bandwidth)

    @property
    def shape(self):
        return self.sample_shape

    @property
    def normalized_weights(self):
        return jnp.ones(1)

    def denoise(self, tau, x):
        level = level_of(self.bandwidth, tau)
        denoised = canonical_denoiser(self.process, self.score, level, x)
        return smoothed_mean(self.bandwidth, tau, x, denoised)

    def with_default_bandwidth(self, bandwidth):
        own = jnp.where(jnp.asarray(self.bandwidth) > 0, self.bandwidth, bandwidth)
        return replace(self, bandwidth=own)

    def posterior(self, tau, x):
        raise ValueError("a Learned law has a log-density along paths alone, not at a place")

    def weighted_sums(self, tau, x, log_reference, coefficients):
        return self.posterior(tau, x)

    def with_weights(self, weights):
        return self


def level_of(bandwidth: Scalar, tau: Scalar) -> Scalar:
    """The noise level at which a smoothed law's own model is evaluated."""
    return jnp.sqrt(jnp.square(tau) + jnp.square(bandwidth))


def smoothed_mean(bandwidth: Scalar, tau: Scalar, x: Array, denoised: Array) -> Array:
    """The denoiser of a smoothed law, from its model's at `level_of` (6.5)."""
    return x + jnp.square(tau / level_of(bandwidth, tau)) * (denoised - x)


@register_dataclass
@dataclass(frozen=True)
class Known(Measure):
    """What is known of a law at one place and one noise level: a single component."""

    nats: Float[Array, ""]
    mean: Float[Array, "*shape"]

    @property
    def shape(self):
        return self.mean.shape

    @property
    def normalized_weights(self):
        return jnp.ones(1, self.mean.dtype)

    def posterior(self, tau, x):
        return Posterior(self.nats, self.mean)

    def weighted_sums(self, tau, x, log_reference, coefficients):
        mass = coefficients[:, 0] * jnp.exp(self.nats - log_reference)
        return mass, jnp.multiply.outer(mass, self.mean)

    def with_weights(self, weights):
        return self

"""Preconditioning: a network becomes a denoiser of unit-scale inputs and targets.

In the canonical frame a noised sample is `x = x0 + tau n`. A network `F` never sees raw
magnitudes:

    D(x, tau) = c_skip x + c_out F(c_noise, c_in x)

    c_skip = s^2 / (tau^2 + s^2)          c_in    = 1 / sqrt(tau^2 + s^2)
    c_out  = tau s / sqrt(tau^2 + s^2)    c_noise = log(tau) / 4

with `s = sigma_data` the standard deviation of the data. Then `D = x` at `tau = 0`, and
`F = 0` is the exact denoiser of `N(0, s^2 I)`.

References: Karras et al. 2022, arXiv 2206.00364, Table 1.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from scoresens import _checks
from scoresens.laws.noises import Gaussian, Noise
from scoresens.laws.processes import EDM, Process
from scoresens.laws.scores import Score, from_denoiser

TAU_FLOOR = 1e-8  # c_noise stays finite, so that D(x, 0) = x
FREQUENCIES = 32
EMBEDDING = 64


@runtime_checkable
class Network(Protocol):
    """What a `Denoiser` wraps: a module that maps one sample of a fixed shape to its like."""

    shape: tuple[int, ...]

    def __call__(self, c_noise: Float[Array, ""], x: Float[Array, "*shape"]) -> Array: ...


class Denoiser(nnx.Module):
    """A preconditioned network: `denoiser(tau, x)` estimates `E[x0 | x0 + tau n = x]`.

    It is a JAX pytree whose leaves are its parameters, so it may be an argument of `jit`, of
    `grad` and of a `jax.tree_util.Partial`; calling it changes nothing in it.

    Args:
        network: `network(c_noise, x)` for one sample, whose shape is its `.shape`.
        sigma_data: standard deviation of the data's entries, positive.
        noise: the law of n that it is trained on.

    Raises:
        ValueError: if `sigma_data` is not positive and finite.

    References:
        Karras et al. 2022, arXiv 2206.00364, equation 7.
    """

    def __init__(self, network: Network, sigma_data: float, noise: Noise = Gaussian()):
        if not 0 < sigma_data < float("inf"):
            raise ValueError(
                f"sigma_data must be positive and finite, got {sigma_data}: "
                "give the standard deviation of the data's entries"
            )
        self.network = network
        self.sigma_data = float(sigma_data)
        self.noise = noise

    def __call__(self, tau: float | Float[Array, ""], x: Float[Array, "*shape"]) -> Array:
        """`D(x, tau) = c_skip x + c_out F(c_noise, c_in x)`.

        Args:
            tau: noise level, `>= 0`.
            x: one sample `[*shape]`; map over a batch with `jax.vmap`.

        Returns:
            The denoised sample `[*shape]`, in the wider of x's and the parameters' dtypes.

        Raises:
            ValueError: if x has not the shape of one sample.

        Notes:
            One network evaluation.
        """
        if x.shape != self.network.shape:
            raise ValueError(
                f"expected one sample of shape {self.network.shape}, got {x.shape}: "
                "map over a batch with jax.vmap(denoiser, (None, 0))"
            )
        tau = jnp.asarray(tau, x.dtype)
        c_noise = noise_condition(tau)
        return preconditioned(lambda x: self.network(c_noise, x), self.sigma_data, tau, x)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.network.shape

    @property
    def process(self) -> Process:
        """The process whose frame is the canonical one."""
        return EDM(noise=self.noise)

    @property
    def score(self) -> Score:
        """`score(tau, x)` of that process, for one sample."""
        return from_denoiser(self.process, self)


def preconditioned(
    network: Callable[[Float[Array, "*shape"]], Array],
    sigma_data: float,
    tau: Float[Array, ""],
    x: Float[Array, "*shape"],
) -> Array:
    """`c_skip x + c_out F(c_in x)` of a network F that knows the noise level already. Raises a
    ValueError if it does not return an array of x's shape."""
    total = tau**2 + sigma_data**2
    c_skip = sigma_data**2 / total
    c_out = tau * sigma_data * jax.lax.rsqrt(total)
    c_in = jax.lax.rsqrt(total)
    return c_skip * x + c_out * _checks.like_sample("network", network(c_in * x), x)


def noise_condition(tau: Float[Array, ""]) -> Float[Array, ""]:
    """`c_noise = log(tau) / 4`, finite at 0."""
    return jnp.log(jnp.maximum(tau, TAU_FLOOR)) / 4


class NoiseEmbedding(nnx.Module):
    """The noise level as a vector: `e = silu(A [cos(w c_noise), sin(w c_noise)])`.

    The frequencies w are fixed, geometric from 1/2 to 32 radians a unit of c_noise.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(2 * FREQUENCIES, EMBEDDING, rngs=rngs)

    def __call__(self, c_noise: Float[Array, ""]) -> Float[Array, "embedding"]:
        """The embedding `[64]` of one noise level."""
        angles = c_noise * jnp.geomspace(0.5, 32.0, FREQUENCIES, dtype=c_noise.dtype)
        return nnx.silu(self.linear(jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])))

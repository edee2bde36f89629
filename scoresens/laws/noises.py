r"""Laws of the noise n in `x_t = alpha x_0 + sigma n`, and the kernels that they make of data.

Nothing that follows a denoiser needs n to be Gaussian: in the canonical frame `x = x_0 + tau n`
flows along `dx/dtau = n`, so that the marginal velocity is

    (11.1)  v = E[n | x] = (x - D) / tau,      D = E[x_0 | x]

for n of *any* law; paths, their log-densities (3.1), derivatives, changed laws and attribution are
those of the Gaussian with another kernel. Here n is a **Gaussian scale mixture**, n = s g with g
standard normal and s a random scale, whose density depends on |n| alone. A bump of bandwidth h that
shares the mixing variable with the noise makes the kernel that of `v = tau^2 + h^2`, and the
posterior mean of one bump is the Gaussian's (`kernels`):

    Gaussian    log K = -|x - y|^2 / 2v
    StudentT    log K = -(nu + d)/2 log(1 + |x - y|^2 / (nu v))
    Laplace     log K = -sqrt((d + 1) |x - y|^2 / v)              each - d/2 log v + constant

The gradient of log rho_tau is (D - x) / tau^2 of Gaussian noise alone. What needs that gradient is
refused of others: the reverse SDE, log-densities along curves other than a law's own flow (3.2),
and Fokker-Planck residuals.

References: Xu et al. 2023, arXiv 2302.04265 (PFGM++: nu is their D, tau their r / sqrt(D)); Pandey
et al. 2024, arXiv 2410.14171 (t-EDM); Kotz et al. 2001, The Laplace Distribution, section 6.
"""

import abc
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens._types import Scalar
from scoresens.laws.kernels import LOG_2PI, Kernel, log_excess

MIXING = 0x6D6978  # the stream of a key that scales are drawn from; normals are the Gaussian's own


class Noise(Kernel):
    """A law of noise of unit scale, and its kernel. A new one is a class with `evaluate` and
    `scale`, a pytree."""

    is_gaussian: ClassVar[bool] = False

    @abc.abstractmethod
    def scale(self, key: PRNGKeyArray, size: int) -> Array:
        """One draw of s, for noise of `size` dimensions."""

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Float[Array, "*shape"]:
        """One draw of n = s g."""
        scale = self.scale(jax.random.fold_in(key, MIXING), math.prod(shape))
        return scale.astype(dtype) * jax.random.normal(key, shape, dtype)

    def log_density(self, n: Float[Array, "*shape"], scale: Scalar = 1.0) -> Float[Array, ""]:
        """Log-density of `scale` times the noise, in nats."""
        return self.evaluate(jnp.sum(jnp.square(n)), jnp.square(scale), n.size)


@register_dataclass
@dataclass(frozen=True)
class Gaussian(Noise):
    """N(0, I): the kernel N(x; y, v I)."""

    is_gaussian = True

    def scale(self, key, size):
        return jnp.ones(())

    def draw(self, key, shape, dtype):
        return jax.random.normal(key, shape, dtype)

    def evaluate(self, squares, spread, size):
        return (-0.5 / spread) * squares - 0.5 * size * (jnp.log(spread) + LOG_2PI)

    def gain(self, squares, spread, over, size):
        return (-0.5 / spread) * squares - 0.5 * size * log_excess(spread, over)

    def ratio(self, excess, reference, spread, size):
        return (-0.5 / spread) * excess


@register_dataclass
@dataclass(frozen=True)
class StudentT(Noise):
    """The multivariate Student-t law of nu degrees of freedom and scale matrix I: s = sqrt(nu /
    chi^2_nu), one for all dimensions.

    Args:
        nu: positive; the PFGM++ family's D. Its variance nu / (nu - 2) is finite above 2.

    Raises:
        ValueError: nu that is not positive and finite.
    """

    nu: float = field(metadata={"static": True})

    def __post_init__(self):
        _checks.positive("StudentT.nu", self.nu)
        object.__setattr__(self, "nu", float(self.nu))

    def scale(self, key, size):
        return jnp.sqrt(self.nu / jax.random.chisquare(key, self.nu))

    def evaluate(self, squares, spread, size):
        return (
            self._tail(squares, 0.0, spread, size)
            - 0.5 * size * jnp.log(spread)
            + (self._constant(size) - 0.5 * size * LOG_2PI)
        )

    def gain(self, squares, spread, over, size):
        tail = self._tail(squares, 0.0, spread, size)
        return tail - 0.5 * size * log_excess(spread, over) + self._constant(size)

    def ratio(self, excess, reference, spread, size):
        return self._tail(excess, reference, spread, size)

    def _tail(self, excess, reference, spread, size):
        """What distance does, beyond that at the reference: one logarithm, not a difference."""
        near = self.nu * spread + reference
        return -0.5 * (self.nu + size) * jnp.log1p(excess / near)

    def _constant(self, size):
        """log of the density at 0 over the Gaussian's."""
        half = 0.5 * self.nu
        return math.lgamma(half + 0.5 * size) - math.lgamma(half) - 0.5 * size * math.log(half)


@register_dataclass
@dataclass(frozen=True)
class Laplace(Noise):
    """The law whose density falls exponentially with |n|, of variance 1 in each dimension: s^2 is
    of a Gamma law of shape (d + 1) / 2 and mean 1. In one dimension it is Laplace's."""

    def scale(self, key, size):
        shape = 0.5 * (size + 1)
        return jnp.sqrt(jax.random.gamma(key, shape) / shape)

    def evaluate(self, squares, spread, size):
        reach = jnp.sqrt((size + 1) / spread) * _root(squares)
        return self._constant(size) - 0.5 * size * (jnp.log(spread) + LOG_2PI) - reach

    def gain(self, squares, spread, over, size):
        reach = jnp.sqrt((size + 1) / spread) * _root(squares)
        return self._constant(size) - 0.5 * size * log_excess(spread, over) - reach

    def ratio(self, excess, reference, spread, size):
        both = _root(reference + excess) + _root(reference)
        apart = excess / jnp.where(both > 0, both, 1)
        return -jnp.sqrt((size + 1) / spread) * apart

    def _constant(self, size):
        """log of the density at 0 over the Gaussian's, a^d (2 pi)^(d/2) Gamma(d/2) / (2 pi^(d/2)
        Gamma(d)) with a = sqrt(d + 1)."""
        at_rate = 0.5 * size * (math.log(size + 1) + math.log(2))
        return at_rate + math.lgamma(0.5 * size) - math.lgamma(size) - math.log(2)


def _root(squares: Scalar | Array) -> Array:
    """Distances, with the derivative 0 where they are 0: at a tip, which no noise hits."""
    some = jnp.asarray(squares) > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1)), 0)


def noise_of(degrees_of_freedom: float | None) -> Noise:
    """As files and settings say it: Student-t of so many degrees of freedom, Gaussian of None."""
    return Gaussian() if degrees_of_freedom is None else StudentT(degrees_of_freedom)


def degrees_of(noise: Noise) -> float | None:
    """The inverse of `noise_of`. Raises a ValueError of noise that files do not hold."""
    if not isinstance(noise, Gaussian | StudentT):
        raise ValueError(f"files hold models of Gaussian and Student-t noise, not of {noise}")
    return None if isinstance(noise, Gaussian) else noise.nu

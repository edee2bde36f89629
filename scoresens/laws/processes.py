r"""Forward processes, and the canonical frame in which every path is solved.

A scalar Gaussian process `dx = f(t, x) dt + g(t) dW` started from data `x_0` has

    x_t = alpha(t) x_0 + sigma(t) n,        K_t(x|y) = N(x; alpha y, sigma^2 I)
    f = (alpha'/alpha) x,                   g^2 = (sigma^2)' - 2 (alpha'/alpha) sigma^2

with `t = 0` at the data and `t = process.t_max` at the noise. Dividing by alpha turns all of them
into one, the **canonical frame**:

    (1.3)   x^ = x / alpha = x_0 + tau n,   tau = sigma / alpha,
            log rho_t(x) = log rho^_tau(x^) - d log alpha

A process states `log_alpha`, `variance` and the inverse `time(tau)`; the rest follows from them. A
new one is one class: error texts, the files of converted models and the tests find it `by_name`.

The noise n may be of another law (`noises`): any process takes `noise=`. Then its drift and
diffusion are of no SDE, and its flow is as it was.
"""

import abc
import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens._types import Scalar
from scoresens.laws.kernels import Kernel, Resolved
from scoresens.laws.noises import Gaussian, Noise


class Process(abc.ABC):
    """A scalar process between data (t = 0) and noise (t = t_max), Gaussian but for its `noise`.

    Abstract: `t_max`, `log_alpha`, `variance`, `time`. Everything else is derived.
    All methods are for one sample `x [*shape]` and a scalar time, and are smooth in both.
    """

    t_max: Scalar
    noise: Noise = Gaussian()  # the law of n
    is_scalar: ClassVar[bool] = True  # x = alpha x_0 + sigma n

    @property
    def is_gaussian(self) -> bool:
        """Whether (D - x) / tau^2 is the gradient of log rho_tau."""
        return self.noise.is_gaussian

    @property
    def named(self) -> str:
        """What it is, in messages."""
        kind = type(self).__name__
        return kind if self.is_gaussian or not self.is_scalar else f"{kind} of {self.noise}"

    @abc.abstractmethod
    def log_alpha(self, t: Scalar) -> Scalar:
        """Logarithm of the signal's scale alpha(t)."""

    @abc.abstractmethod
    def variance(self, t: Scalar) -> Scalar:
        """Variance sigma(t)^2 of the noise."""

    @abc.abstractmethod
    def time(self, tau: Scalar) -> Scalar:
        """The time at which the noise-to-signal ratio sigma/alpha is `tau`."""

    @property
    def prior_std(self) -> Scalar:
        """Standard deviation of the law that samplers start from at t_max: sigma there, unless a
        process says otherwise."""
        return self.sigma(self.t_max)

    def alpha(self, t: Scalar) -> Scalar:
        """Scale of the signal at time t."""
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Scalar) -> Scalar:
        """Standard deviation of the noise at time t. Where it is 0 its derivatives are taken to be
        0; a process whose sigma is smooth there has it in its own words."""
        return root(self.variance(t))

    def noise_level(self, t: Scalar) -> Scalar:
        """Noise-to-signal ratio tau = sigma / alpha: the clock of the canonical frame."""
        return self.sigma(t) / self.alpha(t)

    def drift(self, t: Scalar, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Drift f(t, x) = (alpha'/alpha) x of the forward process."""
        return jax.grad(self.log_alpha)(jnp.asarray(t, x.dtype)) * x

    def diffusion(self, t: Scalar) -> Scalar:
        """Diffusion coefficient g(t) of the forward process."""
        t = jnp.asarray(t)
        if not jnp.issubdtype(t.dtype, jnp.floating):
            t = t.astype(float)
        growth = jax.grad(self.variance)(t) - 2 * jax.grad(self.log_alpha)(t) * self.variance(t)
        return root(growth)

    def noised(
        self, t: Scalar, y: Float[Array, "*shape"], *, key: PRNGKeyArray
    ) -> Float[Array, "*shape"]:
        """One draw of x_t given x_0 = y."""
        return self.alpha(t) * y + self.sigma(t) * self.noise.draw(key, y.shape, y.dtype)

    def sample_prior(
        self, shape: tuple[int, ...], *, key: PRNGKeyArray, first: int = 0
    ) -> Float[Array, "M *shape"]:
        """Starting noise `[M, *shape]` at t_max, prior_std times draws of the noise.

        Sample i depends on `key` and i alone, so that the first samples of a larger batch are the
        smaller batch; `first` is the number of the first sample asked for.
        """
        _checks.key_given("sample_prior", key, "the noise is drawn from it", rows=False)
        return _drawn(self, key, first, tuple(shape), jnp.result_type(float))

    def draw_prior(
        self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any
    ) -> Float[Array, "*shape"]:
        """One draw of the prior."""
        return self.prior_std * self.noise.draw(key, shape, dtype)

    def prior_log_density(self, x: Float[Array, "*shape"]) -> Float[Array, ""]:
        """Log-density of the prior, prior_std times the noise, at one sample, in nats."""
        return self.noise.log_density(x, self.prior_std)

    def kernel_of(self, kernel: Kernel, bandwidth: Scalar, points: Any) -> tuple[Kernel, Scalar]:
        """The kernel and the bandwidth of points, as this process's noise makes them of what they
        have; a kernel of one's own stays."""
        own = kernel.kernel if isinstance(kernel, Resolved) else kernel
        if own == self.noise or not isinstance(own, Noise):
            return kernel, bandwidth
        new = replace(kernel, kernel=self.noise) if isinstance(kernel, Resolved) else self.noise
        return new, bandwidth

    def to_canonical(self, t: Scalar, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """x^ = x / alpha(t): the state in units of the data."""
        return x / self.alpha(t)

    def from_canonical(self, t: Scalar, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """x = alpha(t) x^: the inverse of `to_canonical`."""
        return self.alpha(t) * x


def root(square: Scalar | Array) -> Array:
    """The square root with the derivative 0 at 0, where a parameter's is 0 times infinity."""
    nothing = jnp.asarray(square) == 0
    return jnp.where(nothing, 0, jnp.sqrt(jnp.where(nothing, 1, square)))


def check_gaussian(process: Process, what: str) -> None:
    """Refuses a process where the gradient of log rho is needed and the denoiser does not give
    it."""
    if not process.is_gaussian:
        raise ValueError(
            f"{what} needs the gradient of log rho, which a denoiser gives of Gaussian noise "
            f"alone; this process is a {process.named}. What follows the flow works: sample_ode, "
            "sample_sensitivity, counterfactual with base=data, attribute"
        )


def by_name() -> dict[str, type[Process]]:
    """Every scalar process by the name of its class, in the order of definition."""

    def below(kind):
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return {kind.__name__: kind for kind in below(Process) if kind.is_scalar}


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _drawn(process, key, first, shape, dtype):
    def draw(i):
        return process.draw_prior(jax.random.fold_in(key, i), shape[1:], dtype)

    return jax.vmap(draw)(first + jnp.arange(shape[0]))


def positive_fields(process: Process, *names: str) -> None:
    for name in names:
        _checks.positive(f"{type(process).__name__}.{name}", getattr(process, name))


@register_dataclass
@dataclass(frozen=True)
class VP(Process):
    """Variance preserving, beta linear in t: alpha = exp(-1/2 int beta), sigma^2 = 1 - alpha^2.

    Song et al. 2021, arXiv 2011.13456, eq. 32; the time in [0, t_max].
    """

    beta_min: Scalar = 0.1
    beta_max: Scalar = 20.0
    t_max: Scalar = 1.0
    noise: Noise = Gaussian()

    def __post_init__(self):
        positive_fields(self, "beta_min", "beta_max", "t_max")

    def log_alpha(self, t):
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def variance(self, t):
        return -jnp.expm1(2 * self.log_alpha(t))

    def time(self, tau):
        return self._time_of_integral(jnp.log1p(jnp.square(tau)))

    @property
    def prior_std(self):
        return 1.0

    def _time_of_integral(self, integral):
        """The t at which the integral of beta is `integral`: the root of a quadratic, kept
        stable."""
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * integral))


@register_dataclass
@dataclass(frozen=True)
class SubVP(VP):
    """Sub-VP: VP's alpha with sigma = 1 - alpha^2 (Song et al. 2021, arXiv 2011.13456, eq. 14)."""

    def sigma(self, t):
        return -jnp.expm1(2 * self.log_alpha(t))

    def variance(self, t):
        return jnp.square(self.sigma(t))

    def time(self, tau):
        return self._time_of_integral(2 * jnp.arcsinh(jnp.asarray(tau) / 2))


@register_dataclass
@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t.

    At t = 0 the noise is sigma_min, not 0 (Song et al. 2021, arXiv 2011.13456, eq. 30, with the
    usual kernel that counts the first sigma_min).
    """

    sigma_min: Scalar = 0.01
    sigma_max: Scalar = 50.0
    t_max: Scalar = 1.0
    noise: Noise = Gaussian()

    def __post_init__(self):
        positive_fields(self, "sigma_min", "sigma_max", "t_max")
        concrete = _checks.is_concrete(self.sigma_min) and _checks.is_concrete(self.sigma_max)
        if concrete and self.sigma_max <= self.sigma_min:
            raise ValueError(
                f"VE.sigma_max must be greater than sigma_min {self.sigma_min}, "
                f"got {self.sigma_max}"
            )

    def log_alpha(self, t):
        return jnp.zeros_like(t)

    def sigma(self, t):
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def variance(self, t):
        return jnp.square(self.sigma(t))

    def time(self, tau):
        return jnp.log(tau / self.sigma_min) / jnp.log(self.sigma_max / self.sigma_min)


@register_dataclass
@dataclass(frozen=True)
class EDM(Process):
    """The canonical frame itself: alpha = 1, sigma = t (Karras et al. 2022, arXiv 2206.00364)."""

    t_max: Scalar = 80.0
    noise: Noise = Gaussian()

    def __post_init__(self):
        positive_fields(self, "t_max")

    def log_alpha(self, t):
        return jnp.zeros_like(t)

    def sigma(self, t):
        return jnp.asarray(t)

    def variance(self, t):
        return jnp.square(t)

    def time(self, tau):
        return jnp.asarray(tau)


@register_dataclass
@dataclass(frozen=True)
class OU(Process):
    """Ornstein-Uhlenbeck, dx = -theta x dt + g dW, started from its stationary law at t_max."""

    theta: Scalar = 1.0
    g: Scalar = 2.0**0.5
    t_max: Scalar = 5.0
    noise: Noise = Gaussian()

    def __post_init__(self):
        positive_fields(self, "theta", "g", "t_max")

    def log_alpha(self, t):
        return -self.theta * jnp.asarray(t)

    def variance(self, t):
        return -jnp.expm1(2 * self.log_alpha(t)) * self.prior_std**2

    def time(self, tau):
        return jnp.log1p(jnp.square(tau / self.prior_std)) / (2 * self.theta)

    @property
    def prior_std(self):
        return self.g / jnp.sqrt(2 * self.theta)


@register_dataclass
@dataclass(frozen=True)
class Cosine(Process):
    """Cosine schedule, alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Nichol & Dhariwal 2021, arXiv 2102.09672, without the offset. The signal vanishes at t = 1, so
    paths start a little before it: the default t_max is at tau = 80.
    """

    t_max: Scalar = 0.9920425
    noise: Noise = Gaussian()

    def __post_init__(self):
        _before_the_end(self)

    def log_alpha(self, t):
        return jnp.log(jnp.cos(0.5 * jnp.pi * t))

    def sigma(self, t):
        return jnp.sin(0.5 * jnp.pi * t)

    def variance(self, t):
        return jnp.square(self.sigma(t))

    def time(self, tau):
        return 2 / jnp.pi * jnp.arctan(tau)


@register_dataclass
@dataclass(frozen=True)
class FlowMatching(Process):
    """The straight path x_t = (1 - t) x_0 + t n (Lipman et al. 2022, arXiv 2210.02747; here t = 0
    is data).

    The signal vanishes at t = 1, so paths start a little before it: the default t_max is at tau =
    80.
    """

    t_max: Scalar = 80.0 / 81.0
    noise: Noise = Gaussian()

    def __post_init__(self):
        _before_the_end(self)

    def log_alpha(self, t):
        return jnp.log1p(-t)

    def sigma(self, t):
        return jnp.asarray(t)

    def variance(self, t):
        return jnp.square(t)

    def time(self, tau):
        return tau / (1 + tau)


def _before_the_end(process: Process) -> None:
    positive_fields(process, "t_max")
    if _checks.is_concrete(process.t_max) and process.t_max >= 1:
        raise ValueError(
            f"{type(process).__name__}.t_max must be below 1, where the signal vanishes and the "
            f"noise-to-signal ratio is infinite; got {process.t_max}"
        )

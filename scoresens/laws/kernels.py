r"""The kernel of a noised bump, as a function of distance.

A point y that carries a bump of **bandwidth** h, the Gaussian N(y, h^2 I) in its place (h = 0: the
point itself), has at x and noise level tau the kernel and the posterior mean

    log K(x; y)  = log N(x; y, v I) = -|x - y|^2 / 2v - d/2 log 2 pi v,      v = tau^2 + h^2
    E[x_0|x, y]  = (h^2 x + tau^2 y) / (h^2 + tau^2)

**Log-kernels are ratios.** log K is of the order of d, and float32 keeps of it no more than 1e-7 d:
at d = 196,608 posteriors were wrong by 2 %. What is exponentiated is therefore log K(x; y) - log K
at a reference distance (`Kernel.ratio`), and log-densities are carried as **gains**,
log rho + d/2 log(2 pi (tau^2 + c^2)), measured against a broad Gaussian's constant (`yardstick`):
what tells two laws apart is not lost among the constants of both.

**As sharp as a network, not as sharp as Bayes.** In d dimensions the posterior over data points is
far sharper than any network's: of many numbers it makes one nearest image the winner at noise
levels where a network still averages over hundreds. `Resolved` is a kernel of less resolution,

    (6.6)  log K(x; y) = -|x - y|_g^2 / (2 T (tau^2 + w^2)),      T >= 1, w >= h
    (6.7)  |x|_g^2 = sum_k g_k (u_k.x)^2,      g_k = lambda_k / (lambda_k + c sum_i lambda_i)

of a **width** w, a **temperature** T and a **resolution** c >= 0, with lambda_k, u_k the variances
and principal axes of the data; the posterior mean of one bump stays what it is. A width is a
temperature (tau^2 + w^2) / (tau^2 + h^2) that falls to 1 with the noise. No law has such noised
densities. The difference of two such denoisers, filtered along the same axes for a training that
was short (6.11), is a model of what a network's does when its data change, and is judged by
retraining alone (docs/resolution.md); `calibrate` finds w and c.
"""

import abc
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens._types import Scalar
from scoresens.laws.axes import Axes, principal_axes

LOG_2PI = math.log(2 * math.pi)


def level_of(bandwidth: Scalar, tau: Scalar | Array) -> Array:
    """The noise level at which a smoothed law is met: `sqrt(tau^2 + h^2)`."""
    return jnp.sqrt(jnp.square(tau) + jnp.square(bandwidth))


BREADTH = 0.25  # c of the yardstick, for data of order 1


def yardstick(tau: Scalar | Array, size: int) -> Scalar | Array:
    """d/2 log(2 pi (tau^2 + c^2)): a gain minus its log-density."""
    return 0.5 * size * (jnp.log(jnp.square(tau) + BREADTH**2) + LOG_2PI)


def log_excess(spread: Scalar | Array, over: Scalar | Array) -> Array:
    """log of a variance over the yardstick's, `spread - over`, exact at both ends of the noise."""
    yard = spread - over
    near = over > -0.5 * yard
    apart = jnp.log(jnp.where(near, yard, spread) / yard)
    return jnp.where(near, jnp.log1p(jnp.where(near, over, 0) / yard), apart)


def shares(bandwidth: Scalar, tau: Scalar | Array) -> tuple[Array, Array]:
    """`h^2 / (h^2 + tau^2)` and `tau^2 / (h^2 + tau^2)`: of x and of y in the posterior mean."""
    bump, noise = jnp.square(bandwidth), jnp.square(tau)
    return bump / (bump + noise), noise / (bump + noise)


def smoothed_mean(bandwidth: Scalar, tau: Scalar | Array, x: Array, mean: Array) -> Array:
    """The posterior mean of a law smoothed by h, from that of the law itself at `level_of` (6.5);
    of one bump, from its point. Linear in (x, mean)."""
    of_x, of_y = shares(bandwidth, tau)
    return of_x * x + of_y * mean


class Kernel(abc.ABC):
    """A noised bump as a function of distance. A new one is a class with `evaluate`, a pytree."""

    is_density: ClassVar[bool] = True  # whether the noised densities are those of a law
    temperature: Scalar = 1.0
    width: Scalar | None = None  # in the place of the bandwidth; None: as wide as the bumps
    resolution: Scalar = 0.0
    spectral_bias: Scalar | None = None  # of what is learnt of a change; None: all of it
    axes: Axes | None = None  # along which distances are weighed; None: all count alike

    def learnt(self, change: Float[Array, "*R"]) -> Float[Array, "*R"]:
        """What a training makes of changes of the denoiser, `[..., *shape]` or `[..., d]`: a
        symmetric linear map of each."""
        return change

    def coordinates(self, points: Float[Array, "*R d"]) -> Float[Array, "*R r"]:
        """Where points are, as distances along the axes are taken."""
        raise NotImplementedError(f"{type(self).__name__} has no axes")

    def spread(self, bandwidth: Scalar, tau: Scalar | Array) -> Array:
        """v, of a bump of this bandwidth at noise level tau."""
        return jnp.square(tau) + jnp.square(bandwidth if self.width is None else self.width)

    def sample_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a place, for points of this shape."""
        return shape

    def centre(self, shape: tuple[int, ...]) -> Array | None:
        """What points of this shape are measured from; None: the mean of the first of them."""
        return None

    def block(self, points: Float[Array, "B n"], precision: Any) -> Any:
        """What stands for B points in the place of `bumps.Bumps`; None: these."""
        return None

    @abc.abstractmethod
    def evaluate(self, squares: Array, spread: Array, size: int) -> Array:
        """log K, in nats, from `|x - y|^2` and v = `spread`, of shapes that broadcast, and d."""

    def gain(self, squares: Array, spread: Array, over: Array, size: int) -> Array:
        """log K as a gain: measured against a yardstick whose variance is `spread - over`."""
        constant = 0.5 * size * (jnp.log(spread - over) + LOG_2PI)
        return self.evaluate(squares, spread, size) + constant

    def ratio(self, excess: Array, reference: Array, spread: Array, size: int) -> Array:
        """log K at `reference + excess` minus log K at the squared distance `reference`; a kernel
        that knows it without a difference of large numbers is the better for it."""
        there = self.evaluate(reference + excess, spread, size)
        return there - self.evaluate(reference, spread, size)


@register_dataclass
@dataclass(frozen=True)
class Resolved(Kernel):
    """Another kernel, of less resolution: temperature T and width w (6.6), and weights of the axes
    for the resolution c (6.7), and for what is learnt of a change (6.11), if there are any."""

    kernel: Kernel
    temperature: Scalar = 1.0
    width: Scalar | None = None
    resolution: Scalar = 0.0
    spectral_bias: Scalar | None = None
    axes: Axes | None = None

    is_density = False

    def centre(self, shape):
        return None if self.axes is None else self.axes.centre

    def learnt(self, change):
        if self.spectral_bias is None:
            return change
        assert self.axes is not None
        rows = change.reshape(-1, len(self.axes.centre))
        return self.axes.filtered(rows, self.spectral_bias).reshape(change.shape)

    def coordinates(self, points):
        assert self.axes is not None
        return self.weighed(self.axes.coordinates(points))

    def weighed(self, along: Float[Array, "*R r"]) -> Float[Array, "*R r"]:
        """Coordinates, from those along the axes as they are."""
        assert self.axes is not None
        return jnp.sqrt(self.axes.weights(self.resolution)) * along

    def evaluate(self, squares, spread, size):
        return self.kernel.evaluate(squares, spread, size) / self.temperature

    def gain(self, squares, spread, over, size):
        return self.kernel.gain(squares, spread, over, size) / self.temperature

    def ratio(self, excess, reference, spread, size):
        return self.kernel.ratio(excess, reference, spread, size) / self.temperature


def resolved(
    kernel: Kernel,
    temperature: Scalar,
    width: Scalar | None,
    resolution: Scalar,
    spectral_bias: Scalar,
    points: Any,
) -> Kernel:
    """The kernel of a temperature, a width, a resolution and a spectral bias, along the principal
    axes of these points if there is one of the last two; itself at 1, None, 0 and 0.

    Raises:
        ValueError: a temperature or a width that is not positive, or a negative resolution or
            spectral bias.
    """
    _checks.positive("temperature", temperature)
    _checks.non_negative("resolution", resolution)
    _checks.non_negative("spectral_bias", spectral_bias)
    if width is not None:
        _checks.positive("width", width)
    bias = None if _is(spectral_bias, 0.0) else spectral_bias
    flat = _is(resolution, 0.0) and bias is None
    if flat and width is None and _is(temperature, 1.0):
        return kernel
    axes = None if flat else principal_axes(points)
    return Resolved(kernel, temperature, width, resolution, bias, axes)


def _is(value: Scalar, known: float) -> bool:
    """Whether a number, traced or not, is known to be this one."""
    return _checks.is_concrete(value) and bool(value == known)


def check_comparable(one: Kernel, other: Kernel | None = None) -> None:
    """Refuse to divide what is a noised density by what is none; the other is a model's if it is
    not given."""
    if one.is_density != (other is None or other.is_density):
        raise ValueError(
            "points with a temperature, a width, a resolution or a spectral bias have no noised "
            "densities that another law's could be compared with: take base=the same Points, or "
            "Points without them"
        )

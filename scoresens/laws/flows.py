r"""Conditional flows: bases of their own, pairs, angles.

    DiagonalGaussian   xi = a(t) eta + s(t) n along an orthonormal basis, each axis its own a and s:
                       blurring, heat dissipation, anisotropic schedules
    Bridge             x_t = (1 - t) x_0 + t x_1 + gamma(t) n of a pair z = (x_0, x_1): stochastic
                       interpolants, OT couplings, translation
    Torus              angles, noised by a Gaussian that is wrapped round

All three are Gaussian given z, of mean m(t) and variance V(t) on each axis, but for the wrapping,
and so are points that are bumps of bandwidth h. Such a kernel is transported by

    u = m' + V' / (2 V) (x - m)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from scoresens import _checks
from scoresens._products import product
from scoresens._pytrees import register_dataclass
from scoresens._types import Scalar
from scoresens.laws.conditional import ConditionalFlow
from scoresens.laws.kernels import LOG_2PI
from scoresens.laws.processes import positive_fields
from scoresens.laws.scores import as_pytree

IMAGES = 6  # of an angle on either side: at t = 5 those beyond are of 1e-15


@register_dataclass
@dataclass(frozen=True)
class DiagonalGaussian(ConditionalFlow):
    """Gaussian noise with a schedule for each axis of an orthonormal basis.

    Args:
        signal: `signal(t) -> [d]` or a scalar, a of each axis; 1 at t = 0, near 0 at t_max.
        spread: `spread(t) -> [d]` or a scalar, s of each axis; the prior is N(0, s(t_max)^2).
        basis: `[d, d]`, whose columns are the axes; None: the entries of x as they are.
        t_max: where paths begin.

    Raises:
        ValueError: a basis that is not orthonormal, or a t_max that is not positive.

    References:
        Hoogeboom & Salimans 2022, arXiv 2209.05557; Rissanen et al. 2022, arXiv 2206.13397.
    """

    signal: Callable[[Scalar], Array]
    spread: Callable[[Scalar], Array]
    basis: Array | np.ndarray | None = None  # [d, d]
    t_max: Scalar = 1.0

    def __post_init__(self):
        positive_fields(self, "t_max")
        for name in ("signal", "spread"):
            object.__setattr__(self, name, as_pytree(getattr(self, name)))
        if self.basis is not None:
            object.__setattr__(self, "basis", _orthonormal(self.basis))

    def log_kernel(self, t, x, z, bandwidth):
        mean, variance = self._moments(z, bandwidth, t)
        offset = self._along(x) - mean
        return _log_normal(offset, variance)

    def velocity(self, t, x, z, bandwidth):
        moments = _rates(lambda t: self._moments(z, bandwidth, t), t, x.dtype)
        return self._back(_transporting(self._along(x), *moments))

    def draw_prior(self, key, shape, dtype):
        drawn = jax.random.normal(key, (math.prod(shape),), dtype)
        return self._back(self.spread(self.t_max) * drawn).reshape(shape)

    def prior_log_density(self, x):
        along = self._along(x.reshape(-1))
        return _log_normal(along, jnp.square(self.spread(self.t_max)))

    def _moments(self, z, bandwidth, t):
        signal = self.signal(t)
        variance = jnp.square(self.spread(t)) + jnp.square(bandwidth * signal)
        return signal * self._along(z), variance

    def _along(self, x):
        return x if self.basis is None else product(x, jnp.asarray(self.basis, x.dtype))

    def _back(self, along):
        if self.basis is None:
            return along
        return product(jnp.asarray(self.basis, along.dtype), along)


def blurring(shape: tuple[int, int, int], blur: float = 20.0) -> DiagonalGaussian:
    """The blurring diffusion of images `[H, W, C]`: noise, and heat that runs from pixel to pixel.

    Args:
        shape: of one image.
        blur: standard deviation, in pixels, of the blur at the noise end.

    Returns:
        A `DiagonalGaussian` on the cosine basis: `a_i = cos(pi t / 2) exp(-lambda_i b(t)^2 / 2)`
            with `b = blur sin^2(pi t / 2)` and lambda_i the squared frequency, `s = sin(pi t / 2)`.

    References:
        Hoogeboom & Salimans 2022, arXiv 2209.05557, section 4.
    """
    height, width, channels = shape
    rows, columns = _cosines(height), _cosines(width)
    basis = np.kron(np.kron(rows[0], columns[0]), np.eye(channels))
    squares = np.repeat((rows[1][:, None] + columns[1]).ravel(), channels)
    frequencies = jnp.asarray(squares, jnp.result_type(float))
    signal = jax.tree_util.Partial(_blurred_signal, frequencies, blur)
    return DiagonalGaussian(signal, jax.tree_util.Partial(_sine), jnp.asarray(basis), 0.99)


@register_dataclass
@dataclass(frozen=True)
class Bridge(ConditionalFlow):
    """From sources x_1 at t = 1 to targets x_0 at t = 0, along pairs.

    Data are pairs `[N, 2, *shape]`, made by `pairs`; paths begin at sources, which are the `noise`
    of the verbs. Given a pair, x_t has the mean `(1 - t) x_0 + t x_1` and the variance
    `sigma_min^2 + gamma^2 t (1 - t)`.

    Args:
        gamma: of the noise between the ends: 0 for OT-CFM, 1 for a Brownian bridge.
        sigma_min: noise at the ends too, > 0.

    Raises:
        ValueError: a gamma that is negative, or a sigma_min that is not positive.

    Notes:
        There is no prior of its own: where a log-density is followed (`base=None`), give
        `prior=Points(pairs)`.

    References:
        Albergo et al. 2023, arXiv 2303.08797; Tong et al. 2023, arXiv 2302.00482.
    """

    gamma: Scalar = 0.0
    sigma_min: Scalar = 0.05
    t_max: Scalar = 1.0

    def __post_init__(self):
        _checks.non_negative("Bridge.gamma", self.gamma)
        positive_fields(self, "sigma_min", "t_max")

    def sample_shape(self, shape):
        if len(shape) < 2 or shape[0] != 2:
            raise ValueError(
                f"a Bridge's data are pairs [N, 2, *shape], made by pairs(targets, sources); got "
                f"points of shape {tuple(shape)}"
            )
        return shape[1:]

    def log_kernel(self, t, x, z, bandwidth):
        mean, variance = self._moments(z, bandwidth, t)
        return _log_normal(x - mean, variance)

    def velocity(self, t, x, z, bandwidth):
        return _transporting(x, *_rates(lambda t: self._moments(z, bandwidth, t), t, x.dtype))

    def draw_prior(self, key, shape, dtype):
        raise ValueError(
            "a Bridge begins at sources, not at noise: give samples of them, or of its data's "
            "pairs, as the noise"
        )

    def prior_log_density(self, x):
        raise ValueError("a Bridge has no prior of its own: give prior=Points(pairs)")

    def _moments(self, z, bandwidth, t):
        target, source = z.reshape(2, -1)
        bump = jnp.square(bandwidth) * (jnp.square(1 - t) + jnp.square(t))
        variance = jnp.square(self.sigma_min) + jnp.square(self.gamma) * t * (1 - t) + bump
        return (1 - t) * target + t * source, variance


def pairs(
    targets: Float[ArrayLike, "N *shape"], sources: Float[ArrayLike, "K *form"]
) -> Float[Array, "N 2 *shape"]:
    """The data of a `Bridge`: where each path ends, and where it began.

    Raises:
        ValueError: targets and sources of other numbers or shapes than each other, or NaN.
    """
    targets, sources = _checks.samples("targets", targets), _checks.samples("sources", sources)
    if targets.shape != sources.shape:
        raise ValueError(
            f"pairs need as many targets as sources, of one shape: got {targets.shape} and "
            f"{sources.shape}"
        )
    return jnp.stack([targets, sources], 1)


@register_dataclass
@dataclass(frozen=True)
class Torus(ConditionalFlow):
    """Angles, each noised by a Gaussian of standard deviation t that is wrapped round the circle.

    Data are angles in [-pi, pi]; paths begin uniform, and their ends may be any number of turns
    away (`wrapped`).

    References:
        De Bortoli et al. 2022, arXiv 2202.02763; Jing et al. 2022, arXiv 2206.01729.
    """

    t_max: Scalar = 5.0

    def __post_init__(self):
        positive_fields(self, "t_max")

    def check_points(self, points):
        if _checks.is_concrete(points) and float(np.max(np.abs(np.asarray(points)))) > 3.1416:
            raise ValueError(
                "a Torus's data are angles in [-pi, pi], got "
                f"{float(np.max(np.abs(np.asarray(points)))):.4g}: give radians, wrapped"
            )

    def log_kernel(self, t, x, z, bandwidth):
        _, logs, variance = self._turns(t, x, z, bandwidth)
        return jnp.sum(jax.nn.logsumexp(logs, -1) - 0.5 * (jnp.log(variance) + LOG_2PI))

    def velocity(self, t, x, z, bandwidth):
        offsets, logs, variance = self._turns(t, x, z, bandwidth)
        return t / variance * jnp.sum(jax.nn.softmax(logs, -1) * offsets, -1)

    def draw_prior(self, key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -math.pi, math.pi)

    def prior_log_density(self, x):
        return jnp.asarray(-x.size * LOG_2PI, x.dtype)

    def _turns(self, t, x, z, bandwidth):
        """The ways from z to x, and how likely each is."""
        turns = 2 * jnp.pi * jnp.arange(-IMAGES, IMAGES + 1)
        offsets = wrapped(x - z)[:, None] + turns.astype(x.dtype)
        variance = jnp.square(t) + jnp.square(bandwidth)
        return offsets, -0.5 * jnp.square(offsets) / variance, variance


def wrapped(angles: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The same angles in [-pi, pi]."""
    return angles - 2 * jnp.pi * jnp.round(angles / (2 * jnp.pi))


# ------------------------------------------------------------------ Gaussians given z


def _log_normal(offset: Array, variance: Any) -> Array:
    return -0.5 * jnp.sum(jnp.square(offset) / variance + jnp.log(variance) + LOG_2PI)


def _rates(moments: Callable, t: Scalar, dtype: Any) -> tuple[Any, Any]:
    """The moments at t, and how they change."""
    t = jnp.asarray(t, dtype)
    return jax.jvp(moments, (t,), (jnp.ones_like(t),))


def _transporting(x: Array, moments: Any, rates: Any) -> Array:
    (mean, variance), (drift, growth) = moments, rates
    return drift + 0.5 * growth / variance * (x - mean)


def _orthonormal(basis: Any) -> Array:
    basis = _checks.floating("DiagonalGaussian.basis", basis)
    if basis.ndim != 2 or basis.shape[0] != basis.shape[1]:
        raise ValueError(f"a basis must be a square matrix [d, d], got shape {basis.shape}")
    if _checks.is_concrete(basis):
        off = float(jnp.max(jnp.abs(product(basis.T, basis) - jnp.eye(len(basis)))))
        if not off < 1e-4:
            raise ValueError(
                f"the columns of a basis must be orthonormal; basis^T basis is off by {off:.2g}: "
                "take the q of numpy.linalg.qr(basis)"
            )
    return basis


def _cosines(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The orthonormal cosine basis of a row of pixels, a column each, and squared frequencies."""
    place, wave = np.arange(size), np.arange(size)
    basis = np.cos(np.pi * (place[:, None] + 0.5) * wave / size) * math.sqrt(2 / size)
    basis[:, 0] /= math.sqrt(2)
    return basis, (np.pi * wave / size) ** 2


def _blurred_signal(squares, blur, t):
    width = blur * jnp.square(_sine(t))
    return jnp.cos(0.5 * jnp.pi * t) * jnp.exp(-0.5 * squares * jnp.square(width))


def _sine(t):
    return jnp.sin(0.5 * jnp.pi * jnp.asarray(t))

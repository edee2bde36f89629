r"""Laws of clean data, and what noise makes of them.

A measure rho on data, noised to level tau in the canonical frame (1.3), is a mixture over its
components (points or Gaussians). Everything the library asks of it, for one sample x, comes from
the log-kernels of the components, `log K_j = log p(x | component j, tau)`, and their posterior
means `D_j`:

    log rho_tau(x) = logsumexp_j (log w_j + log K_j)
    D(x)           = sum_j softmax_j(log w_j + log K_j) D_j       the denoiser, E[x_0 | x]
    score          = (D(x) - x) / tau^2

Nothing is exponentiated before it is normalised. A data set of N points runs in blocks over N
(`bumps`), whose arithmetic is two matrix products, `Y x` and `p Y`: mapped over M samples, the
working memory is one (M, block) table and never an (M, N, d) array.

A `Law` may be known by its denoiser alone (another model's, `learned`); a `Measure` has its
log-density at every place; a `Mixture` has components, whose weights can be edited.
"""

import abc
import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, fields
from dataclasses import replace as replace_field
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from scoresens import _checks
from scoresens._products import Precision, contracted
from scoresens._pytrees import register_dataclass
from scoresens.datasets.streams import Stream
from scoresens.laws import _reading
from scoresens.laws.axes import principal_axes
from scoresens.laws.bumps import (
    Block,
    Bumped,
    Origin,
    Places,
    Softmax,
    block_of,
    bumps_of,
    finite_exp,
    over_blocks,
    safe_log,
    signed,
    weighed,
)
from scoresens.laws.kernels import (
    BREADTH,
    Kernel,
    Resolved,
    check_comparable,
    log_excess,
    resolved,
    smoothed_mean,
    yardstick,
)
from scoresens.laws.noises import Gaussian
from scoresens.laws.processes import Process, Scalar


class Posterior(NamedTuple):
    """What is known of x_0 after seeing x at noise level tau."""

    gain: Float[Array, ""]  # log rho_tau(x) + d/2 log(2 pi (tau^2 + c^2)), nats (`bumps`)
    mean: Float[Array, "*shape"]  # the denoiser D(x, tau)


class Sums(NamedTuple):
    """`sum_j w_j r_j` and `sum_j w_j r_j D_j` over components, `r_j = exp(log K_j - gain)`: linear
    in weights w_j >= 0, where all of them are 0 too."""

    gain: Float[Array, ""]  # of a component that has weight; of any, where none has
    mass: Float[Array, ""]
    mean: Float[Array, "*shape"]

    @classmethod
    def of(
        cls,
        masses: Float[Array, " n"],
        gains: Float[Array, " n"],
        means: Float[Array, "n *shape"],
    ) -> "Sums":
        """The sums of n components, `w_j` and `w_j D_j`, or of n such sums."""
        seen = (masses > 0) | ~jnp.any(masses > 0)
        gains = jnp.maximum(gains, jnp.finfo(gains.dtype).min)  # of what is nowhere near
        top = jax.lax.stop_gradient(jnp.max(jnp.where(seen, gains, -jnp.inf)))
        ratios = finite_exp(gains - top)
        return cls(top, jnp.sum(masses * ratios), contracted("j,j...->...", ratios, means))

    def counted_from(self, centre: Float[Array, "*shape"]) -> "Sums":
        """The same with `D_j - centre` in the place of `D_j`."""
        return self._replace(mean=self.mean - self.mass * centre)


class Law(abc.ABC):
    """A law of clean data that is known by its denoiser.

    Abstract: `shape`, `denoise`. All methods of laws are for one sample `x [*shape]` in the
    canonical frame and a scalar noise level `tau > 0`.
    """

    bandwidth: Scalar = 0.0  # of each point's bump; what a perturbation of this law takes over,
    kernel: Kernel = Gaussian()  # with the kernel of its noised bumps
    precision: Precision = None  # and the precision of products with points

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @abc.abstractmethod
    def denoise(self, tau: Scalar, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """E[x_0 | x]: the ideal denoiser of this law."""

    def bumped_like(self, base: Bumped) -> "Law":
        """Points take the base's kernel, for the noise of both is one, and its bandwidth and
        precision where they have none of their own; other laws are what they are.

        Raises:
            ValueError: a law that is no `Points`, beside a base whose kernels are no densities.
        """
        check_comparable(base.kernel)
        return self

    def under(self, process: Process) -> "Law":
        """The same law, as the noise of a process makes its noised kernels.

        Raises:
            ValueError: a law that is noised in closed form by Gaussian noise alone.
        """
        if not process.is_gaussian:
            raise ValueError(
                f"a {type(self).__name__} is noised in closed form by Gaussian noise alone, and "
                f"this process is a {process.named}: give Points"
            )
        return self


class Measure(Law):
    """A law whose noised log-density is known everywhere.

    Abstract: `shape`, `posterior`.
    """

    @abc.abstractmethod
    def posterior(self, tau: Scalar, x: Float[Array, "*shape"]) -> Posterior:
        """Log-density of the noised law at x, as a gain, and the posterior mean, in one pass."""

    def weighted_sums(
        self,
        tau: Scalar,
        x: Float[Array, "*shape"],
        reference: Scalar,
        coefficients: Float[Array, "K n"],
    ) -> tuple[Float[Array, " K"], Float[Array, "K *shape"]]:
        """Signed sums over components, `sum_j c_kj r_j` and `sum_j c_kj r_j D_j`, for K rows at
        once.

        `r_j = exp(log K_j - reference)`, both as gains; the coefficients may have any sign. A
        measure is its own and only component.
        """
        found = self.posterior(tau, x)
        mass = coefficients[:, 0] * jnp.exp(found.gain - reference)
        return mass, jnp.multiply.outer(mass, found.mean)

    def sums(self, tau: Scalar, x: Float[Array, "*shape"], weights: Float[Array, " n"]) -> Sums:
        """Sums over components with these weights, none of them negative, in the place of the
        law's own."""
        found = self.posterior(tau, x)
        return Sums(found.gain, weights[0], weights[0] * found.mean)

    def log_density(self, tau: Scalar, x: Float[Array, "*shape"]) -> Float[Array, ""]:
        """log rho_tau(x), in nats."""
        return self.posterior(tau, x).gain - yardstick(tau, x.size)

    def denoise(self, tau, x):
        return self.posterior(tau, x).mean

    def noised_log_density(
        self, process: Process, t: Scalar, x: Float[Array, "*shape"]
    ) -> Float[Array, ""]:
        """log rho_t(x) in a process's own frame, in nats."""
        hat, law = process.to_canonical(t, x), cast(Measure, self.under(process))
        return law.log_density(process.noise_level(t), hat) - x.size * process.log_alpha(t)


class Mixture(Measure):
    """A measure of components j = 1..n with weights.

    Abstract: `shape`, `posterior`, `weighted_sums`, `sums`, `normalized_weights`, `with_weights`.
    """

    @property
    @abc.abstractmethod
    def normalized_weights(self) -> Float[Array, " n"]:
        """Weights of the components, summing to 1."""

    @abc.abstractmethod
    def weighted_sums(self, tau, x, reference, coefficients) -> tuple[Array, Array]:
        """See `Measure.weighted_sums`."""

    @abc.abstractmethod
    def sums(self, tau, x, weights) -> Sums:
        """See `Measure.sums`."""

    @abc.abstractmethod
    def with_weights(self, weights: Float[Array, " n"]) -> "Mixture":
        """The same components with other weights."""


@register_dataclass
@dataclass(frozen=True, init=False)
class Points(Mixture):
    """A weighted data set: each point a Dirac mass, or a Gaussian bump of the given bandwidth.

    Args:
        points: `[N, *shape]`, floating.
        weights: `[N]`, non-negative, of any positive sum; None means equal weights.
        bandwidth: standard deviation h of each bump, in units of the data; 0 means Dirac masses.
        kernel: of the noised bumps.
        precision: of the products with the points, apart from a network's: any that JAX takes
            ("highest", "high", "default", or the name of a `jax.lax.DotAlgorithmPreset`, such as
            "TF32_TF32_F32" or "BF16_BF16_F32_X3"). None: full, or `jax.default_matmul_precision`
            where that is set.
        temperature: T of the kernel (6.6), > 0; above 1 it is less sharp than Bayes, as networks
            are.
        width: w of the kernel (6.6), > 0, in units of the data; above the bandwidth it is less
            sharp at small noise. None: the bandwidth.
        resolution: c of the kernel (6.7), >= 0; above 0 distances along the principal axes of the
            points count the less, the less the points vary along them.
        spectral_bias: b of (6.11), >= 0; above 0 a change is predicted as a short training learns
            it, the less along an axis, the less the points vary along it.

    Raises:
        ValueError: no points, integers, NaN, weights of another length or negative or all zero, or
            a precision that JAX has not. One that the device has not, as no CPU has
            "TF32_TF32_F32", JAX refuses when it compiles.

    Notes:
        One evaluation costs 4 N d floating-point operations a sample and reads the points once.
        What each precision does to attributions is in docs/performance.md. With a resolution, the
        axes are those of these points (`principal_axes`, seconds on the host), and the points are
        held twice. With it, a temperature or a width there are no noised densities: `log_density`
        refuses, and what compares densities does. `calibrate` finds width and resolution.
    """

    points: Float[Array | np.ndarray, "N *shape"]
    weights: Float[Array | np.ndarray, " N"] | None = None
    bandwidth: Scalar = 0.0
    kernel: Kernel = Gaussian()
    precision: Precision = field(default=None, metadata={"static": True})
    coordinates: Float[Array, "N r"] | None = field(default=None, init=False)  # along its axes

    def __init__(
        self,
        points: Float[ArrayLike, "N *shape"],
        weights: Float[ArrayLike, " N"] | None = None,
        bandwidth: Scalar = 0.0,
        kernel: Kernel = Gaussian(),
        precision: Precision = None,
        *,
        temperature: Scalar = 1.0,
        width: Scalar | None = None,
        resolution: Scalar = 0.0,
        spectral_bias: Scalar = 0.0,
    ):
        points = _checks.samples("points", points)
        if weights is not None:
            weights = _weights_of(len(points), weights)
        _checks.non_negative("bandwidth", bandwidth)
        _checks.precision("precision", precision)
        kernel = resolved(kernel, temperature, width, resolution, spectral_bias, points)
        self._set(points, weights, bandwidth, kernel, precision, _coordinates(kernel, points))

    def _set(self, *values: Any) -> None:
        for each, value in zip(fields(Points), values, strict=True):
            object.__setattr__(self, each.name, value)

    @classmethod
    def on_host(
        cls,
        points: Float[np.ndarray, "N *shape"] | Stream,
        weights: Float[np.ndarray, " N"] | None = None,
        bandwidth: Scalar = 0.0,
        kernel: Kernel = Gaussian(),
        precision: Precision = None,
        *,
        temperature: Scalar = 1.0,
        width: Scalar | None = None,
        resolution: Scalar = 0.0,
        spectral_bias: Scalar = 0.0,
        checked: bool = False,
    ) -> "Points":
        """The same of an array that stays where it is, in the host's memory or in files (a memory
        map, a `streams.Stream`): `attribute` reads it in blocks, twice. Other verbs want all of it
        on the device. Unless it was `checked` before, floats are read through for NaN.
        """
        if not isinstance(points, np.ndarray | Stream):
            raise ValueError(
                f"on_host takes a numpy array, a memory map or a Stream, got {type(points)}"
            )
        if not (checked or (isinstance(points, Stream) and points.bytes)):  # bytes are finite
            size = block_of(math.prod(points.shape[1:]))
            for start in range(0, len(points), size):
                _checks.samples("points", points[start : start + size])
        kernel = resolved(kernel, temperature, width, resolution, spectral_bias, points)
        here = cls(points[:1], None, bandwidth, kernel, precision)
        if weights is not None:
            weights = np.asarray(weights)
            weights = weights.astype(np.promote_types(weights.dtype, np.float32), copy=False)
            _checks.weights("weights", weights, (len(points),))
        here._set(points, weights, bandwidth, kernel, precision, None)
        return here

    def __len__(self) -> int:
        return self.points.shape[0]

    @property
    def originals(self) -> Scalar:
        """How many of the points are no copies that fill up a device (`shards`)."""
        return len(self)

    @property
    def shape(self):
        return self.kernel.sample_shape(self.points.shape[1:])

    @property
    def normalized_weights(self):
        if self.weights is None:
            return jnp.full(len(self), 1 / len(self), _checks.wide(self.points.dtype))
        return jnp.asarray(self.weights / self.weights.sum())

    def posterior(self, tau, x):
        softmax, origin, yard = self._softmax(tau, x, self.normalized_weights)
        mean = smoothed_mean(self.bandwidth, tau, x, softmax.mean(origin).reshape(x.shape))
        return Posterior(softmax.log_mass + yard, mean)

    def sums(self, tau, x, weights):
        softmax, origin, yard = self._softmax(tau, x, weights)
        mass, total = softmax.mass, softmax.total + softmax.mass * origin.centre
        mean = smoothed_mean(self.bandwidth, tau, mass * x, total.reshape(x.shape))
        return Sums(softmax.top + yard, mass, mean)

    def weighted_sums(self, tau, x, reference, coefficients):
        origin, places = self._seen_from(tau, x.reshape(-1))
        reference = reference - places.gain(self.kernel)

        def add(sums, block, bumps):
            logs = bumps.log_kernels(places) - reference
            terms = signed(block.columns(coefficients, seen=0.0), logs)
            return sums[0] + jnp.sum(terms, -1), sums[1] + bumps.summed(terms, places)

        rows = coefficients.shape[0]
        start = (jnp.zeros(rows, x.dtype), jnp.zeros((rows, x.size), x.dtype))
        mass, mean = self._over_blocks(add, start, origin)
        mean = (mean + jnp.multiply.outer(mass, origin.centre)).reshape(rows, *x.shape)
        return mass, smoothed_mean(self.bandwidth, tau, jnp.multiply.outer(mass, x), mean)

    def single_sums(
        self,
        tau: Scalar,
        x: Float[Array, "*shape"],
        reference: Scalar,
        coefficients: Float[Array, " N"],
    ) -> tuple[Float[Array, " N"], Float[Array, "N *shape"]]:
        """`c_k r_k` and `c_k r_k D_k` of each point alone: `weighted_sums` of a diagonal table,
        without that table."""
        origin, places = self._seen_from(tau, x.reshape(-1))
        reference = reference - places.gain(self.kernel)

        def add(found, block, bumps):
            logs = bumps.log_kernels(places) - reference
            mass = signed(block.rows(coefficients), logs)
            mean = mass[:, None] * bumps.means(places)
            return block.put(found[0], mass), block.put(found[1], mean)

        start = (jnp.zeros(len(self), x.dtype), jnp.zeros((len(self), x.size), x.dtype))
        mass, mean = self._over_blocks(add, start, origin)
        mean = mean.reshape(len(self), *x.shape)
        return mass, smoothed_mean(self.bandwidth, tau, jnp.multiply.outer(mass, x), mean)

    def bumped_like(self, base):
        bandwidth = bandwidth_or(self.bandwidth, base.bandwidth)
        precision = base.precision if self.precision is None else self.precision
        return self._but(precision=precision).with_kernel(base.kernel, bandwidth)

    def under(self, process):
        kernel, bandwidth = process.kernel_of(self.kernel, self.bandwidth, self.points)
        return self if kernel is self.kernel else self._but(kernel=kernel, bandwidth=bandwidth)

    def chosen(self, index: Int[Array | np.ndarray, " n"]) -> "Points":
        """The points named, of equal weights, with all else as it is."""
        images, kernel = _checks.floating("points", jnp.asarray(self.points[index])), self.kernel
        along = self.coordinates
        along = _coordinates(kernel, images) if along is None else along[index]
        chosen = object.__new__(Points)
        chosen._set(images, None, self.bandwidth, kernel, self.precision, along)
        return chosen

    def with_weights(self, weights):
        return self._but(weights=_weights_of(len(self), weights))

    def with_kernel(
        self, kernel: Kernel, bandwidth: Scalar, coordinates: Float[Array, "N r"] | None = None
    ) -> "Points":
        """The same points with another kernel and bandwidth; their coordinates, if they are not
        given, are taken here."""
        if coordinates is None:
            coordinates = _coordinates(kernel, self.points)
        return self._but(kernel=kernel, bandwidth=bandwidth, coordinates=coordinates)

    def with_spectral_bias(self, bias: Scalar) -> "Points":
        """The same points, for predictions of a training as short as this says (6.11); their axes
        are taken here if their kernel has none."""
        _checks.positive("bias", bias)
        kernel = self.kernel if isinstance(self.kernel, Resolved) else Resolved(self.kernel)
        axes = kernel.axes or principal_axes(self.points)
        kernel = replace_field(kernel, spectral_bias=bias, axes=axes)
        return self.with_kernel(kernel, self.bandwidth, self.coordinates)

    def sharp(self, bandwidth: Scalar | None = None) -> "Points":
        """The same without temperature, width, resolution and bias, if it has any: its noised
        densities are a law's. With this bandwidth then, if one is given."""
        if not isinstance(self.kernel, Resolved):
            return self
        return self.with_kernel(
            self.kernel.kernel, self.bandwidth if bandwidth is None else bandwidth
        )

    def block(self, block: Block, origin: Origin) -> Any:
        """Some of the points with their bumps."""
        rows = block.rows(jnp.asarray(self.points).reshape(len(self), -1))
        along = None if self.coordinates is None else block.rows(self.coordinates)
        return bumps_of(rows, origin, self.kernel, self.precision, along)

    def log_density(self, tau, x):
        if not self.kernel.is_density:
            raise ValueError(
                "points with a temperature, a width, a resolution or a spectral bias have no "
                "noised density: take Points without them"
            )
        return super().log_density(tau, x)

    def _but(self, **changes: Any) -> "Points":
        """The same, but for some fields, without looking at them again."""
        other = copy(self)
        for name, value in changes.items():
            object.__setattr__(other, name, value)
        return other

    def _softmax(
        self, tau: Scalar, x: Float[Array, "*shape"], weights: Float[Array, " N"]
    ) -> tuple[Softmax, Origin, Float[Array, ""]]:
        """The points' kernels with these weights, what they are measured from, and their gain."""
        flat = x.reshape(-1)
        origin, places = self._seen_from(tau, flat)

        def add(softmax, block, bumps):
            log_kernels = bumps.log_kernels(places)
            return softmax.add(log_kernels, block.columns(weights, seen=0.0), bumps, places)

        softmax = self._over_blocks(add, Softmax.empty(flat), origin)
        return softmax, origin, places.gain(self.kernel)

    def _seen_from(self, tau: Scalar, x: Float[Array, " d"]) -> tuple[Origin, Places]:
        """What the points are measured from, and one place as they see it."""
        origin = self.origin()
        return origin, origin.places(self.bandwidth, self.kernel, tau, x)

    def origin(self, dtype: Any = None) -> Origin:
        """What the points are measured from."""
        return Origin.of(self.points, self.weights, self.kernel, dtype)

    def _over_blocks(
        self, add: Callable[[Any, Block, Any], Any], carry: Any, origin: Origin
    ) -> Any:
        """`carry = add(carry, block, bumps)` over all points."""

        def step(carry, block):
            return add(carry, block, self.block(block, origin))

        return over_blocks(step, carry, len(self), block_of(math.prod(self.points.shape[1:])))


def _weights_of(count: int, weights: Any) -> Array:
    """The weights of so many points, rows of them too, or an error that names them."""
    weights = _checks.floating("weights", weights)
    _checks.weights("weights", weights, (*weights.shape[:-1], count))
    return weights


def _coordinates(kernel: Kernel, points: Any) -> Array | None:
    """Of points `[N, *shape]` along the axes of their kernel, if it has any."""
    if kernel.axes is None:
        return None
    return kernel.coordinates(jnp.asarray(points).reshape(len(points), -1))


class GaussianMixture(Mixture):
    """A mixture of Gaussians, noised in closed form.

    Args:
        weights: `[n]`, non-negative, of any positive sum.
        means: `[n, *shape]`.
        covariances: `[n, d, d]` full, `[n, d]` diagonal, or `[n]` isotropic variances, d the
            flattened size.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, negative weights or variances.

    Notes:
        Full covariances are diagonalised once, here; an evaluation then costs O(n d^2), or O(n d)
        for the others.
    """

    def __init__(self, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike):
        means = _checks.samples("means", means)
        weights = _checks.floating("weights", weights)
        covariances = _checks.floating("covariances", covariances)
        n, d = means.shape[0], math.prod(means.shape[1:])
        _checks.weights("weights", weights, (n,))
        _checks.finite("covariances", covariances)
        if covariances.shape not in {(n,), (n, d), (n, d, d)}:
            raise ValueError(
                f"covariances must have shape ({n},), ({n}, {d}) or ({n}, {d}, {d}) for {n} "
                f"components of {d} dimensions, got {tuple(covariances.shape)}"
            )
        self.weights, self.means, self.axes = weights, means, None
        if covariances.ndim == 3:
            variances, self.axes = jnp.linalg.eigh(covariances)
        else:
            variances = jnp.broadcast_to(covariances.reshape(n, -1), (n, d))
        if _checks.is_concrete(variances) and bool(jnp.any(variances < -1e-6)):
            raise ValueError(f"covariances have a negative variance, {jnp.min(variances)}")
        self.variances = jnp.maximum(variances, 0)

    @property
    def shape(self):
        return self.means.shape[1:]

    @property
    def normalized_weights(self):
        return self.weights / jnp.sum(self.weights)

    def posterior(self, tau, x):
        gains, means = self._components(tau, x)
        weights = self.normalized_weights
        top = jax.lax.stop_gradient(jnp.max(gains + safe_log(weights)))
        terms = weighed(weights, gains - top)
        mass = jnp.sum(terms)
        return Posterior(top + jnp.log(mass), contracted("j,j...->...", terms / mass, means))

    def weighted_sums(self, tau, x, reference, coefficients):
        gains, means = self._components(tau, x)
        terms = coefficients * jnp.exp(gains - reference)
        return jnp.sum(terms, -1), contracted("kj,j...->k...", terms, means)

    def sums(self, tau, x, weights):
        gains, means = self._components(tau, x)
        return Sums.of(weights, gains, contracted("j,j...->j...", weights, means))

    def with_weights(self, weights):
        return self._with(weights, self.means, self.variances, self.axes)

    def _components(self, tau, x):
        """log N(x; m_j, S_j + tau^2 I) `[n]`, as gains, and E[x_0 | x, j] `[n, *shape]`."""
        offset = (x - self.means).reshape(len(self.means), -1)
        if self.axes is not None:
            offset = contracted("nij,ni->nj", self.axes, offset)
        total = self.variances + jnp.square(tau)
        constants = log_excess(total, self.variances - BREADTH**2)
        gains = -0.5 * jnp.sum(jnp.square(offset) / total + constants, -1)
        pull = offset * self.variances / total
        if self.axes is not None:
            pull = contracted("nij,nj->ni", self.axes, pull)
        return gains, self.means + pull.reshape(self.means.shape)

    @classmethod
    def _with(cls, weights, means, variances, axes):
        """Built from what is already diagonal, or from a tree transformation's leaves."""
        mixture = object.__new__(cls)
        mixture.weights, mixture.means = weights, means
        mixture.variances, mixture.axes = variances, axes
        return mixture


jax.tree_util.register_pytree_node(
    GaussianMixture,
    lambda m: ((m.weights, m.means, m.variances, m.axes), None),
    lambda _, leaves: GaussianMixture._with(*leaves),
)


def default_bandwidth(
    points: Float[Array | np.ndarray, "N *shape"] | Stream, *, subset: int = 2048
) -> float:
    """The bandwidth to give a data set: half its median nearest-neighbour distance.

    Args:
        points: `[N, *shape]`, N >= 2; a memory map or a `Stream` is read in blocks.
        subset: the median is over at most this many evenly spaced points; their neighbours are
            looked for among all N.

    Returns:
        h in units of the data.

    Raises:
        ValueError: fewer than two points, or points that are all the same.

    Notes:
        Exact copies of a point are passed over: they say nothing about the spacing. The factor was
        read off fine-tuning experiments on digits, where it lies on a plateau
        (docs/resolution.md). Cost: `subset` N d multiplications in float64, of blocks of 32 MB, and
        two readings of the points, more where the subset itself is more than a block.
    """
    if not isinstance(points, np.ndarray | Stream):
        points = _checks.samples("points", points)
    count, size = len(points), math.prod(points.shape[1:])
    if count < 2:
        raise ValueError(f"default_bandwidth needs at least 2 points, got {count}")
    chosen = _reading.evenly(count, subset)
    groups = np.array_split(chosen, math.ceil(len(chosen) * size / _reading.ROOM))
    squares = [_nearest_squares(points, group) for group in groups]
    found = 0.5 * float(np.median(np.sqrt(np.concatenate(squares))))
    if not math.isfinite(found):
        raise ValueError(
            f"all {count} points are copies of one, which have no spacing: give them a bandwidth, "
            "or look whether the data are what they should be"
        )
    return found


def _nearest_squares(points, chosen):
    """The squared distance of each of some points to its nearest neighbour that is no copy."""
    own = _reading.chosen(points, chosen)
    centre = own.mean(0)
    own -= centre
    norms, nearest = np.sum(own**2, 1), np.full(len(own), np.inf)
    for _, block in _reading.read(points, 2 * len(own)):
        block -= centre
        sums = norms[:, None] + np.einsum("nd,nd->n", block, block)
        squares = sums - 2 * own @ block.T
        squares[squares <= 1e-9 * sums] = np.inf  # itself and its copies
        nearest = np.minimum(nearest, squares.min(1))
    return nearest


def spacing_of(data: Points) -> float:
    """The bandwidth to smooth a model's own law by beside these points, which is also what moves
    are measured in: theirs, or the default one where their kernel has a width of its own."""
    known = data.kernel.is_density
    return float(data.bandwidth) if known else default_bandwidth(data.points)


def bandwidth_or(own: Scalar, default: Scalar) -> Scalar:
    """A law's own bandwidth where it has one, else the default."""
    return jnp.where(jnp.asarray(own) > 0, own, default)

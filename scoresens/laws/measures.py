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
from dataclasses import dataclass
from dataclasses import replace as replace_field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from scoresens import _checks
from scoresens._products import contracted, product
from scoresens._pytrees import register_dataclass
from scoresens.datasets.streams import Stream
from scoresens.laws.bumps import (
    BLOCK,
    BREADTH,
    Block,
    Bumped,
    Bumps,
    Gaussian,
    Kernel,
    Origin,
    Places,
    Softmax,
    finite_exp,
    log_excess,
    most_of,
    over_blocks,
    safe_log,
    smoothed_mean,
    weighed,
    yardstick,
)
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

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @abc.abstractmethod
    def denoise(self, tau: Scalar, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """E[x_0 | x]: the ideal denoiser of this law."""

    def bumped_like(self, base: Bumped) -> "Law":
        """Points take the base's kernel, for the noise of both is one, and its bandwidth where they
        have none of their own; other laws are what they are."""
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
        hat = process.to_canonical(t, x)
        return self.log_density(process.noise_level(t), hat) - x.size * process.log_alpha(t)


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
@dataclass(frozen=True)
class Points(Mixture):
    """A weighted data set: each point a Dirac mass, or a Gaussian bump of the given bandwidth.

    Args:
        points: `[N, *shape]`, floating.
        weights: `[N]`, non-negative, of any positive sum; None means equal weights.
        bandwidth: standard deviation h of each bump, in units of the data; 0 means Dirac masses.
        kernel: of the noised bumps.

    Raises:
        ValueError: no points, integers, NaN, weights of another length or negative or all zero.

    Notes:
        One evaluation costs 4 N d floating-point operations a sample and reads the points once.
    """

    points: Float[Array | np.ndarray, "N *shape"]
    weights: Float[Array | np.ndarray, " N"] | None = None
    bandwidth: Scalar = 0.0
    kernel: Kernel = Gaussian()

    def __post_init__(self):
        object.__setattr__(self, "points", _checks.samples("points", self.points))
        if self.weights is not None:
            weights = _checks.floating("weights", self.weights)
            _checks.weights("weights", weights, (*weights.shape[:-1], len(self.points)))
            object.__setattr__(self, "weights", weights)
        _checks.non_negative("bandwidth", self.bandwidth)

    @classmethod
    def on_host(
        cls,
        points: Float[np.ndarray, "N *shape"] | Stream,
        weights: Float[np.ndarray, " N"] | None = None,
        bandwidth: Scalar = 0.0,
        kernel: Kernel = Gaussian(),
    ) -> "Points":
        """The same of an array that stays where it is, in the host's memory or in files (a memory
        map, a `streams.Stream`): `attribute` reads it in blocks, twice. Other verbs want all of it
        on the device.
        """
        if not isinstance(points, np.ndarray | Stream):
            raise ValueError(
                f"on_host takes a numpy array, a memory map or a Stream, got {type(points)}"
            )
        if not (isinstance(points, Stream) and points.bytes):  # bytes are finite
            for start in range(0, len(points), BLOCK):
                _checks.samples("points", points[start : start + BLOCK])
        checked = cls(points[:1], None, bandwidth, kernel)
        if weights is not None:
            weights = np.asarray(weights)
            weights = weights.astype(np.promote_types(weights.dtype, np.float32), copy=False)
            _checks.weights("weights", weights, (len(points),))
        object.__setattr__(checked, "points", points)
        object.__setattr__(checked, "weights", weights)
        return checked

    def __len__(self) -> int:
        return self.points.shape[0]

    @property
    def originals(self) -> Scalar:
        """How many of the points are no copies that fill up a device (`shards`)."""
        return len(self)

    @property
    def shape(self):
        return self.points.shape[1:]

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
            share = block.columns(coefficients, seen=0.0)
            beyond = (logs > most_of(logs)) & (share != 0)  # 0 times what is beyond is 0
            endless = jnp.where(share > 0, jnp.inf, -jnp.inf)
            terms = jnp.where(beyond, endless, share * finite_exp(logs))
            return sums[0] + jnp.sum(terms, -1), sums[1] + product(terms, bumps.offsets)

        rows = coefficients.shape[0]
        start = (jnp.zeros(rows, x.dtype), jnp.zeros((rows, x.size), x.dtype))
        mass, mean = self._over_blocks(add, start, origin)
        mean = (mean + jnp.multiply.outer(mass, origin.centre)).reshape(rows, *x.shape)
        return mass, smoothed_mean(self.bandwidth, tau, jnp.multiply.outer(mass, x), mean)

    def bumped_like(self, base):
        bandwidth = bandwidth_or(self.bandwidth, base.bandwidth)
        return replace_field(self, bandwidth=bandwidth, kernel=base.kernel)

    def with_weights(self, weights):
        return replace_field(self, weights=weights)

    def _softmax(
        self, tau: Scalar, x: Float[Array, "*shape"], weights: Float[Array, " N"]
    ) -> tuple[Softmax, Origin, Float[Array, ""]]:
        """The points' kernels with these weights, what they are measured from, and their gain."""
        flat = x.reshape(-1)
        origin, places = self._seen_from(tau, flat)

        def add(softmax, block, bumps):
            log_kernels = bumps.log_kernels(places)
            return softmax.add(log_kernels, block.columns(weights, seen=0.0), bumps)

        softmax = self._over_blocks(add, Softmax.empty(flat), origin)
        return softmax, origin, places.gain(self.kernel)

    def _seen_from(self, tau: Scalar, x: Float[Array, " d"]) -> tuple[Origin, Places]:
        """What the points are measured from, and one place as they see it."""
        origin = Origin.of(self.points, self.weights)
        return origin, origin.places(self.bandwidth, tau, x)

    def _over_blocks(
        self, add: Callable[[Any, Block, Bumps], Any], carry: Any, origin: Origin
    ) -> Any:
        """`carry = add(carry, block, bumps)` over all points."""
        flat = self.points.reshape(len(self), -1)

        def step(carry, block):
            return add(carry, block, Bumps.of(block.rows(flat), origin, self.kernel))

        return over_blocks(step, carry, len(self))


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
    points: Float[Array | np.ndarray, "N *shape"], *, subset: int = 2048
) -> float:
    """The bandwidth to give a data set: half its median nearest-neighbour distance.

    Args:
        points: `[N, *shape]`, N >= 2.
        subset: the median is over at most this many evenly spaced points; their neighbours are
            looked for among all N.

    Returns:
        h in units of the data.

    Notes:
        Exact copies of a point are passed over: they say nothing about the spacing. The factor was
        read off fine-tuning experiments on digits, where it lies on a plateau
        (docs/validation.md). Cost: `subset` N d multiplications.
    """
    points = _checks.samples("points", points)
    if len(points) < 2:
        raise ValueError("default_bandwidth needs at least 2 points, got 1")
    flat = np.asarray(points, np.float64).reshape(len(points), -1)
    flat = flat - flat.mean(0)
    norms = np.sum(flat**2, 1)
    chosen = np.unique(np.linspace(0, len(flat) - 1, min(subset, len(flat))).astype(int))
    distances = []
    for block in np.array_split(chosen, math.ceil(len(chosen) / 256)):
        squares = norms[block, None] + norms - 2 * flat[block] @ flat.T
        squares[squares <= 1e-9 * (norms[block, None] + norms)] = np.inf  # itself and its copies
        distances.append(np.sqrt(squares.min(1)))
    return 0.5 * float(np.median(np.concatenate(distances)))


def bandwidth_or(own: Scalar, default: Scalar) -> Scalar:
    """A law's own bandwidth where it has one, else the default."""
    return jnp.where(jnp.asarray(own) > 0, own, default)

r"""Laws of clean data, and what noise makes of them.

A measure rho on data, noised to level tau in the canonical frame (1.3), is a mixture over its
components (points or Gaussians). Everything the library asks of it, for one sample x, comes from
the log-kernels of the components, `log K_j = log p(x | component j, tau)`, and their posterior
means `D_j`:

    log rho_tau(x) = logsumexp_j (log w_j + log K_j)
    D(x)           = sum_j softmax_j(log w_j + log K_j) D_j       the denoiser, E[x_0 | x]
    score          = (D(x) - x) / tau^2

Nothing is exponentiated before it is normalised. A data set of N points runs in blocks over N,
whose arithmetic is two matrix products, `Y x` and `p Y`: mapped over M samples, the working memory
is one (M, block) table and never an (M, N, d) array.

A point may carry a **bandwidth** h: the Gaussian bump N(y, h^2 I) in its place. For it,
`K_j = N(x; y_j, (tau^2 + h^2) I)` and `D_j = (h^2 x + tau^2 y_j) / (h^2 + tau^2)`.

In float32 `|x - y|^2` by its expansion loses about 1e-7 |x||y| / tau^2 in log K. Data are therefore
centred, and at small tau the distances to the nearest few points of each block are taken again as
exact differences: only those matter there, and at large tau the loss does not.
"""

import abc
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from scoresens import _checks
from scoresens._products import contracted, inner, product
from scoresens._pytrees import register_dataclass
from scoresens.datasets.streams import Stream
from scoresens.laws.processes import Process, Scalar

BLOCK = 4096  # points in one block: the (M, BLOCK) table is the working memory
NEAREST = 8  # exact distances in each block
LOG_2PI = math.log(2 * math.pi)


class Posterior(NamedTuple):
    """What is known of x_0 after seeing x at noise level tau."""

    log_density: Float[Array, ""]  # log rho_tau(x), nats
    mean: Float[Array, "*shape"]  # the denoiser D(x, tau)


class Measure(abc.ABC):
    """A law of clean data with components j = 1..n, noised in the canonical frame.

    Abstract: `shape`, `normalized_weights`, `posterior`, `weighted_sums`, `with_weights`.
    All are for one sample `x [*shape]` and a scalar noise level `tau > 0`.
    """

    bandwidth: Scalar = 0.0  # of each point's bump; what a perturbation of this law takes over

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @property
    @abc.abstractmethod
    def normalized_weights(self) -> Float[Array, " n"]:
        """Weights of the components, summing to 1."""

    @abc.abstractmethod
    def posterior(self, tau: Scalar, x: Float[Array, "*shape"]) -> Posterior:
        """Log-density of the noised law at x and the posterior mean, in one pass."""

    @abc.abstractmethod
    def weighted_sums(
        self,
        tau: Scalar,
        x: Float[Array, "*shape"],
        log_reference: Scalar,
        coefficients: Float[Array, "K n"],
    ) -> tuple[Float[Array, " K"], Float[Array, "K *shape"]]:
        """Signed sums over components, `sum_j c_kj r_j` and `sum_j c_kj r_j D_j`, for K rows at
        once.

        `r_j = exp(log K_j - log_reference)`; the coefficients may have any sign.
        """

    def with_default_bandwidth(self, bandwidth: Scalar) -> "Measure":
        """Points without a bandwidth of their own take this one; other laws are what they are."""
        return self

    @abc.abstractmethod
    def with_weights(self, weights: Float[Array, " n"]) -> "Measure":
        """The same components with other weights."""

    def log_density(self, tau: Scalar, x: Float[Array, "*shape"]) -> Float[Array, ""]:
        """log rho_tau(x), in nats."""
        return self.posterior(tau, x).log_density

    def denoise(self, tau: Scalar, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """E[x_0 | x]: the ideal denoiser of this law."""
        return self.posterior(tau, x).mean

    def noised_log_density(
        self, process: Process, t: Scalar, x: Float[Array, "*shape"]
    ) -> Float[Array, ""]:
        """log rho_t(x) in a process's own frame, in nats."""
        hat = process.to_canonical(t, x)
        return self.log_density(process.noise_level(t), hat) - x.size * process.log_alpha(t)


@register_dataclass
@dataclass(frozen=True)
class Points(Measure):
    """A weighted data set: each point a Dirac mass, or a Gaussian bump of the given bandwidth.

    Args:
        points: `[N, *shape]`, floating.
        weights: `[N]`, non-negative, of any positive sum; None means equal weights.
        bandwidth: standard deviation h of each bump, in units of the data; 0 means Dirac masses.

    Raises:
        ValueError: no points, integers, NaN, weights of another length or negative or all zero.

    Notes:
        One evaluation costs 4 N d floating-point operations a sample and reads the points once.
    """

    points: Float[Array | np.ndarray, "N *shape"]
    weights: Float[Array | np.ndarray, " N"] | None = None
    bandwidth: Scalar = 0.0

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
        checked = cls(points[:1], None, bandwidth)
        if weights is not None:
            weights = np.asarray(weights)
            _checks.weights("weights", weights, (len(points),))
        object.__setattr__(checked, "points", points)
        object.__setattr__(checked, "weights", weights)
        return checked

    def __len__(self) -> int:
        return self.points.shape[0]

    @property
    def shape(self):
        return self.points.shape[1:]

    @property
    def normalized_weights(self):
        if self.weights is None:
            dtype = jax.dtypes.canonicalize_dtype(self.points.dtype)
            return jnp.full(len(self), 1 / len(self), dtype)
        return jnp.asarray(self.weights / self.weights.sum())

    def posterior(self, tau, x):
        log_weights = _safe_log(self.normalized_weights)

        def add_block(carry, block):
            top, mass, mean = carry
            flat, logits = self._log_kernels(tau, x, block)
            logits = logits + block.read(log_weights, outside=-jnp.inf)
            new_top = jnp.maximum(top, jnp.max(logits))
            kept, terms = jnp.exp(top - new_top), jnp.exp(logits - new_top)
            return new_top, kept * mass + jnp.sum(terms), kept * mean + product(terms, flat)

        start = (jnp.finfo(x.dtype).min, 0.0, jnp.zeros(x.size))
        start = jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), start)
        top, mass, mean = _over_blocks(add_block, start, len(self))
        return Posterior(top + jnp.log(mass), self._shrink(tau, x, mean / mass))

    def weighted_sums(self, tau, x, log_reference, coefficients):
        def add_block(carry, block):
            mass, mean = carry
            flat, logits = self._log_kernels(tau, x, block)
            terms = block.read(coefficients) * jnp.exp(logits - log_reference)
            return mass + jnp.sum(terms, -1), mean + product(terms, flat)

        rows = coefficients.shape[0]
        start = (jnp.zeros(rows, x.dtype), jnp.zeros((rows, x.size), x.dtype))
        mass, mean = _over_blocks(add_block, start, len(self))
        shrink = jax.vmap(self._shrink, in_axes=(None, None, 0, 0))
        return mass, shrink(tau, x, mean, mass)

    def with_default_bandwidth(self, bandwidth):
        own = jnp.where(jnp.asarray(self.bandwidth) > 0, self.bandwidth, bandwidth)
        return Points(self.points, self.weights, own)

    def with_weights(self, weights):
        return Points(self.points, weights, self.bandwidth)

    def _shrink(self, tau, x, mean, mass: Scalar = 1.0):
        """(h^2 mass x + tau^2 mean) / (h^2 + tau^2), the bumps' share of the posterior mean."""
        own, noise = jnp.square(self.bandwidth), jnp.square(tau)
        return (own * mass * x + noise * mean.reshape(x.shape)) / (own + noise)

    def _log_kernels(self, tau, x, block):
        """The block's points `[B, d]` and log N(x; y_j, (tau^2 + h^2) I) for each, `[B]`."""
        flat = block.read_rows(self.points.reshape(len(self), -1))
        x = x.reshape(-1)
        centre = jnp.mean(self.points, 0).reshape(-1)
        along = product(flat, x - centre)
        norms = jnp.sum(jnp.square(flat - centre), -1)
        squares = norms + jnp.sum(jnp.square(x - centre))
        squares = squares - 2 * (along - inner(centre, x - centre))
        spread = jnp.square(tau) + jnp.square(self.bandwidth)

        def exact_where_near(squares):
            nearest = jax.lax.top_k(-squares, min(NEAREST, flat.shape[0]))[1]
            return squares.at[nearest].set(jnp.sum(jnp.square(flat[nearest] - x), -1))

        harmless = spread > jnp.max(norms) / 100  # the expansion loses 100 units of rounding
        squares = jax.lax.cond(harmless, lambda squares: squares, exact_where_near, squares)
        return flat, -0.5 * squares / spread - 0.5 * x.size * (jnp.log(spread) + LOG_2PI)


class GaussianMixture(Measure):
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
        log_kernels, means = self._components(tau, x)
        logits = log_kernels + _safe_log(self.normalized_weights)
        mean = contracted("j,j...->...", jax.nn.softmax(logits), means)
        return Posterior(jax.nn.logsumexp(logits), mean)

    def weighted_sums(self, tau, x, log_reference, coefficients):
        log_kernels, means = self._components(tau, x)
        terms = coefficients * jnp.exp(log_kernels - log_reference)
        return jnp.sum(terms, -1), contracted("kj,j...->k...", terms, means)

    def with_weights(self, weights):
        return self._with(weights, self.means, self.variances, self.axes)

    def _components(self, tau, x):
        """log N(x; m_j, S_j + tau^2 I), `[n]`, and E[x_0 | x, j], `[n, *shape]`."""
        offset = (x - self.means).reshape(len(self.means), -1)
        if self.axes is not None:
            offset = contracted("nij,ni->nj", self.axes, offset)
        total = self.variances + jnp.square(tau)
        log_kernels = -0.5 * jnp.sum(jnp.square(offset) / total + jnp.log(total) + LOG_2PI, -1)
        pull = offset * self.variances / total
        if self.axes is not None:
            pull = contracted("nij,nj->ni", self.axes, pull)
        return log_kernels, self.means + pull.reshape(self.means.shape)

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


def check_base(base: Measure) -> None:
    """Refuse a base that is no measure, such as bare images."""
    if not isinstance(base, Measure):
        raise ValueError(f"base must be a measure, such as Points(images), got {type(base)}")


class _Block(NamedTuple):
    """B consecutive points; the last block begins early and passes over what was seen before."""

    start: Array | int
    size: int
    fresh: Array | None  # [B] mask, None where all are new

    def read_rows(self, table):
        return jax.lax.dynamic_slice_in_dim(table, self.start, self.size, 0)

    def read(self, table, outside=0.0):
        part = jax.lax.dynamic_slice_in_dim(table, self.start, self.size, -1)
        return part if self.fresh is None else jnp.where(self.fresh, part, outside)


def _over_blocks(add_block, start, total):
    """Fold `add_block(carry, block)` over blocks of at most BLOCK components."""
    if total <= BLOCK:
        return add_block(start, _Block(0, total, None))

    def step(carry, first):
        begin = jnp.minimum(first, total - BLOCK)
        fresh = begin + jnp.arange(BLOCK) >= first
        return add_block(carry, _Block(begin, BLOCK, fresh)), None

    return jax.lax.scan(step, start, jnp.arange(0, total, BLOCK))[0]


def _safe_log(weights):
    """log w with -inf at 0 and a gradient that is 0 there."""
    return jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1.0)), -jnp.inf)

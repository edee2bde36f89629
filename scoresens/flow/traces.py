r"""The trace of a Jacobian from its products with vectors.

`div v = tr J_v` is all that the log-density along a path asks of the network (3.1). An estimator is
a noun with two verbs, `draw` and `apply`:

    probes = drawn(estimator, key, x)                      once a path
    trace, images = estimator.apply(push, probes, riders)  at every step

`push` maps a stack of tangents `[k, *shape]` to their images under the Jacobian, in one linear
pass. `riders` are further tangents that go through the same pass, so that the sensitivity of a
sample costs no second one. Probes are drawn once a path: an adaptive solver rejects without end
when the field that it integrates is redrawn at each evaluation.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scoresens._products import inner, product
from scoresens._pytrees import register_dataclass

PROBES = 0x70726F62  # the stream of a key that probes are drawn from

Push = Callable[[Float[Array, "k *shape"]], Float[Array, "k *shape"]]


class Estimated(NamedTuple):
    """A trace with its standard error."""

    value: Float[Array, ""]
    error: Float[Array, ""]


class TraceEstimator(abc.ABC):
    """Estimates tr J of one sample's Jacobian. Abstract: `draw` and `apply`."""

    needs_key = True
    takes_trace = True

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, x: Float[Array, "*shape"]) -> Any:
        """The randomness of one path, for a sample shaped like x."""

    @abc.abstractmethod
    def apply(
        self, push: Push, probes: Any, riders: Float[Array, "K *shape"]
    ) -> tuple[Float[Array, ""], Float[Array, "K *shape"]]:
        """The trace, and the images of the riders `[K, *shape]` (K may be 0)."""

    def estimate(
        self, push: Push, probes: Any, riders: Float[Array, "K *shape"]
    ) -> tuple[Estimated, Float[Array, "K *shape"]]:
        """The same with the trace's standard error, 0 of an estimator that does not know it."""
        trace, images = self.apply(push, probes, riders)
        return Estimated(trace, jnp.zeros_like(trace)), images


def drawn(
    estimator: TraceEstimator | None, key: PRNGKeyArray | None, x: Float[Array, "*shape"]
) -> Any:
    """The probes of one path, None without an estimator.

    They come from a stream of the key's that nothing else is drawn from: of one key, a Rademacher
    draw is the sign of a normal one, and probes would be minus the sign of the noise.
    """
    if estimator is None:
        return None
    own = None if key is None else jax.random.fold_in(key, PROBES)
    return estimator.draw(cast(Array, own), x)


@register_dataclass
@dataclass(frozen=True)
class Exact(TraceEstimator):
    """The trace itself, from d Jacobian-vector products in blocks of `block_size`.

    Cost: d products a step. Blocks keep the working memory at `block_size` tangents; 32 measured
    faster than all d at once on a CPU.
    """

    block_size: int = field(default=32, metadata={"static": True})
    needs_key = False

    def __post_init__(self):
        _whole("Exact.block_size", self.block_size)

    def draw(self, key, x):
        return None

    def apply(self, push, probes, riders):
        shape = riders.shape[1:]
        size = math.prod(shape)

        def diagonal(i):
            unit = jnp.zeros(size, riders.dtype).at[i].set(1.0).reshape(1, *shape)
            return push(unit).reshape(-1)[i]

        diagonals = jax.lax.map(diagonal, jnp.arange(size), batch_size=min(self.block_size, size))
        return jnp.sum(diagonals), push(riders) if riders.shape[0] else riders


@register_dataclass
@dataclass(frozen=True)
class Hutchinson(TraceEstimator):
    """The mean of v.Jv over `probes` random v: unbiased, one product a probe (Hutchinson 1989).

    With S = (J + J^T)/2 the variance is 2 (|S|_F^2 - |diag S|^2) / probes for Rademacher probes
    (the default) and 2 |S|_F^2 / probes for normal ones (`gaussian=True`). Probes and riders share
    one batched linear pass. The standard error takes |Jv|^2 for |S|_F^2 and an even diagonal, which
    is too much where J is diagonal in these very coordinates.
    """

    probes: int = field(default=1, metadata={"static": True})
    gaussian: bool = field(default=False, metadata={"static": True})

    def __post_init__(self):
        _whole("Hutchinson.probes", self.probes)

    def draw(self, key, x):
        sample = jax.random.normal if self.gaussian else jax.random.rademacher
        return sample(key, (self.probes, *x.shape), x.dtype)

    def apply(self, push, probes, riders):
        found, images = self.estimate(push, probes, riders)
        return found.value, images

    def estimate(self, push, probes, riders):
        images = push(jnp.concatenate([probes, riders]))
        own, size = images[: self.probes], probes[0].size
        trace = inner(probes, own) / self.probes
        diagonal = 0.0 if self.gaussian else jnp.square(trace) / size
        variance = 2 * jnp.maximum(inner(own, own) / self.probes - diagonal, 0) / self.probes
        error = jnp.sqrt(jnp.maximum(variance, jnp.finfo(variance.dtype).tiny))
        return Estimated(trace, error), images[self.probes :]


@register_dataclass
@dataclass(frozen=True)
class HutchPlusPlus(TraceEstimator):
    """Exact on a sketch of J's range, Hutchinson's on the rest: `products` products, a third each.

    With Q an orthonormal basis of J S, S `products // 3` random vectors, and G as many probes made
    orthogonal to Q: `tr(Q^T J Q) + tr(G^T J G) / (products // 3)`. Unbiased; its variance falls as
    1 / products^2 where J's spectrum decays, and is above Hutchinson's where it is flat.

    Notes:
        Two linear passes a step. Written out here with Gram-Schmidt: the QR that traceax and
        matfree call for each sample stops for good, now and then, when XLA's CPU compiler batches
        it (measured with jax 0.10).

    References:
        Meyer, Musco, Musco, Woodruff 2021, arXiv 2010.09649, algorithm 1.
    """

    products: int = field(default=12, metadata={"static": True})

    def __post_init__(self):
        if not (isinstance(self.products, int) and self.products >= 3):
            raise ValueError(
                f"HutchPlusPlus.products must be a whole number >= 3, got {self.products}"
            )

    def draw(self, key, x):
        count = min(self.products // 3, x.size)
        return jax.random.rademacher(key, (2, count, *x.shape), x.dtype)

    def apply(self, push, probes, riders):
        sketch, rest = probes
        count = len(sketch)
        images = push(jnp.concatenate([sketch, riders]))
        basis = _orthonormal(images[:count].reshape(count, -1))
        flat = rest.reshape(count, -1)
        flat = flat - product(product(flat, basis.T), basis)
        both = jnp.concatenate([basis, flat])
        products = jnp.sum(both * push(both.reshape(-1, *sketch.shape[1:])).reshape(both.shape), 1)
        return jnp.sum(products[:count]) + jnp.mean(products[count:]), images[count:]


def _orthonormal(rows: Float[Array, "k d"]) -> Float[Array, "k d"]:
    """Gram-Schmidt, each row twice; a row within the span of those before it becomes 0."""
    basis = jnp.zeros_like(rows)
    for i, row in enumerate(rows):
        left = row - product(product(basis, row), basis)
        left = left - product(product(basis, left), basis)
        size, whole = jnp.linalg.norm(left), jnp.linalg.norm(row)
        independent = size > 1e2 * jnp.finfo(rows.dtype).eps * whole
        basis = basis.at[i].set(jnp.where(independent, left / jnp.where(independent, size, 1), 0))
    return basis


def _whole(name, value):
    if not (isinstance(value, int) and value >= 1):
        raise ValueError(f"{name} must be a whole number >= 1, got {value}")

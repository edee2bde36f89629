r"""Laws of sequences of symbols, and what noise makes of them.

N points y_n of weights w_n, each a bump of the bandwidth `flip`, are noised to

    log rho_t(x)   = logsumexp_n (log w_n + log K_n),   K_n = prod_i k_t(x_i|y_ni) of flipped data
    p_n            = softmax_n (log w_n + log K_n)      the posterior over the points
    q_i(v)         = sum_n p_n [y_ni = v]               and over their symbols, the tally
    s(x->z)_i      = sum_v q_i(v) k(z|v) / k(x_i|v)     the concrete score p_t(z) / p_t(x)
    p(y_i = u | x) = k_t(x_i|u) sum_v F(u|v) q_i(v) / k(x_i|v)       the denoiser, of clean symbols

for all sequences z that differ from x at one position alone. Nothing is exponentiated before it is
normalised, and nothing is larger than a block of points: kernels are sums over positions of two
numbers, where a point agrees with x and where not, and tallies are matrix products with one-hots.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from scoresens import _checks
from scoresens._products import product
from scoresens._pytrees import register_dataclass
from scoresens.discrete._symbols import (
    check_alphabet,
    check_fits,
    check_flip,
    check_sequence,
    check_time,
    symbols,
)
from scoresens.discrete.processes import Process, Table
from scoresens.laws.bumps import Block, block_of, over_blocks, safe_log
from scoresens.laws.processes import Scalar


class Posterior(NamedTuple):
    """What is known of a data point after seeing x at time t."""

    log_density: Float[Array, "*W"]  # log rho_t(x), nats
    tally: Float[Array, "*W d A"]  # q_i(v), sums to 1 over v


@register_dataclass
@dataclass(frozen=True, init=False)
class Sequences:
    """A weighted data set of sequences, each point a bump of the bandwidth `flip`.

    Args:
        points: `[N, d]`, integers from 0 to below the alphabet.
        alphabet: A, how many symbols the data have.
        weights: `[N]`, non-negative, of any positive sum; None means equal weights.
        flip: the probability, 0 or above and below 1, that a symbol is another one, any of them.

    Raises:
        ValueError: no points, symbols outside the alphabet, floats, NaN, weights of another length
            or negative or all zero, a flip that is no probability below 1.

    Notes:
        One evaluation compares N d symbols and costs `2 N d A` floating-point operations a
        sequence. Without flips a noised density may be 0, where the posterior is of no point: NaN.
    """

    points: Int[Array, "N d"]
    alphabet: int = field(metadata={"static": True})
    weights: Float[Array, " N"] | None = None
    flip: Scalar = 0.0

    def __init__(
        self,
        points: Int[ArrayLike, "N d"],
        alphabet: int,
        weights: Float[ArrayLike, " N"] | None = None,
        flip: Scalar = 0.0,
    ):
        check_alphabet(alphabet)
        check_flip(flip)
        points = symbols("points", points, alphabet)
        if weights is not None:
            weights = _checks.floating("weights", weights)
            _checks.weights("weights", weights, (len(points),))
        self._set(points, alphabet, weights, flip)

    def _set(self, points, alphabet, weights, flip):
        values = {"points": points, "alphabet": alphabet, "weights": weights, "flip": flip}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return self.points.shape[0]

    @property
    def length(self) -> int:
        """d, symbols of a sequence."""
        return self.points.shape[1]

    @property
    def normalized_weights(self) -> Float[Array, " N"]:
        """Weights of the points, summing to 1."""
        if self.weights is None:
            return jnp.full(len(self), 1 / len(self))
        return self.weights / jnp.sum(self.weights)

    def log_density(self, process: Process, t: Scalar, x: Int[Array, " d"]) -> Float[Array, ""]:
        """log rho_t(x), in nats."""
        return self.posterior(process, t, x).log_density

    def concrete_score(
        self, process: Process, t: Scalar, x: Int[Array, " d"]
    ) -> Float[Array, "d S"]:
        """s(x->z) = p_t(z) / p_t(x), for each position and the symbol that z has there.

        A symbol that no point could have become, given the rest of x, is 0; masked, without flips,
        so are those that a position which is not masked would change to.
        """
        ratios = self._over_seen(process, t, x, self.posterior(process, t, x).tally)
        return product(ratios, process.kernel(t, self.flip))

    def denoise(self, process: Process, t: Scalar, x: Int[Array, " d"]) -> Table:
        """p(y_i = u | x), the probability of each clean symbol at each position."""
        return self.cleaned(process, t, x, self.posterior(process, t, x).tally)

    def cleaned(
        self, process: Process, t: Scalar, x: Int[Array, " d"], tally: Float[Array, "*W d A"]
    ) -> Float[Array, "*W d A"]:
        """The same of points with these tallies; linear in them."""
        flipped = product(self._over_seen(process, t, x, tally), process.flips(self.flip))
        return process.seen(t, x) * flipped

    def _over_seen(self, process, t, x, tally):
        """q_i(v) / k(x_i|v); 0 where no point can be."""
        seen = process.seen(t, x, self.flip)
        return jnp.where(seen > 0, tally / jnp.where(seen > 0, seen, 1), 0)

    def posterior(
        self,
        process: Process,
        t: Scalar,
        x: Int[Array, " d"],
        weights: Float[Array, "W N"] | None = None,
    ) -> Posterior:
        """The noised log-density at x and the posterior tallies, in one pass over the points: of
        the law, or of W laws with these weights (rows that sum to 1) in the place of its own."""
        check_fits(process, self)
        check_time(t, process.t_max)
        check_sequence(x, process.states, self.length)
        rows = self.normalized_weights[None] if weights is None else weights

        def add(carry, block):
            top, mass, tally = carry
            logs = self._log_kernels(process, t, x, block)
            logits = logs + safe_log(block.columns(rows, seen=0.0))
            higher = jnp.maximum(top, jnp.max(logits, -1))
            terms, keep = jnp.exp(logits - higher[:, None]), jnp.exp(top - higher)
            counted = product(terms, self._one_hots(block))
            return higher, keep * mass + jnp.sum(terms, -1), keep[:, None] * tally + counted

        zeros = jnp.zeros((len(rows), self.length * self.alphabet), rows.dtype)
        top = jnp.full(len(rows), jnp.finfo(rows.dtype).min, rows.dtype)
        start = (top, jnp.zeros(len(rows), rows.dtype), zeros)
        top, mass, tally = over_blocks(add, start, len(self), self._block)
        tally = (tally / mass[:, None]).reshape(-1, self.length, self.alphabet)
        found = Posterior(top + jnp.log(mass), tally)
        return Posterior(*(leaf[0] for leaf in found)) if weights is None else found

    def log_kernels(self, process: Process, t: Scalar, x: Int[Array, " d"]) -> Float[Array, " N"]:
        """log K_n of each point, in nats."""

        def put(found, block):
            return block.put(found, self._log_kernels(process, t, x, block))

        return over_blocks(put, jnp.zeros(len(self)), len(self), self._block)

    def weighted_sums(
        self,
        process: Process,
        t: Scalar,
        x: Int[Array, " d"],
        gain: Scalar,
        coefficients: Float[Array, "K N"],
    ) -> tuple[Float[Array, " K"], Float[Array, "K d A"]]:
        """`sum_n c_kn r_n` and its tallies `sum_n c_kn r_n [y_ni = v]`, `r_n = exp(log K_n -
        gain)`, of coefficients of any sign."""

        def add(sums, block):
            logs = self._log_kernels(process, t, x, block) - gain
            terms = block.columns(coefficients, seen=0.0) * jnp.exp(logs)
            return sums[0] + jnp.sum(terms, -1), sums[1] + product(terms, self._one_hots(block))

        rows, dtype = len(coefficients), coefficients.dtype
        start = (jnp.zeros(rows, dtype), jnp.zeros((rows, self.length * self.alphabet), dtype))
        mass, tally = over_blocks(add, start, len(self), self._block)
        return mass, tally.reshape(rows, self.length, self.alphabet)

    def influences(
        self,
        process: Process,
        t: Float[Array, " R"],
        x: Int[Array, "R d"],
        gain: Float[Array, " R"],
        table: Float[Array, "R d A"],
    ) -> Float[Array, " N"]:
        """`sum_r exp(log K_n(x_r) - gain_r) sum_i table_ri(y_ni)` of each point: at each block a
        table of kernels, and one product of the tables with the points' one-hots."""
        flat = table.reshape(len(t), -1)

        def put(found, block):
            logs = jax.vmap(lambda t, x: self._log_kernels(process, t, x, block))(t, x)
            terms = jnp.exp(logs - gain[:, None]) * product(flat, self._one_hots(block).T)
            return block.put(found, jnp.sum(terms, 0))

        return over_blocks(put, jnp.zeros(len(self), table.dtype), len(self), self._block)

    def chosen(self, index: Int[Array | np.ndarray, " n"]) -> "Sequences":
        """The points named, of equal weights."""
        return self.replaced(self.points[index], None)

    def replaced(
        self, points: Int[Array, "n d"], weights: Float[Array, " n"] | None
    ) -> "Sequences":
        """Other points with other weights, all else as it is."""
        other = object.__new__(Sequences)
        other._set(points, self.alphabet, weights, self.flip)
        return other

    @property
    def _block(self) -> int:
        return block_of(self.length * self.alphabet)

    def _log_kernels(self, process: Process, t: Scalar, x: Array, block: Block) -> Array:
        same, other = process.matches(t, x, self.flip)
        return jnp.sum(jnp.where(block.rows(self.points) == x, same, other), -1)

    def _one_hots(self, block: Block) -> Float[Array, "B dA"]:
        rows = block.rows(self.points)
        return jax.nn.one_hot(rows, self.alphabet, dtype=jnp.zeros(()).dtype).reshape(len(rows), -1)

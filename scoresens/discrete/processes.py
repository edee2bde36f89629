r"""Noise for sequences of symbols: Markov chains in continuous time, each position on its own.

A position leaves its symbol at the rate beta(t) and takes one drawn from pi:

    k_t(x|u)  = kappa delta_xu + (1 - kappa) pi(x),      kappa(t) = 1 - (1 - residue) t
    Q_t(z, x) = beta (pi(x) - delta_zx),                 beta = -kappa' / kappa

with u a symbol of the data, kappa the probability that nothing has happened, Q_t(z, x) the rate
from z to x, `t = 0` at the data and `t = t_max = 1` at the noise. The total noise `-log kappa` is
the log-linear one of SEDD. `Uniform` draws from all symbols, `Masked` always takes one more, the
mask, and stays there.

**The bandwidth of this world** is a probability: each symbol of a data point is another one, any of
them, with the probability `flip`,

    F(v|u) = (1 - flip) delta_uv + flip / (A - 1) (1 - delta_uv)

so that noise that keeps symbols as they are (a mask hides them or it does not) still finds every
point near, if some nearer than others.

References: Lou, Meng and Ermon 2024 (SEDD), arXiv 2310.16834; Austin et al. 2021 (D3PM),
arXiv 2107.03006; Sahoo et al. 2024 (MDLM), arXiv 2406.07524.
"""

import abc
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.discrete._symbols import check_alphabet, check_residue, symbols
from scoresens.laws.processes import Scalar

Times = Float[Array, "*R"] | float | int
Table = Float[Array, "d A"]  # of a number for each symbol of the data at each position


class Process(abc.ABC):
    """Noise for sequences of symbols 0 .. alphabet - 1. Abstract: `states`, `noise`.

    Methods are for one sequence `x [d]` and one time, but for `sample_prior`.
    """

    alphabet: int
    residue: float
    t_max: float

    @property
    @abc.abstractmethod
    def states(self) -> int:
        """S, how many symbols a noised sequence may hold."""

    @property
    @abc.abstractmethod
    def noise(self) -> Float[Array, " S"]:
        """pi, the law of a symbol that noise has taken."""

    def kept(self, t: Times) -> Times:
        """kappa(t), the probability that a position is untouched."""
        return 1 - (1 - self.residue) * t

    def rate(self, t: Times) -> Times:
        """beta(t), the rate at which a position is touched, per unit of time."""
        return (1 - self.residue) / self.kept(t)

    def clock(self, t: Times) -> Float[Array, "*R"]:
        """c = logit kappa, in which the reverse chain leaves no position faster than at rate 1."""
        return jax.scipy.special.logit(jnp.asarray(self.kept(t)))

    def time(self, clock: Times) -> Float[Array, "*R"]:
        """The time at which the clock shows this."""
        return jax.nn.sigmoid(-clock) / (1 - self.residue)

    def rates(self, t: Scalar) -> Float[Array, "S S"]:
        """Q_t(z, x), from z (rows) to x (columns)."""
        return self.rate(t) * (self.noise - jnp.eye(self.states))

    def between(self, s: Scalar, t: Scalar) -> Float[Array, "S S"]:
        """The law of a symbol at t (columns) by what it was at s <= t (rows)."""
        kept = self.kept(t) / self.kept(s)
        return kept * jnp.eye(self.states) + (1 - kept) * self.noise

    def kernel(self, t: Scalar, flip: Scalar = 0.0) -> Float[Array, "A S"]:
        """k_t(x|u), or of flipped data `sum_v F(v|u) k_t(x|v)`: u in rows, x in columns."""
        clean = jnp.eye(self.alphabet, self.states)
        if not (_checks.is_concrete(flip) and flip == 0):
            clean = self.flips(flip) @ clean
        return self.kept(t) * clean + (1 - self.kept(t)) * self.noise

    def flips(self, flip: Scalar) -> Float[Array, "A A"]:
        """F(v|u), u in rows."""
        other = flip / (self.alphabet - 1)
        return other + (1 - flip - other) * jnp.eye(self.alphabet)

    def seen(self, t: Scalar, x: Int[Array, " d"], flip: Scalar = 0.0) -> Table:
        """The kernel at x: k_t(x_i|u) for each position and each symbol of the data."""
        return self.kernel(t, flip).T[x]

    def matches(
        self, t: Scalar, x: Int[Array, " d"], flip: Scalar
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """The logarithm of that, where a point has the symbol of x, and where it has another."""
        noise = (1 - self.kept(t)) * self.noise[x]
        clean, other = self.kept(t) * (1 - flip), self.kept(t) * flip / (self.alphabet - 1)
        some = x < self.alphabet
        return jnp.log(noise + some * clean), jnp.log(noise + some * other)

    def noised(self, t: Scalar, x: Int[Array, " d"], *, key: PRNGKeyArray) -> Int[Array, " d"]:
        """A draw of the noised sequence at time t of the data point x."""
        touched, drawn = jax.random.split(key)
        noise = self._drawn(drawn, x.shape).astype(x.dtype)
        return jnp.where(jax.random.uniform(touched, x.shape) < self.kept(t), x, noise)

    def sample_prior(self, shape: tuple[int, int], *, key: PRNGKeyArray) -> Int[Array, "M d"]:
        """M sequences of d symbols of noise; the first are those of a smaller M."""

        def one(i):
            return self._drawn(jax.random.fold_in(key, i), shape[1:])

        return jax.vmap(one)(jnp.arange(shape[0]))

    def _drawn(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Int[Array, "*shape"]:
        """Symbols of noise."""
        steps = jnp.cumsum(self.noise)[:-1]
        return jnp.searchsorted(steps, jax.random.uniform(key, shape), side="right")

    def prior_log_probability(self, x: Int[Array, " d"]) -> Float[Array, ""]:
        """Of a sequence of noise, in nats."""
        return jnp.sum(jnp.log(self.noise)[x])

    def checked(self, name: str, x: Int[ArrayLike, "*shape"], length: int | None = None) -> Array:
        """`x` as noised sequences `[M, d]`, or a ValueError that says what is wrong."""
        return symbols(name, x, self.states, length)


@register_dataclass
@dataclass(frozen=True)
class Uniform(Process):
    """Noise that draws from all symbols of the data.

    Args:
        alphabet: A, how many symbols the data have, >= 2.
        residue: the probability that a position is untouched at t_max, above 0 and below 1.

    Raises:
        ValueError: numbers out of range.
    """

    alphabet: int = field(metadata={"static": True})
    residue: float = field(default=1e-3, metadata={"static": True})
    t_max: float = field(default=1.0, init=False, metadata={"static": True})

    def __post_init__(self):
        check_alphabet(self.alphabet)
        check_residue(self.residue)

    @property
    def states(self):
        return self.alphabet

    @property
    def noise(self):
        return jnp.full(self.alphabet, 1 / self.alphabet)


@register_dataclass
@dataclass(frozen=True)
class Masked(Process):
    """Noise that hides symbols: the mask is the symbol `alphabet`, after those of the data.

    Args, errors: as `Uniform`.
    """

    alphabet: int = field(metadata={"static": True})
    residue: float = field(default=1e-3, metadata={"static": True})
    t_max: float = field(default=1.0, init=False, metadata={"static": True})

    def __post_init__(self):
        check_alphabet(self.alphabet)
        check_residue(self.residue)

    @property
    def states(self):
        return self.alphabet + 1

    @property
    def noise(self):
        return jnp.zeros(self.states).at[self.alphabet].set(1.0)

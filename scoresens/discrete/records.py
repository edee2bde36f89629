r"""What a model gives a log-probability: chains, paths of jumps, and noised sequences.

A record is a list of places (t_r, x_r) and what happened there, so that its log-probability under
a model is a sum of functions of the denoiser at each place alone, and so are its derivatives:

    log P = const + sum_r g_r( log p(. | x_r, t_r) )

**Leaps**, the chain of tau-leaping: `g = sum_i log q(x_s,i | x_t)` of each step (`denoisers.leap`).

**Jumps**, a path of the reverse chain, whose rates are `Q_t(z, x) s(x->z)`, x to z:

    log P = log prior(x_T) + sum_jumps log( Q s ) - int sum_z Q_t(z, x) s(x->z) dt

The same places say the noised density along the path (11.2), of a model whose scores are those of
a law; no trace is needed, as it is in the continuous world (3.1):

    log p_t(x_t) = log p_T(x_T) + sum_jumps log s
                   - int_t^T [ sum_z Q_t(z, x) s(x->z) + Q_t(x, x) ] dt

Integrals are Gauss's between events, in the clock `c = logit kappa`, where `beta dt = (1 - kappa)
dc` has no singular end.

**Noised**, draws of noise on given sequences y: minus the denoising loss, which is below
log p(y) but for what the prior misses (at most d log(1 + residue S), in expectation),

    g = -(1/R) t_max sum_i sum_z Q(z, x_i) [ s_z - k_z log s_z + k_z (log k_z - 1) ],
        k_z = k_t(z|y_i) / k_t(x_i|y_i)

References: Lou, Meng and Ermon 2024, arXiv 2310.16834 (the loss and its bound); Campbell et al.
2022, arXiv 2205.14987 (reverse rates, tau-leaping); the densities along paths: ours.
"""

import abc
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.discrete._symbols import check_process
from scoresens.discrete.denoisers import Denoiser, leap, ratios, safe_log
from scoresens.discrete.processes import Process, Table
from scoresens.laws.scores import as_pytree

NODES = 3  # of Gauss's rule between two events of a path
PLACES = 1024  # at a time


class Visit(NamedTuple):
    """Places and what happened there; one of them, or with leading axes."""

    t: Float[Array, "*R"]
    x: Int[Array, "*R d"]
    more: Any  # what happened; a pytree


class Record(abc.ABC):
    """M records. Abstract: `visits`, `value`."""

    @abc.abstractmethod
    def visits(self, process: Process) -> Visit:
        """The places `[M, R]` that the log-probability is a sum over."""

    @abc.abstractmethod
    def value(self, process: Process, visit: Visit, log_p: Table) -> Float[Array, ""]:
        """g of one place."""

    def constant(self, process: Process) -> Float[Array, " M"] | float:
        """What no denoiser changes."""
        return 0.0


@register_dataclass
@dataclass(frozen=True)
class Leaps(Record):
    """M chains of tau-leaping, made by `sample`."""

    times: Float[Array, " nodes"]  # from t_max to 0
    states: Int[Array, "M nodes d"]

    @property
    def x(self) -> Int[Array, "M d"]:
        """The samples."""
        return self.states[:, -1]

    def visits(self, process):
        count, steps = self.states.shape[0], len(self.times) - 1
        t, s = (
            jnp.broadcast_to(part, (count, steps)) for part in (self.times[:-1], self.times[1:])
        )
        return Visit(t, self.states[:, :-1], (s, self.states[:, 1:]))

    def value(self, process, visit, log_p):
        s, z = visit.more
        chances = leap(process, s, visit.t, visit.x, log_p)
        return jnp.sum(safe_log(_at(chances, z)))

    def constant(self, process):
        return jax.vmap(process.prior_log_probability)(self.states[:, 0])


@register_dataclass
@dataclass(frozen=True)
class Jumps(Record):
    """M paths of the reverse chain, made by `sample_exact`.

    An event may be virtual, one at which the position takes the symbol that it had.
    """

    start: Int[Array, "M d"]  # at t_max
    times: Float[Array, "M E"]  # falling; `end` where nothing happens any more
    positions: Int[Array, "M E"]
    symbols: Int[Array, "M E"]  # what the position holds from then on
    end: Float[Array, ""]  # the time of the sample

    @property
    def x(self) -> Int[Array, "M d"]:
        """The samples, of the noised law at `end`."""
        return self.states[:, -1]

    @property
    def states(self) -> Int[Array, "M states d"]:
        """What stands between the events."""

        def one(start, positions, symbols):
            def event(x, what):
                x = x.at[what[0]].set(what[1])
                return x, x

            rest = jax.lax.scan(event, start, (positions, symbols))[1]
            return jnp.concatenate([start[None], rest])

        return jax.vmap(one)(self.start, self.positions, self.symbols)

    def visits(self, process):
        states, count = self.states, self.start.shape[0]
        jumped = _at(states[:, :-1], self.positions) != self.symbols
        ends = jnp.full((count, 1), self.end), jnp.full((count, 1), process.t_max)
        nodes, weights = _gauss(
            process,
            jnp.concatenate([ends[1], self.times], 1),
            jnp.concatenate([self.times, ends[0]], 1),
        )
        between = jnp.repeat(states, NODES, 1)
        still = jnp.zeros(nodes.shape, int)
        return Visit(
            jnp.concatenate([self.times, nodes], 1),
            jnp.concatenate([states[:, :-1], between], 1),
            (
                jnp.concatenate([jumped, still.astype(bool)], 1),
                jnp.concatenate([self.positions, still], 1),
                jnp.concatenate([self.symbols, still], 1),
                jnp.concatenate([jnp.zeros_like(self.times), weights], 1),
            ),
        )

    def value(self, process, visit, log_p):
        return self.parts(process, visit, log_p).path

    def parts(self, process: Process, visit: Visit, log_p: Table) -> "Parts":
        """Of one place, what it adds to both log-probabilities."""
        jumped, position, symbol, weight = visit.more
        noise, score = process.noise[visit.x], ratios(process, visit.t, visit.x, log_p)
        others = jnp.sum(score, -1) - _at(score, visit.x)
        flux = weight * jnp.sum(noise * others)  # weight: of beta dt
        stay = weight * jnp.sum(1 - noise)
        log_score = safe_log(score[position, symbol])
        log_rate = safe_log(process.rate(visit.t) * noise[position])
        return Parts(
            jnp.where(jumped, log_rate + log_score, 0) - flux,
            jnp.where(jumped, log_score, 0) - flux + stay,
        )

    def constant(self, process):
        return jax.vmap(process.prior_log_probability)(self.start)


class Parts(NamedTuple):
    """What a place adds to the log-density of the path, and to the noised law's along it."""

    path: Float[Array, ""]
    law: Float[Array, ""]


@register_dataclass
@dataclass(frozen=True)
class Noised(Record):
    """Given sequences, each with R draws of noise, made by `noised`."""

    clean: Int[Array, "M d"]
    times: Float[Array, "M R"]
    states: Int[Array, "M R d"]

    def visits(self, process):
        clean = jnp.broadcast_to(self.clean[:, None], self.states.shape)
        return Visit(self.times, self.states, clean)

    def value(self, process, visit, log_p):
        t, x, clean = visit
        score, kernel = ratios(process, t, x, log_p), process.kernel(t)[clean]
        true = kernel / _at(kernel, x)[:, None]
        loss = score - true * safe_log(score) + true * (safe_log(true) - 1)
        loss = jnp.sum(jnp.where(jnp.arange(process.states) == x[:, None], 0, loss), -1)
        rate = process.rate(t) * process.t_max / self.times.shape[-1]
        return -rate * jnp.sum(process.noise[x] * loss)


def noised(process: Process, x: Int[Array, "M d"], *, key: PRNGKeyArray, draws: int = 64) -> Noised:
    """Draws of noise on given sequences, whose log-probability is minus the denoising loss.

    Args:
        process: the noise.
        x: `[M, d]`, sequences of the data's symbols.
        key: sequence i uses `fold_in(key, i)`; with one key, two models see the same noise.
        draws: R, one at each of as many times, stratified over (0, t_max).

    Raises:
        ValueError: sequences that are none, or a number of draws below 1.
    """
    check_process(process, Process)
    x = process.checked("x", x)
    if _checks.is_concrete(x) and int(x.max()) >= process.alphabet:
        raise ValueError("x holds masks: give clean sequences, of the data's symbols alone")
    _checks.key_given("noised", key, "noise is drawn", rows=False)
    if not (isinstance(draws, int) and draws >= 1):
        raise ValueError(f"draws must be a whole number >= 1, got {draws!r}")

    def one(i, x):
        times, noise = jax.random.split(jax.random.fold_in(key, i))
        strata = jnp.arange(draws) + jax.random.uniform(times, (draws,), minval=1e-3)
        t = process.t_max * strata / draws
        keys = jax.random.split(noise, draws)
        return t, jax.vmap(lambda t, key: process.noised(t, x, key=key))(t, keys)

    return Noised(x, *jax.vmap(one)(jnp.arange(len(x)), x))


def log_probability(process: Process, denoiser: Denoiser, record: Record) -> Float[Array, " M"]:
    """The log-probability, in nats, that a model gives each of M records.

    Args:
        process: the noise.
        denoiser: `denoiser(t, x) -> log p(y_i = u | x)` (`from_denoiser`, `from_concrete_score`).
        record: of `sample`, `sample_exact` or `noised`.

    Notes:
        One network evaluation a place: a step of `Leaps`, `1 + NODES` an event of `Jumps`, a draw
        of `Noised`.
    """
    _check(process, record)
    return _summed(process, as_pytree(denoiser), record) + record.constant(process)


def log_density_along(
    process: Process,
    denoiser: Denoiser,
    path: Jumps,
    *,
    start: Float[Array, " M"] | None = None,
) -> Float[Array, " M"]:
    """log p_t(x) of a model's noised law at the end of each path, without a trace.

    Args:
        process, denoiser: as in `log_probability`.
        path: any path, of this model or another; of `sample_exact`, or made by hand.
        start: `[M]`, log p at t_max of where the paths start; None: the prior's.

    Notes:
        Exact, but for the quadrature, where the denoiser is that of a law: else it depends on the
        path.
    """
    _check(process, path)
    before = path.constant(process) if start is None else start
    return _summed_law(process, as_pytree(denoiser), path) + before


def over_samples(one: Any, arrays: Any, places: int) -> Any:
    """`one` of each sample's arrays, as many samples at a time as have `PLACES` places."""
    return jax.lax.map(one, arrays, batch_size=max(1, PLACES // places))


@jax.jit
def _summed(process, denoiser, record):
    return _sums(process, denoiser, record, record.value)


@jax.jit
def _summed_law(process, denoiser, path):
    return _sums(process, denoiser, path, lambda *given: path.parts(*given).law)


def _sums(process, denoiser, record, value):
    def one(visits):
        def at(visit):
            return value(process, visit, denoiser(visit.t, visit.x))

        return jnp.sum(jax.vmap(at)(visits))

    visits = record.visits(process)
    return over_samples(one, visits, visits.t.shape[1])


def _check(process, record):
    check_process(process, Process)
    check_record(record)


def check_record(record: Record) -> None:
    """Refuse what is no record, such as bare samples."""
    if not isinstance(record, Record):
        raise ValueError(
            "a record must be made by discrete.sample, sample_exact or noised, "
            f"got {type(record).__name__}"
        )


def _at(table: Array, index: Array) -> Array:
    """One entry of each row."""
    return jnp.take_along_axis(table, index[..., None], -1)[..., 0]


@functools.cache
def _rule() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(NODES)


def _gauss(
    process: Process, above: Float[Array, "M E"], below: Float[Array, "M E"]
) -> tuple[Float[Array, "M R"], Float[Array, "M R"]]:
    """Times between `above` and `below`, and their weights of `beta dt`."""
    points, weights = _rule()
    low, high = process.clock(above)[..., None], process.clock(below)[..., None]
    clock = (low + high) / 2 + (high - low) / 2 * points
    weights = (high - low) / 2 * weights * (1 - jax.nn.sigmoid(clock))
    flat = (*clock.shape[:-2], -1)
    return process.time(clock).reshape(flat), weights.reshape(flat)

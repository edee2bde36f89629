r"""Samples of a model of symbols: by tau-leaping, and exactly.

**Tau-leaping** steps from t to s < t with all positions at once, the denoiser held fixed on the
way (SEDD's analytic step): position i takes the symbol z with probability

    q(z|x) = sum_u p(y_i = u | x) k_s(z|u) k_{t|s}(x_i|z) / k_t(x_i|u)

always a law, the end at s = 0 included. Its chain is a model of its own, whose log-probabilities
`log_probability` has exactly.

**Exactly**, by uniformization. In the clock `c = logit kappa` a position of the reverse chain is
left at the rate `(1 - kappa) pi(x_i) sum_z s(x->z)_i <= 1`, whatever the model says. So candidates
come d a unit of the clock; each names a position, which goes to z with the probability
`(1 - kappa) pi(x_i) s(x->z)_i` and else stays. The clock is infinite at t = 0: paths end before.

Sample i draws from `fold_in(key, i)`: a larger batch begins with the smaller one.

References: Campbell et al. 2022, arXiv 2205.14987; Lou, Meng and Ermon 2024, arXiv 2310.16834;
Chen and Ying 2024, arXiv 2402.08095 (uniformization).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from scoresens import _checks
from scoresens.discrete._symbols import check_process
from scoresens.discrete.denoisers import Denoiser, leap, ratios
from scoresens.discrete.processes import Process
from scoresens.discrete.records import Jumps, Leaps
from scoresens.laws.scores import as_pytree

SAMPLES = 512  # at a time


def sample(
    process: Process,
    denoiser: Denoiser,
    noise: Int[Array, "M d"],
    *,
    key: PRNGKeyArray,
    steps: int = 64,
) -> Leaps:
    """Samples by tau-leaping, and how they came about.

    Args:
        process: the noise.
        denoiser: `denoiser(t, x) -> log p(y_i = u | x)` (`from_denoiser`, `from_concrete_score`).
        noise: `[M, d]`, of `process.sample_prior`.
        key: sample i uses `fold_in(key, i)`.
        steps: of equal length in time. The law of the samples is off by `O(1 / steps)`.

    Returns:
        Leaps: `.x [M, d]` the samples, `.states [M, steps + 1, d]` the chains.

    Raises:
        ValueError: noise that is none of this process, no key, or a number of steps below 1.

    Notes:
        One network evaluation a step.
    """
    check_process(process, Process)
    noise = process.checked("noise", noise)
    _checks.key_given("sample", key, "symbols are drawn", rows=False)
    if not (isinstance(steps, int) and steps >= 1):
        raise ValueError(f"steps must be a whole number >= 1, got {steps!r}")
    return _leaps(process, as_pytree(denoiser), noise, key, steps)


def sample_exact(
    process: Process,
    denoiser: Denoiser,
    noise: Int[Array, "M d"],
    *,
    key: PRNGKeyArray,
    end: float = 1e-3,
    events: int | None = None,
) -> Jumps:
    """Samples of the reverse chain itself, and their paths, for short sequences.

    Args:
        process, denoiser, noise, key: as in `sample`.
        end: the time at which paths end, above 0: the samples are of the noised law there.
        events: room for candidates of a path; None: for their mean and ten standard deviations.

    Returns:
        Jumps: `.x [M, d]` the samples, `.times`, `.positions`, `.symbols [M, E]` the events.

    Raises:
        ValueError: as `sample`; an end outside (0, t_max).
        FloatingPointError: paths with more candidates than there is room for (outside `jit`).

    Notes:
        One network evaluation an event, one after another: about 14 d for the default end.
    """
    check_process(process, Process)
    noise = process.checked("noise", noise)
    _checks.key_given("sample_exact", key, "symbols are drawn", rows=False)
    if not 0 < end < process.t_max:
        raise ValueError(f"end must lie above 0 (data) and below {process.t_max}, got {end}")
    if events is None:
        mean = noise.shape[1] * float(process.clock(end) - process.clock(process.t_max))
        events = math.ceil(mean + 10 * mean**0.5)
    path, over = _jumps(process, as_pytree(denoiser), noise, key, jnp.asarray(end), events)
    if _checks.is_concrete(over) and bool(over.any()):
        raise FloatingPointError(
            f"{int(over.sum())} paths of {len(noise)} have more than {events} candidates: give "
            "more events, or a later end"
        )
    return path


@functools.partial(jax.jit, static_argnames="steps")
def _leaps(process, denoiser, noise, key, steps):
    times = process.t_max * (1 - jnp.arange(steps + 1) / steps)

    def one(i, x):
        own = jax.random.fold_in(key, i)

        def step(x, k):
            t, s = times[k], times[k + 1]
            logits = jnp.log(leap(process, s, t, x, denoiser(t, x)))
            x = jax.random.categorical(jax.random.fold_in(own, k), logits).astype(x.dtype)
            return x, x

        rest = jax.lax.scan(step, x, jnp.arange(steps))[1]
        return jnp.concatenate([x[None], rest])

    given = jnp.arange(len(noise)), noise
    return Leaps(times, jax.lax.map(lambda row: one(*row), given, batch_size=SAMPLES))


@functools.partial(jax.jit, static_argnames="events")
def _jumps(process, denoiser, noise, key, end, events):
    last = process.clock(end)

    def one(i, x):
        own = jax.random.fold_in(key, i)

        def event(carry, k):
            clock, x = carry
            waiting, where, what = jax.random.split(jax.random.fold_in(own, k), 3)
            clock = clock + jax.random.exponential(waiting) / len(x)
            t = jnp.maximum(process.time(clock), end)
            position = jax.random.randint(where, (), 0, len(x))
            old = x[position]
            rates = ratios(process, t, x, denoiser(t, x))[position].at[old].set(0.0)
            rates = (1 - process.kept(t)) * process.noise[old] * rates
            chances = rates.at[old].set(jnp.maximum(1 - jnp.sum(rates), 0))
            new = jax.random.categorical(what, jnp.log(chances)).astype(x.dtype)
            new = jnp.where(clock < last, new, old)
            return (clock, x.at[position].set(new)), (t, position, new)

        start = process.clock(process.t_max), x
        (clock, _), found = jax.lax.scan(event, start, jnp.arange(events))
        return *found, clock < last

    given = jnp.arange(len(noise)), noise
    found = jax.lax.map(lambda row: one(*row), given, batch_size=SAMPLES)
    times, positions, symbols, over = found
    return Jumps(noise, times, positions, symbols, end), over

r"""How far to trust a prediction: a lower bound of its cosine with what training does.

A network and the denoiser D^_h of its data differ, by

    m^2 = mean over noise levels tau and samples x_0 of |D(x) - D^_h(x)|^2,      x = x_0 + tau n

and a prediction is a difference of two D^_h: of a sample that it moves by less than a part of m
little is known, of one that it moves by more than m nearly everything. With theta the angle between
a sample's predicted and its real displacement, the mean of pairs of fine-tunings (`RealChange`),

    S = (|predicted| / m) tan(theta / 2)^(1/P)

had in other changes a quantile q that makes `S <= q` true of 90 % of the samples of a change that
was not among them (`statistics.conformal`). So, with this probability,

    cos theta  >=  cos(2 arctan((q m / |predicted|)^P))

The changes are fine-tunings of three networks, an MLP and two U-Nets, kept in
`benchmarks/results/validation/trust.npz`, from which `benchmarks/trust.py` makes q. If a change is
like these, one drawn with them, the bound holds for its samples on average over such changes; not
of every change, and not of networks trained otherwise. docs/trust.md has what it held for.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from scoresens.laws.measures import Points
from scoresens.laws.processes import Process
from scoresens.laws.scores import Score, canonical_denoiser
from scoresens.statistics.conformal import unseen_quantile

LEVEL = 0.9  # of the bound
POWER = 1 / 3  # P, chosen for high bounds on changes left out
QUANTILE = 0.02639  # q, `quantile` of the kept changes
LEVELS = 8  # of noise


def mismatch(
    process: Process,
    score: Score,
    data: Points,
    x: Float[Array, "M *shape"],
    *,
    key: PRNGKeyArray,
) -> float:
    """m: how far a network's denoiser is from that of its data, in units of the data.

    Args:
        process: the forward process.
        score: `score(t, x)` of one sample.
        data: its training data, with the kernel that predictions are made with (`calibrate`).
        x: samples of the network.
        key: of the noise.

    Notes:
        Cost: 8 network evaluations, and 8 passes over the data, a sample.
    """
    deviation = float(jnp.sqrt(jnp.sum(jnp.var(data.points, 0))))
    top = min(2 * deviation, float(process.noise_level(process.t_max)))
    levels = jnp.geomspace(deviation / 16, top, LEVELS).astype(x.dtype)
    noise = jax.random.normal(key, (LEVELS, *x.shape), x.dtype)

    @jax.jit
    def squares(tau, noise):
        def at(place):
            apart = canonical_denoiser(process, score, tau, place) - data.denoise(tau, place)
            return jnp.sum(jnp.square(apart))

        return jax.lax.map(at, x + tau * noise)

    found = [squares(tau, each) for tau, each in zip(levels, noise, strict=True)]
    return float(jnp.sqrt(jnp.mean(jnp.stack(found))))


def cosine_bound(
    signal: Float[np.ndarray, " M"], quantile: float = QUANTILE
) -> Float[np.ndarray, " M"]:
    """What the cosine of each sample's predicted with its real displacement is above, with
    probability `LEVEL`: from -1, which says nothing, to 1.

    Args:
        signal: `[M]`, |predicted| / m, of finite predictions with the kernel of `calibrate`.
        quantile: q; by default that of all kept changes.
    """
    with np.errstate(divide="ignore"):
        return np.cos(2 * np.arctan((quantile / np.asarray(signal, np.float64)) ** POWER))


def misses(
    signal: Float[np.ndarray, " M"], cosine: Float[np.ndarray, " M"]
) -> Float[np.ndarray, " M"]:
    """S, from `signal = |predicted| / m` and the cosine with what training did."""
    return signal * np.tan(np.arccos(np.clip(cosine, -1, 1)) / 2) ** (1 / POWER)


def quantile(changes: Iterable[Float[np.ndarray, "_ 2"]], level: float = LEVEL) -> float:
    """q, of the signals and cosines of the samples of each of many changes."""
    return unseen_quantile([misses(*change.T) for change in changes], level)

r"""How well a network resolves its data: the kernel to predict it with.

What a network makes of a change of its data is predicted by a difference of two denoisers of points
(6.3), and the better, the more these are as sharp as the network is: not as sharp as Bayes (6.6,
6.7 in `laws.kernels`). How sharp a network is, it shows without any training, by its denoiser D at
places x = x_0 + tau n around its own samples x_0. Along each principal axis u_k of the data

    (6.10)  u_k.D(x)  ~  a_k + b_k u_k.x + s_k u_k.D^_{w,c}(x)

is fitted by least squares over the places of one noise level, with D^_{w,c} the denoiser of the
points by a kernel of width w and resolution c. The linear part takes up what a network knows of
the data's covariance, which says nothing about single points: what remains is what points could
explain, and (w, c) are those that leave least of it unexplained, in all noise levels together. A
level counts as much as D is not linear there, which is where single points matter.

What a network learns anew is coarser than what it has learnt long since: the kernel given is
somewhat wider than the nearest, by factors that were read off fine-tunings.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from scoresens import _checks
from scoresens.flow.sampling import sample_ode
from scoresens.flow.solve import Solve, over_samples
from scoresens.laws.axes import Axes, principal_axes
from scoresens.laws.kernels import Resolved
from scoresens.laws.measures import Points, default_bandwidth
from scoresens.laws.processes import Process, Scalar
from scoresens.laws.scores import Score, canonical_denoiser

LEVELS = 10
WIDER, COARSER = 1.25, 3.0  # than the nearest kernel: read off fine-tunings (docs/resolution.md)
OF_WIDTH = 0.6  # the bandwidth of the bumps: read off the same
START = 0.01  # of the resolutions looked at
STRIDES = 2.0, 4.0  # of width and of resolution, the first; they are square roots of it then
ROUNDS = 3
LEAST, MOST = 1e-4, 4.0  # resolutions


class Calibrated(NamedTuple):
    """Points with the kernel found, and how near to the network the nearest one comes."""

    points: Points
    width: float  # of the nearest kernel
    resolution: float
    levels: Float[np.ndarray, " L"]  # noise levels tau, rising
    energies: Float[np.ndarray, " L"]  # E|D less its linear part|^2, units of the data squared
    errors: Float[np.ndarray, " L"]  # the share of it that the nearest kernel leaves unexplained
    sharp: Float[np.ndarray, " L"]  # and that of the default bandwidth, as sharp as Bayes

    @property
    def error(self) -> float:
        """The share left unexplained at all levels together."""
        return float(self.errors @ self.energies / self.energies.sum())


class _Places(NamedTuple):
    """Where a network is asked, L noise levels by M samples, and what it says along the axes."""

    tau: Float[Array, " L"]
    x: Float[Array, "L M *shape"]
    along: Float[Array, "L M r"]  # x along the axes
    denoised: Float[Array, "L M r"]


def calibrate(
    process: Process,
    score: Score,
    data: Points | Float[ArrayLike, "N *shape"],
    *,
    key: PRNGKeyArray,
    count: int = 128,
    solve: Solve = Solve(steps=20),
) -> Calibrated:
    """The kernel of the data that a network is nearest to, found from its denoiser alone (6.10).

    Args:
        process: the forward process.
        score: `score(t, x)` of one sample, a black box.
        data: its training data `[N, *shape]`, or `Points` with weights; bandwidth and kernel of
            these are not read.
        key: of the samples and of their noise.
        count: M, how many samples of the network it is asked around.
        solve: how these are drawn.

    Returns:
        Calibrated: `points`, to give as `base` to every verb: their kernel is 1.25 times as wide as
            the nearest and of 3 times its resolution c, their bandwidth 0.6 of its width; and by
            noise level what the nearest leaves unexplained.

    Raises:
        ValueError: fewer than 8 samples, or data that do not vary or are not the score's.

    Notes:
        Cost: `count` samples and 10 more network evaluations each; then about 25 kernels, each
        one pass over the data for every place, `80 N d count` operations; one eigendecomposition
        (`principal_axes`). Trains nothing. What it was worth on fine-tunings is in
        docs/resolution.md.
    """
    if count < 8:
        raise ValueError(f"calibrate needs at least 8 samples to fit lines to, got {count}")
    _checks.key_given("calibrate", key, "samples and noise are drawn from it", rows=False)
    points = (data if isinstance(data, Points) else Points(data)).sharp().under(process)
    axes, usual = principal_axes(points.points), default_bandwidth(points.points)
    highest = float(process.noise_level(process.t_max))
    top = min(2 * math.sqrt(float(jnp.sum(axes.variances))), highest)
    levels = np.geomspace(min(usual / 4, top / 8), top, LEVELS)
    places = _places(process, score, points, axes, levels, key, count, solve)
    raw = axes.coordinates(jnp.asarray(points.points).reshape(len(points), -1))

    def left(width, resolution):
        return _left(points, raw, axes, places, width, resolution)

    width, resolution = _descended(lambda *at: float(jnp.sum(left(*at))), usual)
    kernel = Resolved(points.kernel, 1.0, WIDER * width, COARSER * resolution, axes=axes)
    found = points.with_kernel(kernel, OF_WIDTH * WIDER * width, kernel.weighed(raw))
    linear = jax.jit(_nonlinear)(places.along, places.denoised)
    rests = left(width, resolution), left(usual, 0.0)
    shares = (np.asarray(rest / jnp.maximum(linear, 1e-30)) for rest in rests)
    return Calibrated(found, width, resolution, levels, np.asarray(linear) / count, *shares)


def _places(process, score, points, axes, levels, key, count, solve) -> _Places:
    """Samples of the network, noised to each level, and its denoiser there."""
    drawn, noised = jax.random.split(key)
    noise = process.sample_prior((count, *points.shape), key=drawn)
    x = sample_ode(process, score, noise, solve=solve).x
    tau = jnp.asarray(levels, x.dtype)
    n = _noise(process.noise, noised, len(tau), x)
    x = x + tau.reshape(-1, *(1,) * x.ndim) * n

    @jax.jit
    def denoised(tau, x):
        def one(tau, x):
            return canonical_denoiser(process, score, tau, x)

        return over_samples(one, solve, tau, x)

    found = denoised(jnp.repeat(tau, count), x.reshape(-1, *points.shape))
    along = (axes.coordinates(each.reshape(len(tau), count, -1)) for each in (x, found))
    return _Places(tau, x, *along)


@functools.partial(jax.jit, static_argnames="levels")
def _noise(noise, key, levels, x):
    """`[L, M, *shape]`; of Gaussian noise, one draw for all."""
    if noise.is_gaussian:
        return noise.draw(key, (levels, *x.shape), x.dtype)
    keys = jax.random.split(key, (levels, len(x)))
    return jax.vmap(jax.vmap(lambda key: noise.draw(key, x.shape[1:], x.dtype)))(keys)


@jax.jit
def _left(
    points: Points, raw: Array, axes: Axes, places: _Places, width: Scalar, resolution: Scalar
) -> Float[Array, " L"]:
    """How much of the network's denoiser is explained neither by lines nor by this kernel, summed
    over places and axes."""
    kernel = Resolved(points.kernel, 1.0, width, resolution, axes=axes)
    points = points.with_kernel(kernel, 0.0, kernel.weighed(raw))

    def at(level):
        means = jax.vmap(points.denoise, (None, 0))(level.tau, level.x)
        means = axes.coordinates(means.reshape(len(means), -1))
        rest, explained = (_without(level.along, each) for each in (level.denoised, means))
        return jnp.sum(jnp.square(_without(explained, rest)))

    return jax.lax.map(at, places)


def _nonlinear(along: Float[Array, "L M r"], denoised: Float[Array, "L M r"]) -> Array:
    """How much of it no line explains."""
    return jnp.sum(jnp.square(jax.vmap(_without)(along, denoised)), (1, 2))


def _without(x: Float[Array, "M r"], y: Float[Array, "M r"]) -> Float[Array, "M r"]:
    """y less the line in x that is nearest, on each axis."""
    x, y = x - jnp.mean(x, 0), y - jnp.mean(y, 0)
    size = jnp.sum(jnp.square(x), 0)
    return y - x * (jnp.sum(x * y, 0) / jnp.where(size > 0, size, 1))


def _descended(loss, width: float) -> tuple[float, float]:
    """The width and the resolution of least loss: steps along either while they lead down, each
    round by strides that are square roots of the last."""
    seen, at = {}, (0.0, 0.0)  # logarithms of what width and START are multiplied with

    def value(at):
        if at not in seen:
            seen[at] = loss(*place(at))
        return seen[at]

    def place(at):
        return width * math.exp(at[0]), min(max(START * math.exp(at[1]), LEAST), MOST)

    strides = tuple(map(math.log, STRIDES))
    for _ in range(ROUNDS):
        while True:
            moves = [(strides[0], 0.0), (-strides[0], 0.0), (0.0, strides[1]), (0.0, -strides[1])]
            best = min([at, *((at[0] + a, at[1] + b) for a, b in moves)], key=value)
            if value(best) >= value(at):
                break
            at = best
        strides = tuple(stride / 2 for stride in strides)
    return place(at)

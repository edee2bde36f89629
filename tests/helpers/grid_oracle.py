"""Laws on a line, by grids and quantiles: what the Fokker-Planck tests compare with.

A wrong potential, the noised mixture's log-density plus a wave, drives the reverse SDE and the flow
of an Ornstein-Uhlenbeck process. Here the SDE's density is carried on a grid by Crank-Nicolson
steps of its Fokker-Planck equation, and the flow's law as moving quantiles: plain numpy, finite
differences for every derivative.
"""

from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy.linalg import solve_banded
from scipy.stats import norm

T, T_MIN = 3.0, 4e-6  # the time at noise level 0.002
X = np.linspace(-5, 5, 641)
DX = X[1] - X[0]
TIMES = T_MIN + (T - T_MIN) * np.linspace(0, 1, 401) ** 2  # finer towards the data
STEP = 1e-4  # of finite differences


class Wave(NamedTuple):
    """log of a noised mixture of two normals, plus `height exp(-t) sin(wave x + phase)`."""

    weight: float
    means: tuple[float, float]
    spread: float
    height: float
    wave: float
    phase: float

    def at(self, t, x, np=np):
        """phi on plain arrays, for OU(theta=1, g=1)."""
        alpha, variance = np.exp(-t), 0.5 * (1 - np.exp(-2 * t))
        total = alpha**2 * self.spread**2 + variance
        parts = [
            np.log(w) - 0.5 * (x - alpha * m) ** 2 / total - 0.5 * np.log(2 * np.pi * total)
            for w, m in zip((self.weight, 1 - self.weight), self.means, strict=True)
        ]
        return np.logaddexp(*parts) + self.height * np.exp(-t) * np.sin(self.wave * x + self.phase)

    @property
    def potential(self):
        """The same as the library takes it."""
        return Partial(_potential, self)


def _potential(wave, t, x):
    return wave.at(t, x[0], np=jnp)


def random_waves(count, seed):
    """Wrong potentials of many kinds."""
    rng = np.random.default_rng(seed)
    return [
        Wave(
            weight=float(rng.uniform(0.2, 0.8)),
            means=(float(rng.uniform(-1.5, -0.5)), float(rng.uniform(0.5, 1.5))),
            spread=float(rng.uniform(0.3, 0.6)),
            height=float(rng.uniform(0.15, 0.4)),
            wave=float(rng.uniform(0.8, 2.0)),
            phase=float(rng.uniform(0, 2 * np.pi)),
        )
        for _ in range(count)
    ]


class OnLine(NamedTuple):
    """What the grids say of one potential."""

    density: np.ndarray  # p^SDE at T_MIN, on X
    energy: float  # (7.3), left
    identity: float  # (7.3), right
    bound: float  # (7.4)
    w2: float
    w2_first: float  # (7.5), by the speed of w
    w2_last: float  # (7.5), by the bound (7.4)


def residual(wave, t, x):
    """R by finite differences (7.1)."""
    h = STEP
    here, up, down = wave.at(t, x), wave.at(t, x + h), wave.at(t, x - h)
    rate = (wave.at(t * (1 + h), x) - wave.at(t * (1 - h), x)) / (2 * h * t)
    slope, curve = (up - down) / (2 * h), (up - 2 * here + down) / h**2
    return rate - 1 - x * slope - 0.5 * (curve + slope**2)


def score(wave, t, x):
    return (wave.at(t, x + STEP) - wave.at(t, x - STEP)) / (2 * STEP)


def solve_line(wave):
    """Everything the laws (7.3) to (7.5) speak of, on the grids."""
    prior = norm.pdf(X, 0, np.sqrt(0.5))
    down = _carried(prior, TIMES[::-1], lambda t, x: x + score(wave, t, x))[::-1]
    up = _carried(down[0], TIMES, lambda t, x: -x)
    phi = np.array([wave.at(t, X) for t in TIMES])
    w = np.log(np.maximum(down, 1e-300)) - phi
    seen = down > 1e-12
    slopes = np.where(seen, np.gradient(w, DX, axis=1), 0)
    r = np.array([residual(wave, t, X) for t in TIMES])
    speed = _mean(down, slopes**2)
    w_top = np.log(prior) - phi[-1]
    start = _mean(prior, w_top)
    energy = np.trapezoid(0.5 * speed, TIMES)
    carried = np.trapezoid(_mean(down, r), TIMES)
    identity = carried + start - _mean(down[0], np.where(seen[0], w[0], 0))
    bound = carried - np.trapezoid(_mean(up, r), TIMES) + start - _mean(up[-1], w_top)
    growth = _growth(wave, seen)
    first = np.trapezoid(np.exp(growth) * 0.5 * np.sqrt(speed), TIMES)
    stretch = np.trapezoid(0.5 * np.exp(2 * growth), TIMES)
    w2 = _distance(wave, down[0])
    return OnLine(down[0], energy, identity, bound, w2, first, np.sqrt(stretch * bound))


def _mean(density, values):
    return np.sum(density * values, -1) * DX


def _carried(density, times, drift):
    """d_tau p = -(drift p)' + p''/2, over the times in their order; all densities."""
    found = [density]
    for t, after in pairwise(times):
        size = abs(after - t) / 2
        lower, middle, upper = _operator(drift(0.5 * (t + after), X[:-1] + DX / 2))
        right = density + size * _times(lower, middle, upper, density)
        bands = np.zeros((3, len(X)))
        bands[0, 1:], bands[1], bands[2, :-1] = -size * upper, 1 - size * middle, -size * lower
        density = solve_banded((1, 1), bands, right)
        found.append(density)
    return np.array(found)


def _operator(b):
    """-(b p)' + p''/2 in conservative form, `b [n - 1]` at the faces, no flow through the ends."""
    out, back = 0.5 * b / DX + 0.5 / DX**2, -0.5 * b / DX + 0.5 / DX**2
    middle = np.zeros(len(X))
    middle[:-1] -= out
    middle[1:] -= back
    return out, middle, back


def _times(lower, middle, upper, p):
    product = middle * p
    product[1:] += lower * p[:-1]
    product[:-1] += upper * p[1:]
    return product


def _growth(wave, seen):
    """M(t): (x + s/2)' at its largest where the density is not negligible."""
    rates = []
    for t, there in zip(TIMES, seen, strict=True):
        x = X[there]
        curve = (wave.at(t, x + 1e-3) - 2 * wave.at(t, x) + wave.at(t, x - 1e-3)) / 1e-6
        rates.append(np.max(1 + 0.5 * curve))
    halves = 0.5 * np.diff(TIMES) * (np.array(rates[1:]) + np.array(rates[:-1]))
    return np.append(0, np.cumsum(halves))


def _distance(wave, density):
    """W_2 between the density's law and the flow's, by quantiles."""
    u = (np.arange(1000) + 0.5) / 1000
    x = norm(0, np.sqrt(0.5)).ppf(u)
    for t, after in pairwise(TIMES[::-1]):
        h = t - after  # down; the classical Runge-Kutta rule
        rate = lambda s, y: y + 0.5 * score(wave, s, y)  # noqa: E731
        a = rate(t, x)
        b = rate(t - h / 2, x + h / 2 * a)
        c = rate(t - h / 2, x + h / 2 * b)
        d = rate(after, x + h * c)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    cumulated = np.append(0, np.cumsum(0.5 * DX * (density[1:] + density[:-1])))
    other = np.interp(u, cumulated / cumulated[-1], X)
    return float(np.sqrt(np.mean((x - other) ** 2)))

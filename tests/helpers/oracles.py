"""Closed forms to compare with, written another way than the library: plain numpy, the process's
own frame, densities formed one component at a time."""

from typing import NamedTuple

import numpy as np
from scipy.integrate import solve_ivp
from scipy.linalg import sqrtm
from scipy.special import logsumexp
from scipy.stats import multivariate_normal


class Mixture(NamedTuple):
    """sum_j w_j N(m_j, C_j); points are components of covariance h^2 I, or of none."""

    weights: np.ndarray  # [n], used as they are: signed or complex ones make derivatives
    means: np.ndarray  # [n, d]
    covariances: np.ndarray  # [n, d, d]

    @classmethod
    def of_points(cls, points, weights=None, bandwidth=0.0):
        n, d = np.shape(points)
        weights = np.full(n, 1 / n) if weights is None else np.asarray(weights) / np.sum(weights)
        return cls(weights, np.asarray(points), np.tile(bandwidth**2 * np.eye(d), (n, 1, 1)))

    def mixed(self, other, mass):
        """(1 - mass) self + mass other."""
        weights = np.concatenate([(1 - mass) * self.weights, mass * other.weights])
        means, covariances = zip(self[1:], other[1:], strict=True)
        return Mixture(weights, np.concatenate(means), np.concatenate(covariances))

    def noised(self, alpha, sigma):
        """The law of alpha x_0 + sigma n."""
        covariances = alpha**2 * self.covariances + sigma**2 * np.eye(self.means.shape[1])
        return Mixture(self.weights, alpha * self.means, covariances)

    def sample(self, rng, count):
        which = rng.choice(len(self.weights), count, p=self.weights)
        draw = [rng.multivariate_normal(self.means[j], self.covariances[j]) for j in which]
        return np.array(draw)

    def mean(self):
        return self.weights @ self.means

    def covariance(self):
        offset = self.means - self.mean()
        spread = self.covariances + offset[:, :, None] * offset[:, None, :]
        return np.tensordot(self.weights, spread, 1)

    def log_density(self, x):
        """[M] for x [M, d]."""
        parts = [
            multivariate_normal(m, c).logpdf(x)
            for m, c in zip(self.means, self.covariances, strict=True)
        ]
        return logsumexp(np.reshape(parts, (len(self.weights), -1)), 0, self.weights[:, None])

    def score(self, x):
        """[M, d] for x [M, d]: the gradient of the density over the density, nothing in logs."""
        density, gradient = np.zeros((2, 1, 1))
        for w, m, c in zip(*self, strict=True):
            part = w * multivariate_normal(m, c).pdf(x).reshape(-1, 1)
            density, gradient = density + part, gradient - part * np.linalg.solve(c, (x - m).T).T
        return gradient / density

    def denoised(self, tau, x):
        """E[x_0 | x_0 + tau n = x] by Tweedie's formula."""
        return x + tau**2 * self.noised(1.0, tau).score(x)


def score_derivative(law_at, alpha, sigma, x):
    """d/d mass at 0 of the score of `law_at(mass)`, by a complex step: no difference is taken."""
    step = 1e-30
    return law_at(1j * step).noised(alpha, sigma).score(x).imag / step


def points_log_density(points, weights, spread, x):
    """log sum_j w_j N(x; y_j, spread^2 I) from explicit differences; x `[d]`."""
    squares = np.sum((np.asarray(x) - np.asarray(points)) ** 2, -1)
    size = np.size(x)
    return logsumexp(-squares / (2 * spread**2), b=weights) - size / 2 * np.log(
        2 * np.pi * spread**2
    )


def gaussian_flow(mean, covariance, start, end, x):
    """Where the canonical flow takes x [M, d] from noise level `start` to `end`, for N(mean,
    covariance)."""
    eye = np.eye(len(mean))
    there, here = sqrtm(covariance + end**2 * eye), sqrtm(covariance + start**2 * eye)
    return mean + (x - mean) @ (there @ np.linalg.inv(here)).real.T


def moments(drift_rate, diffusion, t, variance=0.0):
    """alpha(t) and sigma^2(t) of dx = drift_rate(t) x dt + diffusion(t) dW by solving their
    equations."""

    def rates(t, state):
        return [drift_rate(t) * state[0], 2 * drift_rate(t) * state[1] + diffusion(t) ** 2]

    return solve_ivp(rates, (0, t), [1.0, variance], rtol=1e-11, atol=1e-14).y[:, -1]


class DataSet(NamedTuple):
    """Points and what can happen to them. Every law has the same n + 1 components: the points, and
    one newcomer, whose weight is 0 unless a change gives it some."""

    points: np.ndarray  # [n, d]
    weights: np.ndarray  # [n], summing to 1
    bandwidth: float
    new: np.ndarray  # [d]

    def law(self, weights):
        points = np.concatenate([self.points, self.new[None]])
        weights = np.append(weights, np.zeros(len(points) - len(weights)))
        return Mixture.of_points(points, weights, self.bandwidth)

    def unchanged(self):
        return self.law(self.weights)

    def added(self, mass):
        """The newcomer has the share `mass` of the new data."""
        return self.law(np.append((1 - mass) * self.weights, mass))

    def removed(self, mass, mask):
        """At mass 1 the points are gone and the others share their weight."""
        left = np.where(mask, 0, self.weights)
        return self.law((1 - mass) * self.weights + mass * left / left.sum())

    def reweighted(self, mass, weights):
        """At mass 1 the points have these weights."""
        return self.law((1 - mass) * self.weights + mass * weights / np.sum(weights))

    def replaced(self, mass, index):
        """At mass 1 the newcomer stands where point `index` stood."""
        moved = np.zeros_like(self.weights)
        moved[index] = self.weights[index]
        return self.law(np.append(self.weights - mass * moved, mass * moved.sum()))

    def moved(self, mass, index, direction):
        """At mass 1 point `index` stands where its direction leads."""
        points = self.points.copy()
        points[index] += mass * np.asarray(direction)
        return self._replace(points=points).unchanged()

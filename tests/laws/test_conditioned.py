"""Data given a measurement, against sums over a grid of the plane."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import scoresens as ss

OPERATOR, MEASUREMENT, NOISE = np.array([[1.0, -0.5]]), np.array([0.4]), 0.5
LINE = np.linspace(-7, 7, 561)
GRID = np.stack(np.meshgrid(LINE, LINE, indexing="ij"), -1).reshape(-1, 2)
CELL = (LINE[1] - LINE[0]) ** 2
X, TAU = np.array([0.3, -0.6]), 0.8
PROCESS = ss.EDM()


def likelihood(x):
    return np.exp(-0.5 * ((x @ OPERATOR[0] - MEASUREMENT[0]) / NOISE) ** 2) / (
        np.sqrt(2 * np.pi) * NOISE
    )


def prior(x):
    parts = zip(laws.DATA.weights, laws.DATA.points, strict=True)
    bump = laws.DATA.bandwidth**2 * np.eye(2)
    return sum(w * multivariate_normal.pdf(x, y, bump) for w, y in parts)


def conditioned(data, measurement=MEASUREMENT):
    return ss.condition(data, OPERATOR, measurement, NOISE)


@pytest.mark.parametrize("bandwidth", [0.0, laws.DATA.bandwidth])
def test_the_posterior_is_bayes(bandwidth):
    """Evidence, noised log-density and score at a place, of bumps by quadrature, of points by
    Bayes' rule."""
    found = conditioned(ss.Points(laws.DATA.points, laws.DATA.weights, bandwidth))
    if bandwidth:
        places, masses = GRID, prior(GRID) * likelihood(GRID) * CELL
    else:
        places, masses = laws.DATA.points, laws.DATA.weights * likelihood(laws.DATA.points)
    laws.close(found.log_evidence, np.log(masses.sum()), absolute=1e-9)
    seen = masses * np.exp(-0.5 * np.sum((X - places) ** 2, 1) / TAU**2) / (2 * np.pi * TAU**2)
    laws.close(
        found.law.log_density(TAU, jnp.asarray(X)), np.log(seen.sum() / masses.sum()), absolute=1e-9
    )
    denoised = seen @ places / seen.sum()
    score = ss.exact_score(PROCESS, found.law)(PROCESS.time(TAU), jnp.asarray(X))
    laws.close(score, (denoised - X) / TAU**2, relative=1e-8)


def test_scores_differ_by_the_likelihood_of_the_measurement():
    """grad log p(m | x_t), of p(m | x_t) by quadrature."""
    data, step = laws.data_set(), 1e-4

    def log_likelihood(x):
        seen = prior(GRID) * np.exp(-0.5 * np.sum((x - GRID) ** 2, 1) / TAU**2)
        return np.log(seen @ likelihood(GRID) / seen.sum())

    slope = [
        (log_likelihood(X + step * e) - log_likelihood(X - step * e)) / (2 * step)
        for e in np.eye(2)
    ]
    t = PROCESS.time(TAU)
    scores = [
        ss.exact_score(PROCESS, law)(t, jnp.asarray(X)) for law in (conditioned(data).law, data)
    ]
    laws.close(scores[0] - scores[1], slope, relative=1e-6)


def test_the_derivative_of_the_measurement_and_of_the_weights():
    """Traced: of the evidence in the measurement, E[(A x - m) | m] / s^2."""
    data = laws.data_set()
    slope = jax.grad(lambda m: conditioned(data, m).log_evidence)(jnp.asarray(MEASUREMENT))
    masses = prior(GRID) * likelihood(GRID)
    mean = masses @ (GRID @ OPERATOR[0] - MEASUREMENT[0]) / masses.sum()
    laws.close(slope, [mean / NOISE**2], relative=1e-8)


@pytest.mark.slow
def test_samples_of_the_posterior_move_as_the_data_do():
    """As docs/neighbours.md says: toward a new point, by its share of the evidence; against the
    posterior of the changed data, sampled."""
    data, new = laws.data_set(), ss.Points(laws.DATA.new[None], bandwidth=laws.DATA.bandwidth)
    own, one = conditioned(data), conditioned(new)
    process, noise = ss.EDM(t_max=laws.TOP), jnp.asarray(laws.NOISE)
    solve = ss.Solve(steps=20, tau_min=laws.BOTTOM)
    score = ss.exact_score(process, own.law)
    toward = jnp.exp(one.log_evidence - own.log_evidence) * ss.add(one.law)
    found = ss.sample_sensitivity(process, score, toward, noise, base=own.law, solve=solve)

    def samples(mass):
        points = np.concatenate([laws.DATA.points, laws.DATA.new[None]])
        weights = np.append((1 - mass) * laws.DATA.weights, mass)
        law = conditioned(ss.Points(points, weights, laws.DATA.bandwidth)).law
        return ss.sample_ode(process, ss.exact_score(process, law), noise, solve=solve).x

    expected = (4 * samples(1e-3) - samples(2e-3) - 3 * samples(0.0)) / 2e-3
    laws.close(found.tangent[:, 0], expected, relative=1e-4)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": laws.mixture()}, "data must be Points"),
        ({"data": ss.Points(laws.DATA.points, bandwidth=0.1, width=0.3)}, "take data.sharp"),
        ({"operator": np.ones((1, 3))}, r"operator must have shape \[M, 2\]"),
        ({"measurement": np.ones(2)}, r"measurement must have shape \(1,\), a number for each row"),
        ({"measurement": np.full(1, np.nan)}, "measurement has 1 entries that are NaN"),
        ({"noise": 0.0}, "noise must be a finite number greater than 0"),
    ],
)
def test_refused(given, message):
    right = {"data": laws.data_set(), "operator": OPERATOR, "measurement": MEASUREMENT}
    with pytest.raises(ValueError, match=message):
        ss.condition(**{**right, "noise": NOISE, **given})

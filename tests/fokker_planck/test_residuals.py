"""Residuals against closed forms, against each other, and where they must not vanish."""

import functools

import grid_oracle
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from jax.tree_util import Partial

import scoresens as ss

TWISTS = jnp.array([[0.3, 0.9, 0.0], [-0.5, 0.1, 0.4], [0.2, -0.6, 0.7]])


def exact_potential(process, measure):
    return Partial(_log_density, measure, process)


def _log_density(measure, process, t, x):
    return measure.noised_log_density(process, t, x)


def places(process, count=12, seed=0):
    """Times from a hundredth of the path to its end, and points among the noised data."""
    rng = np.random.default_rng(seed)
    t = jnp.asarray(process.t_max * np.linspace(0.01, 1, count))
    y = jnp.asarray(laws.LAW.sample(rng, count))
    noise = jnp.asarray(rng.normal(size=y.shape))
    scale = jax.vmap(lambda t: jnp.stack([process.alpha(t), process.sigma(t)]))(t)
    return t, scale[:, :1] * y + scale[:, 1:] * noise


@pytest.fixture(params=laws.PROCESSES)
def process(request):
    return laws.PROCESSES[request.param]


def test_no_residual_for_noised_laws(process):
    """(7.1) and (7.1s) vanish for the mixture's own log-density and score: rounding of terms that
    g^2 / sigma^2 makes large near the data."""
    t, x = places(process)
    measure = laws.mixture()
    scale = 1 + jax.vmap(process.diffusion)(t) ** 2 / jax.vmap(process.variance)(t)
    residual = ss.fokker_planck_residual(process, exact_potential(process, measure), t, x)
    laws.close(residual / scale, np.zeros(len(t)), absolute=1e-9)
    of_score = ss.score_residual(process, ss.exact_score(process, measure), t, x)
    size = jnp.sqrt(scale * jnp.max(scale))[:, None]
    laws.close(of_score / size, np.zeros(x.shape), absolute=1e-9)


def test_a_gaussian_of_the_wrong_width():
    """phi = -a |x|^2 / 2 under OU(1, 1): R = -d + a |x|^2 + (d a - a^2 |x|^2) / 2, by hand, less
    the sign of its parts."""
    a, process = 0.7, ss.OU(theta=1.0, g=1.0, t_max=10.0)
    _, x = places(process)
    found = ss.fokker_planck_residual(process, lambda t, x: -0.5 * a * jnp.vdot(x, x), 0.5, x)
    squares = np.sum(np.square(x), 1)
    transport = -(x.shape[1] - a * squares)
    laws.close(found, transport - 0.5 * (-a * x.shape[1] + a**2 * squares), absolute=1e-12)


def test_a_wrong_potential_against_differences():
    """R of a wave on a line, by finite differences of the potential (their error: 1e-6)."""
    wave, process = grid_oracle.random_waves(1, 3)[0], ss.OU(theta=1.0, g=1.0, t_max=grid_oracle.T)
    x = np.linspace(-2, 2, 9)
    for t in (0.05, 0.6, 2.5):
        found = ss.fokker_planck_residual(process, wave.potential, t, jnp.asarray(x)[:, None])
        laws.close(found, grid_oracle.residual(wave, t, x), absolute=1e-5)


@pytest.mark.parametrize("process", [ss.VP(), ss.EDM()])  # with a drift, and without
def test_score_form_is_the_gradient_of_the_potential_form(process):
    t, x = places(process)
    wrong = Partial(_bent_potential, exact_potential(process, laws.mixture()))
    found = ss.score_residual(process, ss.from_potential(wrong), t, x)

    def one(t, x):
        return ss.fokker_planck_residual(process, wrong, t[None], x[None])[0]

    expected = jax.vmap(jax.grad(one, argnums=1))(t, x)
    laws.close(found, expected, relative=1e-9)


def _bent_potential(right, t, x):
    return right(t, x) + jnp.cos(t) * jnp.sin(jnp.sum(x))


def test_a_function_of_time_adds_its_rate():
    process, (t, x) = ss.VP(), places(ss.VP())
    right = exact_potential(process, laws.mixture())
    found = ss.fokker_planck_residual(process, lambda t, x: right(t, x) + t**3, t, x)
    plain = ss.fokker_planck_residual(process, right, t, x)
    laws.close(found - plain, 3 * t**2, absolute=1e-9)


# ------------------------------------------------------------------ non-conservative part


def test_no_antisymmetric_part_of_gradients():
    process, (t, x) = ss.VP(), places(ss.VP())
    found = ss.non_conservative_part(ss.exact_score(process, laws.mixture()), t, x)
    laws.close(found.share, np.zeros(len(t)), absolute=1e-12)


def test_antisymmetric_part_of_a_matrix():
    """A linear field's is its matrix's."""
    matrix = np.asarray(TWISTS)
    found = ss.non_conservative_part(Partial(_linear, TWISTS), 0.3, jnp.ones((4, 3)))
    norm = np.linalg.norm((matrix - matrix.T) / 2)
    laws.close(found.norm, np.full(4, norm), absolute=1e-12)
    laws.close(found.whole, np.full(4, np.linalg.norm(matrix)), absolute=1e-12)
    laws.close(found.share, np.full(4, norm / np.linalg.norm(matrix)), absolute=1e-12)


def _linear(matrix, t, x):
    return matrix @ x


# ------------------------------------------------------------------ probes


def test_probes_are_unbiased():
    """Means over 4,000 keys within 4 standard errors of the exact values."""
    process, count = ss.OU(theta=1.0, g=1.0, t_max=3.0), 4000
    x = jnp.broadcast_to(jnp.array([0.4, -0.8, 0.3]), (count, 3))
    field = Partial(_twisted, TWISTS)
    asked = {"trace": ss.Hutchinson(), "key": jax.random.key(0)}
    exact = ss.score_residual(process, field, 0.4, x[:1])[0]
    _within_errors(ss.score_residual(process, field, 0.4, x, **asked), exact)
    exact = ss.fokker_planck_residual(process, Partial(_hill, TWISTS), 0.4, x[:1])[0]
    _within_errors(
        ss.fokker_planck_residual(process, Partial(_hill, TWISTS), 0.4, x, **asked), exact
    )
    exact = ss.non_conservative_part(field, 0.4, x[:1]).norm[0] ** 2
    _within_errors(ss.non_conservative_part(field, 0.4, x, **asked).norm ** 2, exact)


def _twisted(matrix, t, x):
    return jnp.tanh(matrix @ x) * (1 + t)


def _hill(matrix, t, x):
    return jnp.sum(jnp.sin(matrix @ x)) * (1 + t)


def _within_errors(draws, exact):
    draws = np.asarray(draws)
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert np.all(error > 0)
    assert np.all(np.abs(draws.mean(0) - np.asarray(exact)) < 4 * error)


def test_probes_of_a_point_do_not_depend_on_the_batch():
    process, (t, x) = ss.VP(), places(ss.VP())
    right = Partial(_bent_potential, exact_potential(process, laws.mixture()))
    ask = functools.partial(
        ss.fokker_planck_residual, process, right, trace=ss.Hutchinson(), key=jax.random.key(1)
    )
    laws.close(ask(t[:5], x[:5]), ask(t, x, solve=ss.Solve(batch_size=4))[:5], absolute=1e-12)


# ------------------------------------------------------------------ transformations


def test_gradients_in_parameters_and_jit():
    """The mean squared residual's gradient in the potential's parameters, against differences."""
    process, (t, x) = ss.OU(theta=1.0, g=1.0, t_max=2.0), places(ss.OU(1.0, 1.0, 2.0))

    def loss(scale):
        wrong = Partial(_bent_by, scale, exact_potential(process, laws.mixture()))
        return jnp.mean(ss.fokker_planck_residual(process, wrong, t, x) ** 2)

    step = 1e-5
    slope = (loss(0.7 + step) - loss(0.7 - step)) / (2 * step)
    laws.close(jax.jit(jax.grad(loss))(0.7), slope, relative=1e-7)


def _bent_by(scale, right, t, x):
    return right(t, x) + jnp.sin(scale * jnp.sum(x))


# ------------------------------------------------------------------ bad input


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"potential": lambda t, x: x}, "one floating-point number.*score_residual"),
        ({"potential": lambda t, x: 1}, "one floating-point number"),
        ({"t": -0.1}, "between 0 .data. and t_max"),
        ({"t": jnp.ones(3)}, r"of shape \(4,\), got \(3,\)"),
        ({"t": 1}, "floating-point"),
        ({"x": jnp.ones(4)}, "batch"),
        ({"x": jnp.full((4, 2), jnp.nan)}, "NaN"),
        ({"process": "VP"}, "process must be"),
        ({"trace": ss.Hutchinson()}, "needs key"),
        ({"trace": ss.Ito(), "key": jax.random.key(0)}, "trace estimator"),
    ],
)
def test_bad_residuals(change, words):
    asked = {
        "process": ss.VP(),
        "potential": lambda t, x: -jnp.vdot(x, x),
        "t": 0.5,
        "x": jnp.ones((4, 2)),
    } | change
    options = {name: asked.pop(name) for name in ("trace", "key") if name in asked}
    with pytest.raises(ValueError, match=words):
        ss.fokker_planck_residual(*asked.values(), **options)


def test_a_score_residual_asks_for_a_score():
    with pytest.raises(ValueError, match="must return an array of x's shape"):
        ss.score_residual(ss.VP(), lambda t, x: jnp.sum(x), 0.5, jnp.ones((4, 2)))

"""Samples and densities of the induced laws, against grids on a line and each other."""

import functools

import grid_oracle
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.flow.starts import kick_key
from scoresens.flow.tabulated import Table, look_up, sample_both, sample_flow
from scoresens.fokker_planck.induced import rising_times

LINE = ss.OU(theta=1.0, g=1.0, t_max=grid_oracle.T)
PLANE = ss.OU(theta=1.0, g=1.0, t_max=4.0)
KEY = jax.random.key(3)
WAVE = grid_oracle.random_waves(1, 0)[0]


@functools.cache
def solved():
    return grid_oracle.solve_line(WAVE)


# ------------------------------------------------------------------ Euler's rule


def test_euler_is_its_recursion():
    """Both laws, a loop of three steps in numpy with the same draws."""
    score = ss.exact_score(PLANE, laws.mixture())
    noise = PLANE.sample_prior((3, 2), key=jax.random.key(0))
    times = np.array([4.0, 2.0, 1.5, 1.4])
    flow = ss.sample_euler(PLANE, score, noise, jnp.asarray(times)).x
    noisy = ss.sample_euler(PLANE, score, noise, jnp.asarray(times), route=ss.Diffusion(KEY)).x
    for i in range(3):
        x = y = np.asarray(noise[i])
        key = jax.random.fold_in(KEY, i)
        for step, (t, size) in enumerate(zip(times, -np.diff(times), strict=False)):
            x = x + size * (x + 0.5 * np.asarray(score(t, jnp.asarray(x))))
            kick = np.asarray(jax.random.normal(kick_key(key, step), (2,)))
            y = y + size * (y + np.asarray(score(t, jnp.asarray(y))))
            y = y + np.sqrt(size) * kick * (step < 2)
        laws.close(flow[i], x, absolute=1e-12)
        laws.close(noisy[i], y, absolute=1e-12)


def test_euler_converges_to_the_flow_at_first_order():
    """Halving the steps halves the distance to `sample_ode`, within a fifth."""
    score = ss.exact_score(PLANE, laws.mixture())
    noise = PLANE.sample_prior((64, 2), key=jax.random.key(0))
    end = float(PLANE.time(0.3))
    truth = ss.sample_ode(PLANE, score, noise, solve=ss.Solve(steps=200, tau_min=0.3)).x
    errors = []
    for steps in (200, 400):
        times = jnp.linspace(4.0, end, steps + 1)
        x = ss.sample_euler(PLANE, score, noise, times).x / PLANE.alpha(end)
        errors.append(float(jnp.sqrt(jnp.mean((x - truth) ** 2))))
    assert 1.6 < errors[0] / errors[1] < 2.4


def test_a_diverging_score_is_an_error_or_is_told():
    noise, times = jnp.ones((3, 2)), jnp.linspace(4.0, 0.0, 400)

    def field(t, x):
        return jnp.where(x[0] > 0.5, 1e6, -1.0) * x**3

    with pytest.raises(FloatingPointError, match="3 of 3 results hold NaN"):
        ss.sample_euler(PLANE, field, noise, times)
    told = ss.sample_euler(
        PLANE, field, noise.at[0, 0].set(-1.0), times, solve=ss.Solve(throw=False)
    )
    np.testing.assert_array_equal(told.stats.finite, [True, False, False])


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([1.0, 2.0], "must fall"),
        ([4.0, -0.1], "must fall"),
        ([5.0, 0.0], "at most t_max"),
        ([1.0], "two times or more"),
    ],
)
def test_bad_times(times, words):
    score = ss.exact_score(PLANE, laws.mixture())
    with pytest.raises(ValueError, match=words):
        ss.sample_euler(PLANE, score, jnp.ones((2, 2)), jnp.asarray(times))


# ------------------------------------------------------------------ paths


def test_reverse_paths_end_where_sample_sde_does():
    score, solve = ss.exact_score(PLANE, laws.mixture()), ss.Solve(steps=30)
    noise = PLANE.sample_prior((5, 2), key=jax.random.key(0))
    paths = ss.reverse_paths(PLANE, score, noise, key=KEY, solve=solve)
    end = ss.sample_sde(PLANE, score, noise, key=KEY, solve=solve).x
    laws.close(paths.x[0] / PLANE.alpha(paths.times[0]), end, absolute=1e-12)
    laws.close(paths.x[-1], noise, absolute=1e-12)
    laws.close(paths.times, rising_times(PLANE, solve), absolute=1e-12)


def test_forward_paths_have_the_process_moments():
    """Mean and covariance between times, from 40,000 paths, within 4 standard errors."""
    count, times = 40_000, jnp.array([0.1, 0.5, 2.0])
    start = jnp.broadcast_to(jnp.array([1.5, -0.5]), (count, 2))
    x = np.asarray(ss.forward_paths(PLANE, start, times, key=KEY).x)
    laws.close(x[0], start, absolute=1e-12)
    for later, before in ((1, 0), (2, 1)):
        decay = np.exp(-(times[later] - times[before]))
        left = x[later] - decay * x[before]  # independent of what was before
        spread = np.sqrt(0.5 * (1 - decay**2))
        assert np.all(np.abs(left.mean(0)) < 4 * spread / np.sqrt(count))
        assert np.all(np.abs(left.var(0) / spread**2 - 1) < 4 * np.sqrt(2 / count))
        assert np.all(np.abs(np.mean(left * x[before], 0)) < 4 * spread * 2 / np.sqrt(count))


# ------------------------------------------------------------------ densities (7.2)


def test_induced_density_against_the_grid():
    """Within 4 standard errors and 0.01, the grid's and the trapezoid's own error where there is
    mass."""
    x = jnp.linspace(-1.6, 1.6, 9)[:, None]
    found = ss.induced_log_density(LINE, WAVE.potential, x, law="sde", key=KEY, paths=256)
    expected = np.interp(x[:, 0], grid_oracle.X, np.log(np.maximum(solved().density, 1e-300)))
    off = np.abs(np.asarray(found.log_density) - expected)
    assert np.all(off < 4 * np.asarray(found.standard_error) + 0.01)
    potential = jax.vmap(WAVE.potential)(jnp.full(9, grid_oracle.T_MIN), x)
    assert np.abs(np.asarray(potential) - expected).max() > 0.3  # phi itself is no such density


def test_both_laws_of_an_exact_potential_are_the_law():
    """No residual: w_T is all there is to either. 5e-3: the prior's distance from the noised law,
    e^-8 of the data's scale, and 300 Heun steps of the flow."""
    measure, process = laws.mixture(), ss.OU(theta=1.0, g=1.0, t_max=8.0)
    x = jnp.asarray(laws.LAW.sample(np.random.default_rng(0), 5))
    potential = functools.partial(lambda t, x: measure.noised_log_density(process, t, x))
    expected = laws.LAW.noised(1.0, 0.002).log_density(np.asarray(x))
    sde = ss.induced_log_density(process, potential, x, law="sde", key=KEY, paths=32)
    laws.close(sde.log_density, expected, absolute=5e-3)
    fine = ss.Solve(steps=300)
    ode = ss.induced_log_density(process, potential, x, law="ode", solve=fine)
    laws.close(ode.log_density, expected, absolute=5e-3)
    assert ode.standard_error is None


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"law": "flow", "key": KEY}, "'sde' or 'ode'"),
        ({"law": "sde"}, "needs key"),
        ({"law": "sde", "key": KEY, "paths": 3}, "even number"),
    ],
)
def test_bad_densities(asked, words):
    with pytest.raises(ValueError, match=words):
        ss.induced_log_density(LINE, WAVE.potential, jnp.ones((2, 1)), **asked)


# ------------------------------------------------------------------ looked-up scores


SMALL = Table(half_width=5.0, bins=96, block=64)


def test_looked_up_samples_are_the_evaluated_ones():
    """200 samples in blocks of 64, some of which start beyond the table. 2e-3: cubic interpolation
    at this spacing."""
    score, times = ss.exact_score(PLANE, laws.mixture()), jnp.linspace(4.0, 0.1, 60)
    noise = PLANE.sample_prior((200, 2), key=jax.random.key(0)).at[3].set(jnp.array([7.0, 1.0]))
    both = sample_both(PLANE, score, noise, times, key=KEY, table=SMALL)
    flow = ss.sample_euler(PLANE, score, noise, times).x
    noisy = ss.sample_euler(PLANE, score, noise, times, route=ss.Diffusion(KEY)).x
    laws.close(both.ode, flow, absolute=2e-3)
    laws.close(both.sde, noisy, absolute=2e-3)


def test_blocks_that_are_mostly_beyond_the_table_are_evaluated():
    score, times = ss.exact_score(PLANE, laws.mixture()), jnp.linspace(4.0, 2.0, 3)
    noise = 7 + jax.random.uniform(jax.random.key(0), (100, 2))
    table = Table(half_width=5.0, bins=16, block=100)
    both = sample_both(PLANE, score, noise, times, key=KEY, table=table)
    laws.close(both.ode, ss.sample_euler(PLANE, score, noise, times).x, absolute=1e-12)


@pytest.mark.slow
def test_looked_up_flow_is_the_flow():
    score = ss.exact_score(PLANE, laws.mixture())
    noise = PLANE.sample_prior((50, 2), key=jax.random.key(0))
    solve = ss.Solve(steps=60, tau_min=0.1)
    times = rising_times(PLANE, solve)[::-1]
    found = sample_flow(PLANE, score, noise, times, table=SMALL)
    truth = ss.sample_ode(PLANE, score, noise, solve=ss.Solve(steps=400, tau_min=0.1)).x
    laws.close(found / PLANE.alpha(times[-1]), truth, absolute=4e-3)


def test_interpolation_is_exact_for_quadratics():
    """Catmull and Rom's weights reproduce polynomials of degree 2."""
    table = Table(half_width=2.0, bins=12, block=1)
    axis = jnp.linspace(-2.0, 2.0, 12)

    def field(x, y):
        return jnp.stack([1 + x - 2 * y + x * x - x * y, 3 * y * y], -1)

    values = field(*jnp.meshgrid(axis, axis, indexing="ij"))
    points = jax.random.uniform(KEY, (100, 2), minval=-1.6, maxval=1.6)
    laws.close(look_up(values, table, points), field(*points.T), absolute=1e-12)


@pytest.mark.usefixtures("unchecked_annotations")
def test_bad_tables():
    for bad in ({"bins": 3}, {"half_width": 0.0}, {"block": 0}):
        with pytest.raises(ValueError, match=r"Table\."):
            Table(**bad)
    with pytest.raises(ValueError, match="shape"):
        sample_both(PLANE, lambda t, x: -x, jnp.ones((4, 3)), jnp.array([1.0, 0.0]), key=KEY)

"""Law 4 on paths, orders of the solvers, and the reverse SDE's laws."""

import itertools

import diffrax
import jax
import jax.numpy as jnp
import laws
import numpy as np
import oracles
import pytest

import scoresens as ss
from scoresens.flow.solve import grid


@pytest.mark.as_people_run
@pytest.mark.parametrize("name", laws.IN_FULL)
def test_laws_of_paths(name):
    """One test, so that one worker compiles a process's kernels once for all its laws."""
    process = laws.PROCESSES[name]
    laws.check_log_density_on_flow(process)
    laws.check_log_density_on_foreign_curve(process)
    laws.check_encode(process)


def test_log_density_along_a_smooth_curve():
    """(3.2) on curves that are no law's flow: rotation and contraction in VP's own time."""
    process, noise = laws.between_levels(ss.VP(), top=2.0)
    measure = laws.mixture()
    path = ss.log_density_along(
        process,
        ss.exact_score(process, measure),
        swirl,
        noise / 10,
        trace=ss.Exact(),
        prior=measure,
        solve=ss.Solve(solver=diffrax.Tsit5(), steps=100, tau_min=0.05),
    )
    expected = laws.LAW.noised(1.0, 0.05).log_density(np.asarray(path.x))
    laws.close(path.log_density, expected, absolute=1e-6)
    # in VP's time dx/dt = A x, so x = exp((t_min - t_max) A) x_T with A = [[.8, -3], [3, .8]]
    span = float(process.time(0.05)) - process.t_max
    turn = np.exp(0.8 * span) * np.array(
        [
            [np.cos(3 * span), -np.sin(3 * span)],
            [np.sin(3 * span), np.cos(3 * span)],
        ]
    )
    end = np.asarray(noise) / 10 @ turn.T / float(process.alpha(process.time(0.05)))
    laws.close(path.x, end, absolute=1e-6)


def swirl(t, x):
    return 0.8 * x + 3.0 * jnp.array([-x[1], x[0]])


def test_log_density_starts_at_the_process_s_prior():
    """Without `prior`, log rho starts as N(0, prior_std^2 I): for a standard normal law, whose
    noised law in VP is that prior, it stays exact."""
    process = ss.VP()
    noise = process.sample_prior((4, 2), key=jax.random.key(0))
    score = ss.exact_score(process, normal())
    path = ss.sample_ode(process, score, noise, trace=ss.Exact(), solve=laws.FINE)
    density = oracles.Mixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
    expected = density.noised(1.0, laws.BOTTOM).log_density(np.asarray(path.x))
    laws.close(path.log_density, expected, absolute=1e-7)
    # and in VP's frame the flow of that law stands still but for the noise added below tau_min
    laws.close(path.x, np.sqrt(1 + laws.BOTTOM**2) * np.asarray(noise), absolute=1e-7)


def normal(variance=1.0):
    return ss.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), variance * jnp.eye(2)[None])


GAUSSIAN = laws.LAW._replace(weights=np.array([1.0, 0.0]))


def flow_error(steps, solver):
    process, noise = laws.between_levels(ss.EDM())
    solve = ss.Solve(steps=steps, solver=solver, tau_min=laws.BOTTOM)
    score = ss.exact_score(process, laws.measure_of(GAUSSIAN))
    found = ss.sample_ode(process, score, noise, solve=solve).x
    ends = laws.TOP, laws.BOTTOM
    expected = oracles.gaussian_flow(
        GAUSSIAN.means[0], GAUSSIAN.covariances[0], *ends, np.asarray(noise)
    )
    return np.max(np.abs(found - expected))


def test_order_of_heun_on_the_grid():
    """Halving the steps' length quarters the error, against the Gaussian flow in closed form."""
    errors = [flow_error(steps, diffrax.Heun()) for steps in (40, 80, 160)]
    orders = np.log2(errors[:-1] / np.array(errors[1:]))
    assert np.all(np.abs(orders - 2) < 0.25), orders


def test_flow_of_a_gaussian():
    assert flow_error(100, diffrax.Tsit5()) < 1e-8


def test_adaptive_steps_meet_their_tolerance():
    process, noise = laws.between_levels(ss.EDM())
    score = ss.exact_score(process, laws.measure_of(GAUSSIAN))
    solve = ss.Solve(solver=diffrax.Tsit5(), rtol=1e-8, atol=1e-8, tau_min=laws.BOTTOM)
    path = ss.sample_ode(process, score, noise, solve=solve)
    expected = oracles.gaussian_flow(
        GAUSSIAN.means[0], GAUSSIAN.covariances[0], laws.TOP, laws.BOTTOM, np.asarray(noise)
    )
    laws.close(path.x, expected, absolute=1e-6)  # a hundred steps of 1e-8
    assert np.all((path.stats.steps > 10) & (path.stats.steps < 300))
    assert np.all(path.stats.solved & path.stats.finite)


def test_the_grid_is_karras_():
    nodes = grid(jnp.asarray(80.0), 0.002, ss.Solve(steps=10))
    i = np.arange(11) / 10
    expected = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    laws.close(nodes / expected, np.ones(11), absolute=1e-12)


def test_log_density_costs_nothing_when_not_asked_for():
    process, noise = laws.between_levels(ss.EDM())
    path = ss.sample_ode(process, lambda t, x: -x / (1 + t**2), noise, solve=ss.Solve(steps=2))
    assert path.log_density is None
    np.testing.assert_array_equal(path.stats.steps, np.full(4, 2))


# ------------------------------------------------------------------ samples stand for themselves


@pytest.mark.slow
def test_samples_do_not_know_their_batch():
    """Probes and Brownian paths are keyed by the sample's index: blocks of 3 give what one block
    gives, to the last rounding, and a larger batch begins with the smaller."""
    process, noise = laws.between_levels(ss.EDM())
    many = jnp.concatenate([noise, noise / 2])
    score, key = ss.exact_score(process, laws.mixture()), jax.random.key(4)

    def flow(noise, size):
        solve = ss.Solve(steps=10, tau_min=0.1, batch_size=size)
        path = ss.sample_ode(process, score, noise, trace=ss.Hutchinson(), key=key, solve=solve)
        noisy = ss.sample_sde(process, score, noise, key=key, solve=solve)
        return np.column_stack([np.asarray(a) for a in (path.x, path.log_density, noisy.x)])

    whole = flow(many, 256)
    laws.close(flow(many, 3), whole, relative=1e-13)
    laws.close(flow(noise, 256), whole[:4], relative=1e-13)
    assert np.ptp(whole[:, 2] - flow(many[::-1], 256)[::-1, 2]) > 1e-3  # each has its own probe


# ------------------------------------------------------------------ the reverse SDE


@pytest.fixture(scope="module")
def diffused():
    """Draws of LAW by the reverse SDE, 160 steps, from its noised law's own noise."""
    process, count = ss.VP(), 20_000
    noise = process.sample_prior((count, 2), key=jax.random.key(0))
    return ss.sample_sde(
        process,
        ss.exact_score(process, laws.mixture()),
        noise,
        key=jax.random.key(1),
        solve=ss.Solve(steps=160, batch_size=count),
    ).x


def test_sde_draws_the_law(diffused):
    """Means and covariances within 5 standard errors, and a bias of second order in the step: below
    0.5 % of the spread at 160 steps."""
    draws, law = np.asarray(diffused), laws.LAW
    spread = np.sqrt(np.trace(law.covariance()))
    error = 5 * spread / np.sqrt(len(draws)) + 0.005 * spread
    laws.close(draws.mean(0), law.mean(), absolute=error)
    products = (draws - law.mean())[:, :, None] * (draws - law.mean())[:, None, :]
    error = 5 * products.std(0).max() / np.sqrt(len(draws)) + 0.005 * spread**2
    laws.close(products.mean(0), law.covariance(), absolute=error)


def test_sde_draws_both_modes(diffused):
    """Shares of half-planes, which means and covariances do not fix."""
    direct = laws.LAW.sample(np.random.default_rng(0), len(diffused))
    for direction in np.random.default_rng(1).normal(size=(4, 2)):
        along = [np.asarray(draws) @ direction for draws in (diffused, direct)]
        for quantile in (0.1, 0.5, 0.9):
            level = np.quantile(along[1], quantile)
            share = np.mean(along[0] < level)
            error = np.sqrt(2 * quantile * (1 - quantile) / len(direct))
            assert abs(share - quantile) < 5 * error + 0.005


def one_step(denoised, noise, top=2.0, bottom=0.5):
    """One Euler step of a score whose denoiser is constant."""
    process = ss.EDM(t_max=top)
    score = ss.from_denoiser(process, jax.tree_util.Partial(_constant, denoised))
    solve = ss.Solve(steps=1, solver=diffrax.Euler(), tau_min=bottom)
    return ss.sample_sde(process, score, noise, key=jax.random.key(2), solve=solve).x


def _constant(value, t, x):
    return value


def test_euler_s_step_is_the_ancestral_one():
    """p(x_s | x_t, x_0 = D) = N(D + (s/t)^2 (x_t - D), s^2 (1 - (s/t)^2)) at s < t."""
    noise = jnp.asarray(2 * np.random.default_rng(4).normal(size=(4096, 2)))
    ratio = (0.5 / 2.0) ** 2
    there, here = jnp.array([0.3, -1.0]), jnp.array([0.0, 2.0])
    first, second = one_step(there, noise), one_step(here, noise)
    laws.close(first - second, np.tile((1 - ratio) * (there - here), (4096, 1)), absolute=1e-12)
    moved = one_step(there, noise + 1.0)
    laws.close(moved - first, np.full((4096, 2), ratio), absolute=1e-12)
    drawn = np.asarray(first - (there + ratio * (noise - there)))
    variance, error = 0.5**2 * (1 - ratio), np.sqrt(2 / drawn.size)
    laws.close(drawn.mean(0), np.zeros(2), absolute=5 * np.sqrt(variance / 4096))
    laws.close(drawn.var(), variance, absolute=5 * error * variance)


def heun_variance(variance, start, clock):
    """What Heun's steps on dz = s^2 / (1 + s^2 w) z dw + dB make of the variance `start` of z, as
    noise x = z / w of N(0, s^2): each step is linear in z and in its increment."""
    for here, there in itertools.pairwise(clock):
        step = there - here
        first, last = (variance / (1 + variance * w) for w in (here, there))
        grown = 1 + step / 2 * (first + last * (1 + step * first))
        start = grown**2 * start + (1 + step / 2 * last) ** 2 * step
    return start / clock[-1] ** 2


def karras(top, bottom, steps):
    return np.linspace(top ** (1 / 7), bottom ** (1 / 7), steps + 1) ** 7


def test_weak_order_of_heun_on_the_sde():
    """The variance of a Gaussian's samples is Heun's own, within 5 standard errors of 2^18 paths
    (each coordinate is one), and Heun's own errs to second order in the step."""
    process, variance, steps = ss.EDM(t_max=10.0), 0.25, 12
    score = ss.from_denoiser(process, jax.tree_util.Partial(_shrink, variance))
    noise = process.sample_prior((256, 1024), key=jax.random.key(5))
    solve = ss.Solve(steps=steps, tau_min=0.1)
    x = ss.sample_sde(process, score, noise, key=jax.random.key(6), solve=solve).x

    def own(steps):
        clock = karras(10.0, 0.1, steps) ** -2.0
        return heun_variance(variance, 100 * clock[0] ** 2, clock)

    laws.close(np.var(x), own(steps), relative=5 * np.sqrt(2 / noise.size))
    limit = own(20_000)
    errors = [abs(own(steps) - limit) for steps in (100, 200)]
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.1, errors
    assert abs(own(steps) - limit) > 20 * np.sqrt(2 / noise.size) * limit  # Heun's, not the limit


def _shrink(variance, t, x):
    return variance / (variance + t**2) * x


def log_density_errors(rule, steps):
    """Of 512 samples of LAW along the reverse SDE, against the closed form where each ends."""
    process, _ = laws.between_levels(ss.EDM())
    noise = laws.TOP * jnp.asarray(np.random.default_rng(7).normal(size=(512, 2)))
    path = ss.sample_sde(
        process,
        ss.exact_score(process, laws.mixture()),
        noise,
        key=jax.random.key(8),
        trace=rule,
        prior=laws.mixture(),
        solve=ss.Solve(steps=steps, tau_min=laws.BOTTOM, rho=1000.0),  # even in log tau
    )
    return np.asarray(path.log_density) - laws.LAW.noised(1.0, laws.BOTTOM).log_density(
        np.asarray(path.x)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "order"), [(ss.Exact(), 1.0), (ss.Ito(), 0.5)])
def test_strong_order_of_the_log_density_on_the_sde(rule, order):
    """Law 4 on the SDE, 100 and 400 steps: the slope of the log of the root mean square. Its
    standard error comes from the sample's fourth moments; 0.1 is for higher orders."""
    slope, variance = 0.0, 0.0
    for steps, sign in ((100, 1), (400, -1)):
        squares = np.asarray(log_density_errors(rule, steps)) ** 2
        slope += sign * np.log(squares.mean()) / 2 / np.log(4)
        variance += squares.var() / len(squares) / (2 * squares.mean() * np.log(4)) ** 2
    assert variance < 0.1**2
    assert abs(slope - order) < 4 * np.sqrt(variance) + 0.1, (slope, np.sqrt(variance))

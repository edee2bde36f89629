"""Forward processes against the moment equations of their textbook coefficients."""

import diffrax
import jax
import jax.numpy as jnp
import laws
import numpy as np
import oracles
import pytest
from scipy.stats import multivariate_normal

import scoresens as ss
from scoresens.laws.processes import by_name


def _geometric(t):
    """tau and its rate for five steps from 0.02 to 40: linear to the first, then exponential."""
    growth = np.log(2000.0) / 0.8
    tau = 0.1 * t if t < 0.2 else 0.02 * np.exp(growth * (t - 0.2))
    return tau, 0.1 if t < 0.2 else growth * tau


# f(t, x) / x and g(t) as the papers write them, and the variance at t = 0.
TEXTBOOK = {
    "VP": (lambda t: -(0.1 + 19.9 * t) / 2, lambda t: np.sqrt(0.1 + 19.9 * t), 0.0),
    "SubVP": (
        lambda t: -(0.1 + 19.9 * t) / 2,
        lambda t: np.sqrt((0.1 + 19.9 * t) * -np.expm1(-2 * (0.1 * t + 19.9 * t**2 / 2))),
        0.0,
    ),
    "VE": (lambda t: 0.0, lambda t: 1e-3 * 5e4**t * np.sqrt(2 * np.log(5e4)), 1e-6),
    "EDM": (lambda t: 0.0, lambda t: np.sqrt(2 * t), 0.0),
    "OU": (lambda t: -1.0, lambda t: np.sqrt(2.0), 0.0),
    "Cosine": (
        lambda t: -np.pi / 2 * np.tan(np.pi * t / 2),
        lambda t: np.sqrt(np.pi * np.tan(np.pi * t / 2)),
        0.0,
    ),
    "FlowMatching": (lambda t: -1 / (1 - t), lambda t: np.sqrt(2 * t / (1 - t)), 0.0),
    "DiscreteVP": (
        lambda t: -_geometric(t)[0] * _geometric(t)[1] / (1 + _geometric(t)[0] ** 2),
        lambda t: np.sqrt(2 * _geometric(t)[0] * _geometric(t)[1] / (1 + _geometric(t)[0] ** 2)),
        0.0,
    ),
}
PARTS = [0.05, 0.4, 0.9]


@pytest.fixture(scope="module", params=laws.PROCESSES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def process(name):
    return laws.PROCESSES[name]


@pytest.mark.parametrize("part", PARTS)
def test_moments_solve_the_forward_equation(name, process, part):
    rate, diffusion, variance = TEXTBOOK[name]
    t = part * process.t_max
    expected = oracles.moments(rate, diffusion, t, variance)
    laws.close([process.alpha(t), process.variance(t)], expected, relative=1e-8)  # solve_ivp's


@pytest.mark.parametrize("part", PARTS)
def test_drift_and_diffusion_are_the_textbook_s(name, process, part):
    rate, diffusion, _ = TEXTBOOK[name]
    t, x = part * process.t_max, jnp.array([1.0, -2.0])
    laws.close(process.drift(t, x), rate(t) * np.array([1.0, -2.0]), relative=1e-12)
    laws.close(process.diffusion(t), diffusion(t), relative=1e-10)


@pytest.mark.parametrize("part", PARTS)
def test_drift_and_diffusion_are_derivatives_of_the_scales(process, part):
    t, step = part * process.t_max, 1e-6
    log_rate, growth = (
        (f(t + step) - f(t - step)) / (2 * step) for f in (process.log_alpha, process.variance)
    )
    laws.close(process.drift(t, jnp.ones(1)), [log_rate], relative=1e-7, absolute=1e-7)
    expected = growth - 2 * log_rate * process.variance(t)
    laws.close(process.diffusion(t) ** 2, expected, relative=1e-7)


def test_time_inverts_the_noise_level(process):
    times = process.t_max * np.linspace(0.02, 1, 20)
    back = [process.time(process.noise_level(t)) for t in times]
    laws.close(back, times, relative=1e-12)


def test_noise_level_grows(process):
    levels = [process.noise_level(t) for t in process.t_max * np.linspace(0, 1, 50)]
    assert np.all(np.diff(levels) > 0)


def test_prior_log_density(process):
    x = np.random.default_rng(0).normal(size=3)
    found = process.prior_log_density(jnp.asarray(x))
    expected = multivariate_normal(np.zeros(3), float(process.prior_std) ** 2).logpdf(x)
    laws.close(found, expected, relative=1e-12)


def test_prior_is_the_noised_law_s_far_end(process):
    """Data of unit variance end with the prior's spread, to 1 / (2 tau^2), tau >= 50."""
    spread = np.sqrt(float(process.alpha(process.t_max)) ** 2 + process.variance(process.t_max))
    laws.close(process.prior_std, spread, relative=2.1e-4)


def test_draws_have_their_moments(process):
    count, key, y = 20_000, jax.random.key(0), jnp.array([1.0, -2.0])
    noise = process.sample_prior((count, 2), key=key)
    _has_moments(noise, np.zeros(2), float(process.prior_std))
    t = 0.3 * process.t_max
    draws = jax.vmap(lambda k: process.noised(t, y, key=k))(jax.random.split(key, count))
    alpha, sigma = laws.scales(process, t)
    _has_moments(draws, alpha * np.asarray(y), sigma)


def _has_moments(draws, mean, std):
    """Mean and variance within 5 standard errors."""
    count = len(draws)
    laws.close(np.mean(draws, 0), mean, absolute=5 * std / np.sqrt(count))
    laws.close(np.var(draws, 0), np.full(2, std**2), absolute=5 * std**2 * np.sqrt(2 / count))


def test_first_samples_of_a_larger_prior_batch():
    few, many = (ss.EDM().sample_prior((m, 2, 3), key=jax.random.key(1)) for m in (4, 9))
    np.testing.assert_array_equal(few, many[:4])


def test_canonical_frame_and_back(process):
    t, x = 0.3 * process.t_max, jnp.array([1.0, -2.0])
    hat = process.to_canonical(t, x)
    laws.close(hat, np.asarray(x) / float(process.alpha(t)), relative=1e-15)
    laws.close(process.from_canonical(t, hat), x, relative=1e-15)


def test_processes_are_pytrees_of_their_parameters(process):
    leaves, structure = jax.tree.flatten(process)
    assert jax.tree.unflatten(structure, leaves) == process
    rate = jax.grad(lambda p: p.log_alpha(0.3) + p.variance(0.3))(process)
    assert type(rate) is type(process)


def test_equality_is_a_plain_bool():
    """Also of arrays, which answer with arrays."""
    levels = np.geomspace(0.02, 40.0, 5)
    one = ss.DiscreteVP(levels)
    assert (one == ss.DiscreteVP(levels.copy())) is True
    assert (one == ss.DiscreteVP(2 * levels)) is False
    assert (one == ss.DiscreteVP(np.geomspace(0.02, 40.0, 6))) is False
    assert (one == ss.DiscreteVP(levels, t_max=0.5)) is False
    assert (ss.VP(t_max=0.5) == ss.VP(t_max=jnp.array(0.5))) is True
    assert (ss.VP() == ss.SubVP()) is False
    assert (ss.VP() != ss.VP(beta_min=0.2)) is True


def test_every_process_is_found_by_its_name():
    found = by_name()
    assert {name: found[name] for name in laws.PROCESSES} == {
        name: type(process) for name, process in laws.PROCESSES.items()
    }
    assert list(found)[:3] == ["VP", "SubVP", "VE"]


def test_parameters_have_derivatives():
    """d alpha / d beta_max of VP at t: -t^2/4 alpha."""
    rate = jax.grad(lambda p: p.alpha(0.5))(ss.VP()).beta_max
    laws.close(rate, -(0.5**2) / 4 * float(ss.VP().alpha(0.5)), relative=1e-12)


def _parameters(process):
    """Each parameter's place among the leaves, and a direction in it."""
    for i, leaf in enumerate(jax.tree.leaves(process)):
        yield i, np.random.default_rng(i).uniform(0.5, 1, size=np.shape(leaf)) * np.mean(leaf)


def _slopes(function, process, step=1e-5):
    """Derivatives of a function of the process along each direction, by reverse mode and by central
    differences."""
    leaves, structure = jax.tree.flatten(process)
    leaves = [jnp.asarray(leaf, float) for leaf in leaves]
    found = jax.jacrev(lambda leaves: function(structure.unflatten(leaves)))(leaves)
    for i, toward in _parameters(process):

        def at(scale, i=i, toward=toward):
            moved = [*leaves[:i], leaves[i] + scale * toward, *leaves[i + 1 :]]
            return np.asarray(function(structure.unflatten(moved)))

        back = np.tensordot(found[i], toward, np.ndim(toward))
        yield back, (at(step) - at(-step)) / (2 * step)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.97])
def test_scales_have_derivatives_in_every_parameter(process, part):
    """At the data end too, where sigma is 0; 1e-7: central differences."""
    t = part * float(process.t_max)

    def scales(process):
        rates = [process.diffusion(t), *process.drift(t, jnp.ones(1))]
        at = (process.log_alpha, process.variance, process.sigma, process.noise_level)
        return jnp.stack([*(jnp.asarray(f(t), float) for f in at), process.time(0.7), *rates])

    for found, expected in _slopes(scales, process, step=1e-6):
        laws.close(found, expected, absolute=1e-7 * (1 + np.abs(expected).max()))


def test_sigma_is_smooth_in_time_where_it_starts_as_a_line(process, name):
    """Beside those of VP and OU, which start as the root of t does."""
    if name not in {"VP", "OU"}:
        step = 1e-7 * process.t_max
        slope = jax.grad(process.sigma)(0.0)
        laws.close(slope, (process.sigma(step) - process.sigma(0.0)) / step, relative=1e-4)


def _network(t, x):
    return -jnp.tanh(x) / (1 + t)


@pytest.mark.slow
@pytest.mark.parametrize("process", [ss.VP(), ss.VE(sigma_min=0.2)], ids=["VP", "VE"])
def test_every_verb_has_derivatives_in_every_parameter(process):
    """By reverse mode through paths, adjoints and climbs, where the noise at t = 0 is 0, and where
    paths end at it; 1e-6 of the largest: central differences."""
    process, noise = laws.between_levels(process)
    data, change = laws.data_set(), laws.changes()["toward"][0]
    solve = ss.Solve(solver=diffrax.Euler(), steps=6, tau_min=0.1)
    t, key = process.time(0.5), jax.random.key(0)
    given = {"base": data, "solve": solve}
    pixel = ss.functionals.pixel(0)

    @jax.jit
    def answers(process):
        score = ss.from_denoiser(process, _network)
        sampled = ss.sample_ode(process, score, noise, trace=ss.Exact(), solve=solve)
        up = ss.encode(process, score, noise / 20, trace=ss.Exact(), solve=solve)
        noisy = ss.sample_sde(process, score, noise, key=key, solve=solve)
        slope = ss.score_sensitivity(process, score, change, t, noise / 20, **given)
        moved = ss.sample_sensitivity(process, score, change, noise, **given)
        pulled = ss.attribute(process, score, data, pixel, noise, **given)
        after = ss.counterfactual(process, score, change, noise, mass=0.5, **given)
        parts = (
            sampled[:2], up[:2], noisy.x, slope[:2], moved[:2], pulled.scores, after.x,
            process.sample_prior((2, 2), key=key), process.noised(t, noise[0], key=key),
        )  # fmt: skip
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(parts)])

    seed = np.random.default_rng(0).normal(size=answers(process).shape)
    seed = seed / (1 + np.abs(answers(process)))
    for found, expected in _slopes(lambda process: answers(process) @ seed, process):
        laws.close(found, expected, relative=1e-5, absolute=1e-6)


def test_noise_levels_in_float32():
    """expm1 and log1p keep the small noise levels: 1e-6 is 8 float32 roundings."""
    for process in laws.PROCESSES.values():
        t = np.float32(process.time(0.002))
        if t > 0:
            exact = float(process.noise_level(float(t)))
            laws.close(process.noise_level(jnp.float32(t)), exact, relative=1e-6)

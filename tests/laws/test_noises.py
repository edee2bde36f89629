"""Noise of other laws: densities, draws, and every verb that follows the flow, against scipy and
against flows of data that are truly others."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from scipy import stats

import scoresens as ss
from scoresens.laws.noises import Gaussian, Laplace, StudentT
from scoresens.models import ModelSettings, build, load, save
from scoresens.training.denoising import TrainSettings, couple, draw_batch

rng = np.random.default_rng(0)
N, D, H, TOP = 24, 3, 0.2, 20.0
POINTS = jnp.asarray(rng.normal(size=(N, D)))
WEIGHTS = rng.uniform(0.5, 1.5, N)
WEIGHTS /= WEIGHTS.sum()
NOISES = [StudentT(4.0), StudentT(40.0), Laplace()]
SHORT = ss.Solve(steps=20, tau_min=0.02)


def data(weights=WEIGHTS, points=POINTS, **kernel):
    return ss.Points(points, weights, H, **kernel)


def started(noise):
    process = ss.EDM(TOP, noise)
    return process, ss.exact_score(process, data()), process.sample_prior((3, D), key=KEY)


KEY = jax.random.key(0)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_the_density_of_student_t_is_scipys(size):
    x = rng.normal(size=size) * 3
    spread = 1.7
    law = stats.multivariate_t(np.zeros(size), spread * np.eye(size), df=4.0)
    expected = np.log(law.pdf(x))
    laws.close(StudentT(4.0).evaluate(np.sum(x**2), spread, size), expected, relative=1e-12)


def test_the_density_of_laplace_is_scipys_on_a_line_and_one_in_space():
    x = np.linspace(-4, 4, 9)
    found = jax.vmap(lambda x: Laplace().evaluate(jnp.square(x), 2.0, 1))(jnp.asarray(x))
    laws.close(found, -np.abs(x) - np.log(2), relative=1e-12)
    radii = np.linspace(0, 40, 40_001)
    inside = 4 * np.pi * radii**2 * np.exp(Laplace().evaluate(jnp.asarray(radii**2), 1.0, 3))
    laws.close(np.trapezoid(inside, radii), 1.0, absolute=1e-6)
    laws.close(np.trapezoid(inside * radii**2, radii), 3.0, absolute=1e-5)


@pytest.mark.parametrize("noise", [Gaussian(), *NOISES], ids=str)
def test_ratios_and_gains_are_differences_of_log_kernels(noise):
    excess, reference, spread, size = 1.3, 2.1, jnp.asarray(0.7), 5
    there = noise.evaluate(reference + excess, spread, size)
    apart = there - noise.evaluate(reference, spread, size)
    laws.close(noise.ratio(jnp.asarray(excess), reference, spread, size), apart, relative=1e-12)
    over = jnp.asarray(-0.0625)
    broad = 0.5 * size * jnp.log(2 * jnp.pi * (spread - over))
    found = noise.gain(jnp.asarray(reference + excess), spread, over, size)
    laws.close(found, there + broad, relative=1e-12)


def test_draws_have_the_radii_of_their_density():
    keys = jax.random.split(jax.random.key(1), 4000)

    def radii(noise):
        drawn = jax.vmap(lambda key: noise.draw(key, (2, 3), jnp.result_type(float)))(keys)
        return np.asarray(jnp.sum(drawn**2, (1, 2)))

    # PFGM++ (arXiv 2302.04265): the squared radius over D is a beta prime of N / 2 and D / 2.
    assert stats.kstest(radii(StudentT(5.0)) / 5.0, stats.betaprime(3, 2.5).cdf).pvalue > 0.01
    laplace = stats.gamma(6, scale=1 / np.sqrt(7))
    assert stats.kstest(np.sqrt(radii(Laplace())), laplace.cdf).pvalue > 0.01


def test_many_degrees_of_freedom_are_gaussian():
    process, score, noise = started(Gaussian())
    other, theirs, drawn = started(StudentT(1e7))
    laws.close(drawn, noise, relative=1e-3)
    found = ss.sample_ode(other, theirs, noise, solve=SHORT).x
    laws.close(found, ss.sample_ode(process, score, noise, solve=SHORT).x, relative=1e-4)
    laws.close(
        other.prior_log_density(noise[0]), process.prior_log_density(noise[0]), relative=1e-5
    )


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_log_densities_along_the_flow_are_the_laws_own(noise):
    process, score, start = started(noise)
    fine = ss.Solve(steps=400, tau_min=0.02)
    path = ss.sample(process, score, start, trace=ss.Exact(), prior=data(), solve=fine)
    tau = jnp.asarray(0.02)
    expected = jax.vmap(lambda x: data().noised_log_density(process, tau, x))(path.x)
    laws.close(path.log_density, expected, absolute=2e-3)


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_tangents_are_the_derivative_of_flows_of_other_data(noise):
    process, score, start = started(noise)
    new, eps = POINTS[:1] * 0.9 + 0.1, 1e-6
    options = {"base": data(), "solve": SHORT}
    tangent = ss.sample_sensitivity(process, score, ss.add(new), start, **options).tangent[:, 0]

    def flow(eps):
        points = jnp.concatenate([POINTS, new])
        changed = data(np.r_[(1 - eps) * WEIGHTS, eps], points)
        return ss.sample_ode(process, ss.exact_score(process, changed), start, solve=SHORT).x

    laws.close(tangent, (flow(eps) - flow(0.0)) / eps, relative=1e-4)
    whole = ss.counterfactual(process, score, ss.add(new), start, mass=0.3, **options).x[:, 0]
    laws.close(whole, flow(0.3), relative=1e-9)


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_attribution_is_the_tangent_of_each_point_wherever_the_points_are(noise):
    process, score, start = started(noise)
    along = ss.functionals.pixel(1)
    found = ss.attribute(process, score, data(), along, start, solve=SHORT).scores
    every = ss.add(POINTS)
    tangent = ss.sample_sensitivity(process, score, every, start, base=data(), solve=SHORT).tangent
    laws.close(found, tangent[..., 1], relative=1e-6)
    host = ss.Points.on_host(np.asarray(POINTS), WEIGHTS, H)
    laws.close(ss.attribute(process, score, host, along, start, solve=SHORT).scores, found,
               relative=1e-8)  # fmt: skip


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_the_derivative_of_losses_is_that_of_other_data(noise):
    process, score, _ = started(noise)
    options = {"levels": jnp.asarray([0.3, 1.0, 4.0]), "key": KEY, "draws": 3, "solve": SHORT}
    found = ss.loss_sensitivity(process, score, data(), POINTS[:2] + 0.1, **options)

    def loss(weights):
        other = ss.exact_score(process, data(weights))
        return ss.loss_sensitivity(process, other, data(weights), POINTS[:2] + 0.1, **options).loss

    eps = 1e-6
    changed = (1 - eps) * WEIGHTS + eps * np.eye(N)[4]
    laws.close(found.scores[:, 4], (loss(changed) - loss(WEIGHTS)) / eps, relative=1e-3)


def test_the_kernel_of_a_resolution_has_the_noise_at_its_heart():
    process, score, start = started(StudentT(6.0))
    coarse = data(resolution=0.05, temperature=2.0)
    found = ss.attribute(process, score, coarse, ss.functionals.pixel(0), start, solve=SHORT)
    plain = ss.attribute(ss.EDM(TOP), score, coarse, ss.functionals.pixel(0), start, solve=SHORT)
    scores, others = np.asarray(found.scores), np.asarray(plain.scores)
    assert np.max(np.abs(scores - others)) > 1e-3
    laws.close(scores @ WEIGHTS, np.zeros(3), absolute=1e-9)


def test_calibrate_finds_the_kernel_of_a_network_that_is_one():
    points = rng.normal(size=(300, 4)) @ np.diag([2.0, 1.0, 0.5, 0.3])
    process = ss.EDM(TOP, StudentT(12.0))
    known = ss.Points(jnp.asarray(points), width=0.5)
    score = ss.exact_score(process, known)
    found = ss.calibrate(process, score, known, key=KEY, count=64)
    assert 0.35 < found.width < 0.71
    assert found.error < 0.02


CHANGE, LAW = ss.add(POINTS[:1]), ss.GaussianMixture(jnp.ones(1), jnp.zeros((1, D)), jnp.ones(1))


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (lambda p, s, x: ss.sample_sde(p, s, x, key=KEY), "the reverse SDE"),
        (lambda p, s, x: ss.sample_sensitivity(
            p, s, CHANGE, x, base=data(), route=ss.Diffusion(KEY)), "the reverse SDE"),
        (lambda p, s, x: ss.counterfactual(
            p, s, CHANGE, x, mass=0.1, trace=ss.Exact()), "not its law's own flow"),
        (lambda p, s, x: ss.sample_sensitivity(
            p, s, CHANGE, x, base=ss.Smoothed(0.2), trace=ss.Exact()), "not its law's own flow"),
        (lambda p, s, x: ss.sample_sensitivity(
            p, s, ss.add(ss.Learned(p, s, (D,))), x, base=data(), trace=ss.Exact()), "Learned"),
        (lambda p, s, x: ss.score_residual(p, s, 1.0, x), "Fokker-Planck"),
        (lambda p, s, x: ss.exact_score(p, LAW), "noised in closed form by Gaussian"),
        (lambda p, s, x: ss.forward_paths(p, x, jnp.arange(2.0), key=KEY), "the forward SDE"),
        (lambda p, s, x: ss.sample_euler(
            p, s, x, jnp.asarray([2.0, 1.0]), route=ss.Diffusion(KEY)), "the reverse SDE"),
    ],
)  # fmt: skip
def test_what_needs_the_gradient_of_log_rho_is_refused(asked, why):
    with pytest.raises(ValueError, match=why):
        asked(*started(StudentT(5.0)))


@pytest.mark.parametrize("nu", [0.0, -1.0, np.nan, np.inf])
def test_degrees_of_freedom_are_positive(nu):
    with pytest.raises(ValueError, match=r"nu must be"):
        StudentT(nu)


def test_a_model_is_trained_on_its_noise_and_kept_with_it(tmp_path):
    settings = ModelSettings("mlp", 8, 1, degrees_of_freedom=3.0)
    model = build(settings, (4,), 0.5, key=KEY)
    assert model.process == ss.EDM(noise=StudentT(3.0))
    how = TrainSettings(batch_size=2000)
    images = jnp.zeros((5, 4), jnp.float32)
    batch = draw_batch(images, couple(5), KEY, how, model.noise)
    radii = np.asarray(jnp.sum(batch.noise**2, 1))
    assert stats.kstest(radii / 3.0, stats.betaprime(2, 1.5).cdf).pvalue > 0.01
    save(tmp_path / "model.safetensors", model, {})
    found, _ = load(tmp_path / "model.safetensors")
    assert found.process == model.process
    with pytest.raises(ValueError, match="nu must be"):
        ModelSettings("mlp", 8, 1, degrees_of_freedom=-2.0)

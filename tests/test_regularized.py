import dataclasses
import functools

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import scoresens as ss
from scoresens import planar, regularized
from scoresens.models.potential import PotentialMLP, ScoreMLP
from scoresens.regularized import (
    RegularizedSettings,
    clock,
    denoising_errors,
    regularized_step,
    squared_residuals,
    train_regularized,
)

PROCESS = ss.OU(theta=1.0, g=1.0, t_max=10.0)
QUICK = RegularizedSettings(steps=100, batch_size=32, collocation=16, learning_rate=3e-3)
train = functools.partial(train_regularized, progress=False)

# A Gaussian law, whose noised potential is a quadratic.
MEAN, VARIANCE = np.array([0.3, -1.0]), np.array([0.4, 1.5])


@functools.cache
def fresh(kind=PotentialMLP, size=2, seed=0):
    return jax.jit(lambda: kind(size, width=16, rngs=nnx.Rngs(seed)))()


def gaussian_potential(parameters, process, t, x):
    """log rho_t up to a constant, for data N(mean, diag variance)."""
    mean, variance = parameters
    alpha, noise = process.alpha(t), process.variance(t)
    total = alpha**2 * variance + noise
    return -0.5 * jnp.sum((x - alpha * mean) ** 2 / total + jnp.log(total))


def gaussian_score(parameters, process, t, x):
    return jax.grad(gaussian_potential, 3)(parameters, process, t, x)


def exact(form, process):
    parameters = jnp.asarray(MEAN), jnp.asarray(VARIANCE)
    return Partial(Partial(form), parameters, process)


def gaussian_draws(key, count):
    return MEAN + jnp.sqrt(VARIANCE) * jax.random.normal(key, (count, 2))


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def box(count, process=PROCESS, t_min=1e-2, seed=0):
    of_time, of_place = jax.random.split(jax.random.key(seed))
    t = jax.random.uniform(of_time, (count,), minval=t_min, maxval=process.t_max)
    return t, jax.random.uniform(of_place, (count, 2), minval=-3.5, maxval=3.5)


# ------------------------------------------------------------------ the two losses


@pytest.mark.parametrize("name", ["OU", "VP", "EDM"])
@pytest.mark.parametrize("form", [gaussian_potential, gaussian_score])
def test_loss_of_the_exact_law_is_its_closed_form(form, name):
    """d - sigma^2 E|s|^2, for each time."""
    process = laws.PROCESSES[name]
    errors = jax.jit(denoising_errors)
    for k, share in enumerate((0.01, 0.3, 0.9)):
        t = jnp.full(20_000, share * process.t_max)
        of_data, of_noise = jax.random.split(jax.random.key(k))
        x0 = gaussian_draws(of_data, 20_000)
        noise = jax.random.normal(of_noise, x0.shape)
        found = np.asarray(errors(process, exact(form, process), x0, t, noise))
        signal = process.alpha(t[0]) ** 2 * VARIANCE
        expected = np.sum(signal / (signal + process.variance(t[0])))
        assert abs(found.mean() - expected) < 5 * found.std() / np.sqrt(len(found))


def test_gradient_vanishes_at_the_exact_law_and_nowhere_near():
    """In expectation over batches, within standard errors."""
    times = clock(PROCESS, 1e-3, "score")
    settings = dataclasses.replace(QUICK, batch_size=2000, residual_weight=0.0, t_min=1e-3)

    @jax.jit
    def gradient(parameters, key):
        def loss(parameters):
            model = Partial(Partial(gaussian_potential), parameters, PROCESS)
            return regularized._loss(model, PROCESS, Partial(gaussian_draws), times, key, settings)

        return jax.grad(loss, has_aux=True)(parameters)[0]

    keys = jax.random.split(jax.random.key(0), 60)
    for shift, vanishes in ((0.0, True), (0.1, False)):
        at = jnp.asarray(MEAN) + shift, jnp.asarray(VARIANCE) * (1 + shift)
        found = np.concatenate(jax.lax.map(functools.partial(gradient, at), keys), 1)
        errors = np.abs(found.mean(0)) / (found.std(0, ddof=1) / np.sqrt(len(keys)))
        assert (errors < 5).all() if vanishes else (errors > 20).all()


@pytest.mark.parametrize("form", [gaussian_potential, gaussian_score])
def test_residual_of_the_exact_law_is_zero_and_of_another_its_formula(form):
    t, x = box(200)
    residuals = jax.jit(squared_residuals)
    assert np.max(residuals(PROCESS, exact(form, PROCESS), t, x)) < 1e-18

    def halved(t, x):
        return 0.5 * exact(form, PROCESS)(t, x)

    found = residuals(PROCESS, Partial(halved), t, x)
    verb = ss_residual(form)
    direct = verb(PROCESS, halved, t, x)
    laws.close(found, jnp.sum(direct.reshape(len(t), -1) ** 2, 1), relative=1e-12)
    assert np.min(found) > 1e-12


def ss_residual(form):
    from scoresens import fokker_planck

    potential = form is gaussian_potential
    return fokker_planck.fokker_planck_residual if potential else fokker_planck.score_residual


@pytest.mark.parametrize("name", ["OU", "VP", "VE"])
@pytest.mark.parametrize("weighting", ["score", "noise"])
def test_clock_is_the_law_of_the_times(name, weighting):
    """Means of functions of t under q, times c, are integrals of p lambda / sigma^2."""
    process, t_min = laws.PROCESSES[name], 1e-4
    times = clock(process, t_min, weighting)
    t_max = float(process.t_max)
    t = t_min + (t_max - t_min) * np.linspace(0, 1, 2_000_001)
    density = 2 * (t_max - t) / (t_max - t_min) ** 2
    if weighting == "score":
        density = density / np.asarray(process.variance(jnp.asarray(t)))
    laws.close(times.weight, np.trapezoid(density, t), relative=1e-4)
    drawn = np.exp(np.interp(np.arange(0.5, 10_000) / 10_000, *times[1::-1]))
    for power in (0.5, 1.0, 2.0):
        expected = np.trapezoid(density * t**power, t) / np.trapezoid(density, t)
        laws.close((drawn**power).mean(), expected, relative=2e-3)


def test_both_ways_of_drawing_times_are_one_loss():
    """c E_q |sigma s + n|^2 is E_p |s + n / sigma|^2 with p = Beta(1, 2), at any model."""
    model, t_min = fresh(), 0.05
    times = clock(PROCESS, t_min, "score")
    settings = dataclasses.replace(QUICK, batch_size=200_000, residual_weight=0.0, t_min=t_min)
    draw = Partial(gaussian_draws)
    ours = jax.jit(regularized._loss, static_argnums=5)(
        model, PROCESS, draw, times, jax.random.key(0), settings
    )[0]
    keys = jax.random.split(jax.random.key(1), 3)
    t = t_min + (PROCESS.t_max - t_min) * jax.random.beta(keys[0], 1.0, 2.0, (200_000,))
    x0, noise = draw(keys[1], 200_000), jax.random.normal(keys[2], (200_000, 2))
    plain = np.asarray(jax.jit(denoising_errors)(PROCESS, model, x0, t, noise))
    plain = plain / np.asarray(PROCESS.variance(t))
    assert abs(ours - plain.mean()) < 7 * plain.std() / np.sqrt(len(plain))  # both are noisy


@pytest.mark.parametrize("where", ["box", "forward"])
def test_points_of_collocation_are_where_they_should_be(where):
    settings = dataclasses.replace(QUICK, collocation=50_000, where=where, half_width=2.0)
    x0 = gaussian_draws(jax.random.key(1), 5000)
    t, x = jax.jit(regularized._collocation, static_argnums=3)(
        PROCESS, x0, jax.random.key(0), settings
    )
    laws.close(np.sort(t), np.linspace(0, 10, 50_000), absolute=4e-4)
    if where == "box":
        assert np.max(np.abs(x)) <= 2 and np.max(np.abs(x)) > 1.99
        np.testing.assert_allclose(np.std(x, 0), 4 / np.sqrt(12), rtol=0.02)
        return
    signal = np.exp(-2 * t)[:, None] * np.cov(np.asarray(x0).T)[[0, 1], [0, 1]]
    centred = x - np.exp(-t)[:, None] * np.mean(x0, 0)
    standard = centred / np.sqrt(signal + np.asarray(PROCESS.variance(t))[:, None])
    np.testing.assert_allclose(np.mean(standard, 0), 0, atol=5 / np.sqrt(50_000) + 0.01)
    np.testing.assert_allclose(np.var(standard, 0), 1, atol=5 * np.sqrt(2 / 50_000) + 0.01)


# ------------------------------------------------------------------ training


def test_weight_zero_is_score_matching_alone():
    """Nothing of the residual's settings changes the network."""
    plain = dataclasses.replace(QUICK, residual_weight=0.0)
    other = dataclasses.replace(plain, collocation=3, half_width=1.0, where="forward")
    data, key = planar.sampler("blob"), jax.random.key(0)
    found = [train(fresh(), PROCESS, data, key=key, settings=s) for s in (plain, other)]
    assert same(found[0].model, found[1].model) and found[0].residuals is None
    penalised = train(fresh(), PROCESS, data, key=key, settings=QUICK)
    assert not same(penalised.model, found[0].model)
    assert penalised.residuals.shape == penalised.losses.shape == (2,)


def test_one_step_follows_the_gradient_of_the_sum():
    """Adam's first step is the learning rate times the sign of the gradient; here of L_DSM and of
    w_R L_R, each taken by itself."""
    model, data, key = fresh(), planar.sampler("blob"), jax.random.key(3)
    times = clock(PROCESS, QUICK.t_min, "score")

    def loss(model, weight):
        settings = dataclasses.replace(QUICK, residual_weight=weight)
        found = regularized._loss(model, PROCESS, data, times, key, settings)
        return found[0]

    gradients = [jax.jit(jax.grad(loss), static_argnums=1)(model, w) for w in (0.0, 1.0, 3.0)]
    residual = jax.tree.map(lambda a, b: b - a, *gradients[:2])
    expected = jax.tree.map(lambda a, r: a + 3 * r, gradients[0], residual)
    for a, b in zip(jax.tree.leaves(gradients[2]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1e-6, float(np.abs(a).max())))
    assert max(float(np.abs(r).max()) for r in jax.tree.leaves(residual)) > 1e-3


@pytest.mark.parametrize("kind", [PotentialMLP, ScoreMLP])
def test_training_lowers_the_loss_and_the_penalty_the_residual(kind):
    """From one start and on one set of draws; a score of 100 steps is not good, only better."""
    data, key = planar.sampler("blob"), jax.random.key(0)
    settings = dataclasses.replace(QUICK, steps=300, batch_size=64, collocation=64)
    t, x = box(2000)
    found = {}
    for weight in (0.0, 10.0):
        chosen = dataclasses.replace(settings, residual_weight=weight)
        result = train(fresh(kind), PROCESS, data, key=key, settings=chosen)
        assert result.losses[-1] < 0.8 * result.losses[0]
        found[weight] = float(jnp.mean(jax.jit(squared_residuals)(PROCESS, result.model, t, x)))
    assert found[10.0] < 0.5 * found[0.0]


def test_one_key_gives_one_network_and_leaves_the_start_alone():
    start = fresh()
    before = jax.tree.map(np.array, start)
    points = np.asarray(planar.sample_law("checker", jax.random.key(5), 40), np.float32)
    runs = [
        train(start, PROCESS, points, key=jax.random.key(k), settings=QUICK) for k in (0, 0, 1)
    ]
    assert same(runs[0].model, runs[1].model) and not same(runs[0].model, runs[2].model)
    np.testing.assert_array_equal(runs[0].losses, runs[1].losses)
    assert same(start, before)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(runs[0].model))


def test_repeated_training_compiles_once():
    train(fresh(), PROCESS, planar.sampler("blob"), key=jax.random.key(0), settings=QUICK)
    before = regularized_step._cache_size()
    for seed in (1, 2):
        model, key = fresh(seed=seed), jax.random.key(seed)
        process = dataclasses.replace(PROCESS, g=1.0 + seed)
        train(model, process, planar.sampler("blob"), key=key, settings=QUICK)
    assert regularized_step._cache_size() == before


def test_progress_shows_rate_and_loss(capsys):
    data, key = planar.sampler("blob"), jax.random.key(0)
    train_regularized(fresh(), PROCESS, data, key=key, settings=QUICK)
    shown = capsys.readouterr().err
    assert "100/100" in shown and "step/s" in shown and "loss=" in shown


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "steps must be positive"),
        ("batch_size", 33, "batch_size must be even, came 33"),
        ("learning_rate", float("nan"), "learning_rate must be positive"),
        ("residual_weight", -0.1, "residual_weight must be 0 or greater, came -0.1"),
        ("residual_weight", float("inf"), "residual_weight must be 0 or greater"),
        ("collocation", 0, "collocation must be positive"),
        ("half_width", -1.0, "half_width must be positive"),
        ("t_min", 0.0, "t_min must be positive"),
        ("where", "ball", "where must be box or forward, came 'ball'"),
        ("weighting", "snr", "weighting must be score or noise, came 'snr'"),
    ],
)
def test_settings_refuse(field, value, message):
    with pytest.raises(ValueError, match=message):
        RegularizedSettings(**{field: value})


def test_training_refuses_what_does_not_fit():
    key, points = jax.random.key(0), np.full((5, 2), 3.75)
    run = functools.partial(train, key=key, settings=QUICK)
    with pytest.raises(ValueError, match=r"half_width must be at least .* 3.75, came 3.5: widen"):
        run(fresh(), PROCESS, points)
    with pytest.raises(ValueError, match=r"expected one flat sample of shape \(2,\), came \(3,\)"):
        run(fresh(), PROCESS, np.ones((5, 3)))
    with pytest.raises(ValueError, match="data has 1 entries that are NaN or infinite"):
        run(fresh(), PROCESS, np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="model.* must return an array of x's shape"):
        run(lambda t, x: jnp.ones(3), PROCESS, np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"must return draws \[count, \*shape\], came \(16,\)"):
        run(fresh(), PROCESS, lambda key, count: jnp.ones(count))
    with pytest.raises(ValueError, match="t_min must be above 0 and below t_max 1e-06"):
        run(fresh(), ss.OU(t_max=1e-6), np.ones((5, 2)))


def test_points_outside_of_a_box_that_is_not_used_are_welcome():
    points, key = np.full((5, 2), 3.75), jax.random.key(0)
    for change in ({"where": "forward"}, {"residual_weight": 0.0}):
        settings = dataclasses.replace(QUICK, steps=2, **change)
        assert np.isfinite(train(fresh(), PROCESS, points, key=key, settings=settings).losses).all()


def test_training_stops_at_a_loss_that_is_not_finite():
    draw = Partial(lambda key, count: jnp.full((count, 2), jnp.inf))
    with pytest.raises(FloatingPointError, match="became nan by step 50: lower the learning rate"):
        train(fresh(), PROCESS, draw, key=jax.random.key(0), settings=QUICK)

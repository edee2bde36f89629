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
from scoresens.laws import planar
from scoresens.models.potential import PotentialMLP, ScoreMLP
from scoresens.training import residual
from scoresens.training.residual import (
    RegularizedSettings,
    clock,
    denoising_errors,
    regularized_step,
    squared_residuals,
    train_regularized,
)

PROCESS = ss.OU(theta=1.0, g=1.0, t_max=10.0)
QUICK = RegularizedSettings(steps=100, batch_size=32, collocation=16, residual_weight=10.0)
PLAIN = dataclasses.replace(QUICK, residual_weight=0.0)
BLOB = planar.sampler("blob")
KEY = jax.random.key(0)
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

    def loss(parameters, key):
        model = Partial(Partial(gaussian_potential), parameters, PROCESS)
        return residual._loss(model, PROCESS, Partial(gaussian_draws), times, key, settings)[0]

    @jax.jit
    def gradients(parameters):
        keys = jax.random.split(jax.random.key(0), 60)
        return jnp.concatenate(jax.lax.map(lambda key: jax.grad(loss)(parameters, key), keys), 1)

    for shift, vanishes in ((0.0, True), (0.2, False)):
        at = jnp.asarray(MEAN) + shift, jnp.asarray(VARIANCE) * (1 + shift)
        found = np.asarray(gradients(at))
        errors = np.abs(found.mean(0)) / (found.std(0, ddof=1) / np.sqrt(len(found)))
        assert (errors < 5).all() if vanishes else errors.max() > 20, errors


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
    from scoresens.fokker_planck import residuals

    potential = form is gaussian_potential
    return residuals.fokker_planck_residual if potential else residuals.score_residual


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
    drawn = np.exp(np.interp(np.arange(0.5, 10_000) / 10_000, times.cumulative, times.log_times))
    for power in (0.5, 1.0, 2.0):
        expected = np.trapezoid(density * t**power, t) / np.trapezoid(density, t)
        laws.close((drawn**power).mean(), expected, relative=2e-3)


def test_both_ways_of_drawing_times_are_one_loss():
    """c E_q |sigma s + n|^2 is E_p |s + n / sigma|^2 with p = Beta(1, 2), at any model."""
    count, t_min = 50_000, 0.05
    model = Partial(Partial(lambda t, x: -0.4 * jnp.sum(x**2) + jnp.sin(x[0] - t)))
    times, draw = clock(PROCESS, t_min, "score"), Partial(gaussian_draws)
    settings = dataclasses.replace(QUICK, batch_size=count, residual_weight=0.0, t_min=t_min)
    errors = jax.jit(denoising_errors)
    x0, t, noise = residual._batch(draw, times, jax.random.key(0), settings)
    ours = float(times.weight) * np.asarray(errors(PROCESS, model, x0, t, noise))
    keys = jax.random.split(jax.random.key(1), 3)
    t = t_min + (PROCESS.t_max - t_min) * jax.random.beta(keys[0], 1.0, 2.0, (count,))
    x0, noise = draw(keys[1], count), jax.random.normal(keys[2], (count, 2))
    plain = np.asarray(errors(PROCESS, model, x0, t, noise) / PROCESS.variance(t))
    error = np.hypot(plain.std(), np.sqrt(2) * ours.std()) / np.sqrt(count)  # ours are pairs
    assert abs(ours.mean() - plain.mean()) < 5 * error


@pytest.mark.parametrize("where", ["box", "forward"])
def test_points_of_collocation_are_where_they_should_be(where):
    settings = dataclasses.replace(QUICK, collocation=50_000, where=where, half_width=2.0)
    x0 = gaussian_draws(jax.random.key(1), 5000)
    t, x, weight = jax.jit(residual._collocation, static_argnums=3)(
        PROCESS, x0, jax.random.key(0), settings
    )
    assert np.min(t) >= QUICK.t_min and np.max(t) <= 10
    for power in (0, 1, 2):  # as uniform times have them
        laws.close(jnp.mean(weight * t**power), 10**power / (1 + power), relative=1e-3)
    assert np.mean(t < 0.1) > 0.3  # where the residual is largest
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


def test_loss_is_the_sum_of_its_parts():
    """And score matching alone for weight 0, whatever the residual's settings are."""
    model, times = fresh(), clock(PROCESS, QUICK.t_min, "score")
    other = dataclasses.replace(PLAIN, collocation=3, half_width=1.0, where="forward")

    @jax.jit
    def evaluate(key):
        found = [
            residual._loss(model, PROCESS, BLOB, times, key, settings)
            for settings in (QUICK, PLAIN, other)
        ]
        for_batch, for_points = jax.random.split(key)
        x0, t, noise = residual._batch(BLOB, times, for_batch, QUICK)
        matching = times.weight * jnp.mean(denoising_errors(PROCESS, model, x0, t, noise))
        t, x, weight = residual._collocation(PROCESS, x0, for_points, QUICK)
        penalty = jnp.mean(weight * squared_residuals(PROCESS, model, t, x))
        return found, matching, penalty

    ((whole, parts), *alone), matching, penalty = evaluate(KEY)
    laws.close(parts, np.array([matching, penalty]), relative=1e-12)
    laws.close(whole, matching + 10 * penalty, relative=1e-12)
    for loss, (again, nothing) in alone:
        laws.close(loss, matching, relative=1e-12)
        assert again == loss and nothing == 0


def mean_errors(models, count=4000):
    """L_DSM / c of several networks on one large batch."""
    settings = dataclasses.replace(QUICK, batch_size=count)
    x0, t, noise = residual._batch(BLOB, clock(PROCESS, 1e-3, "score"), KEY, settings)
    errors = jax.jit(denoising_errors)
    return [float(jnp.mean(errors(PROCESS, model, x0, t, noise))) for model in models]


def mean_residuals(models):
    t, x = box(2000)
    residuals = jax.jit(squared_residuals)
    return [float(jnp.mean(residuals(PROCESS, model, t, x))) for model in models]


@pytest.mark.slow
def test_training_lowers_the_loss_and_the_penalty_the_residual():
    """From one start and on one set of draws; 100 steps make no good score, only a better one."""
    plain, penalised = (
        train(fresh(), PROCESS, BLOB, key=KEY, settings=settings) for settings in (PLAIN, QUICK)
    )
    assert plain.residuals is None and plain.losses.shape == (2,)
    assert penalised.residuals.shape == penalised.losses.shape == (2,)
    start, alone, held = mean_errors([fresh(), plain.model, penalised.model])
    assert alone < 0.8 * start and alone < held
    alone, held = mean_residuals([plain.model, penalised.model])
    assert held < 0.5 * alone


@pytest.mark.slow
def test_a_score_network_is_trained_on_the_residual_of_its_own_equation():
    start = fresh(ScoreMLP)
    result = train(start, PROCESS, BLOB, key=KEY, settings=QUICK)
    whole = [
        4 * error + 10 * residual  # c is about 4
        for error, residual in zip(
            mean_errors([start, result.model]), mean_residuals([start, result.model]), strict=True
        )
    ]
    assert whole[1] < 0.8 * whole[0]
    assert isinstance(result.model, ScoreMLP) and result.residuals[-1] < result.residuals[0]


@pytest.mark.slow
def test_one_key_gives_one_network_and_leaves_the_start_alone():
    start = fresh()
    before = jax.tree.map(np.array, start)
    runs = [train(start, PROCESS, BLOB, key=jax.random.key(k), settings=QUICK) for k in (0, 0, 1)]
    assert same(runs[0].model, runs[1].model) and not same(runs[0].model, runs[2].model)
    np.testing.assert_array_equal(runs[0].losses, runs[1].losses)
    assert same(start, before)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(runs[0].model))


@pytest.mark.slow
def test_repeated_training_compiles_once():
    train(fresh(), PROCESS, BLOB, key=KEY, settings=QUICK)
    count = regularized_step._cache_size  # pyright: ignore[reportAttributeAccessIssue]
    before = count()
    for seed in (1, 2):
        process = dataclasses.replace(PROCESS, g=1.0 + seed)
        train(fresh(seed=seed), process, BLOB, key=jax.random.key(seed), settings=QUICK)
    assert count() == before


def test_progress_shows_rate_and_loss(capsys):
    train_regularized(fresh(), PROCESS, BLOB, key=KEY, settings=QUICK)
    shown = capsys.readouterr().err
    assert "100/100" in shown and "step/s" in shown and "loss=" in shown


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "steps must be positive"),
        ("batch_size", 33, "batch_size must be even, got 33"),
        ("learning_rate", float("nan"), "learning_rate must be positive"),
        ("residual_weight", -0.1, "residual_weight must be 0 or greater, got -0.1"),
        ("residual_weight", float("inf"), "residual_weight must be 0 or greater"),
        ("collocation", 0, "collocation must be positive"),
        ("half_width", -1.0, "half_width must be positive"),
        ("t_min", 0.0, "t_min must be positive"),
        ("where", "ball", "where must be box or forward, got 'ball'"),
        ("weighting", "snr", "weighting must be score or noise, got 'snr'"),
    ],
)
def test_settings_refuse(field, value, message, unchecked_annotations):
    with pytest.raises(ValueError, match=message):
        RegularizedSettings(**{field: value})


def test_training_refuses_what_does_not_fit(unchecked_annotations):
    run = functools.partial(train, key=KEY, settings=QUICK)
    with pytest.raises(ValueError, match=r"half_width must be at least .* 3.75, got 3.5: widen"):
        run(fresh(), PROCESS, np.full((5, 2), 3.75))
    with pytest.raises(ValueError, match=r"expected one flat sample of shape \(2,\), got \(3,\)"):
        run(fresh(), PROCESS, np.ones((5, 3)))
    with pytest.raises(ValueError, match="data has 1 entries that are NaN or infinite"):
        run(fresh(), PROCESS, np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match=r"model.* must return an array of x's shape"):
        run(lambda t, x: jnp.ones(3), PROCESS, np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"must return draws \[count, \*shape\], got \(16,\)"):
        run(fresh(), PROCESS, lambda key, count: jnp.ones(count))
    with pytest.raises(ValueError, match="t_min must be above 0 and below t_max 1e-06"):
        run(fresh(), ss.OU(t_max=1e-6), np.ones((5, 2)))


@pytest.mark.parametrize("change", [{"where": "forward"}, {"residual_weight": 0.0}])
def test_points_are_drawn_whole_and_may_lie_outside_of_a_box_that_is_not_used(change):
    points = np.arange(10.0).reshape(5, 2)
    draw = residual._check_data(points, dataclasses.replace(QUICK, **change))
    drawn = np.asarray(draw(KEY, 20_000))
    which, counts = np.unique(drawn[:, 0], return_counts=True)
    np.testing.assert_array_equal(which, points[:, 0])
    np.testing.assert_array_equal(drawn[:, 1], drawn[:, 0] + 1)  # whole points are drawn
    np.testing.assert_allclose(counts / 20_000, 0.2, atol=5 * np.sqrt(0.16 / 20_000))


@pytest.mark.slow
def test_training_stops_at_a_loss_that_is_not_finite():
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, fresh())
    with pytest.raises(FloatingPointError, match="became nan by step 50: lower the learning rate"):
        train(broken, PROCESS, BLOB, key=KEY, settings=QUICK)

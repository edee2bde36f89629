import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scoresens import models
from scoresens.datasets.images import Dataset
from scoresens.models import Denoiser, ModelSettings, build
from scoresens.training import denoising
from scoresens.training.denoising import (
    TrainSettings,
    couple,
    denoising_loss,
    draw,
    train,
    train_step,
    train_to_file,
)

SMALL = ModelSettings("mlp", 8, 1)
QUICK = TrainSettings(steps=60, batch_size=16, warmup=5, ema_halflife=1.5)
DRAWS = 100_000


def points(count=32, size=3):
    return np.random.default_rng(0).normal(size=(count, size)).astype(np.float32)


def fresh(size=3, sigma_data=1.0, settings=SMALL):
    return build(settings, (size,), sigma_data, key=jax.random.key(0))


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def weight_pairs():
    rng = np.random.default_rng(1)
    w, v = rng.gamma(0.5, size=(2, 12))
    w[3] = v[5] = w[11] = v[11] = v[0] = 0  # only in the new; only in the old; in neither
    return {
        "random": (w, v),
        "equal to subset": (np.ones(12), np.arange(12) % 2.0),
        "subset to equal": (np.arange(12) % 2.0, np.ones(12)),
        "apart": (np.arange(12) < 6.0, np.arange(12) >= 6.0),
        "one more": (np.ones(12), np.ones(12) + 5.0 * (np.arange(12) == 4)),
    }


@pytest.mark.parametrize("name", weight_pairs())
def test_coupled_draws_have_their_law_and_agree_as_often_as_can_be(name):
    base, new = (np.asarray(w, np.float64) / np.sum(w) for w in weight_pairs()[name])
    key = jax.random.key(2)
    control = np.asarray(draw(couple(12, None, base), DRAWS, key=key))
    changed = np.asarray(draw(couple(12, new, base), DRAWS, key=key))
    for drawn, law in ((control, base), (changed, new)):
        frequency = np.bincount(drawn, minlength=12) / DRAWS
        error = np.sqrt(law * (1 - law) / DRAWS)
        assert (np.abs(frequency - law) <= 5 * error).all()  # exactly 0 where the law is 0
    agree = 1 - np.abs(base - new).sum() / 2
    error = np.sqrt(agree * (1 - agree) / DRAWS)
    assert abs((control == changed).mean() - agree) <= 5 * error + 1e-12


def test_equal_weights_draw_exactly_what_the_control_draws():
    weights = np.random.default_rng(3).gamma(1.0, size=500)
    control = draw(couple(500, None, weights), 5000, key=jax.random.key(0))
    again = draw(couple(500, 7 * weights, weights), 5000, key=jax.random.key(0))
    np.testing.assert_array_equal(control, again)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3), r"weights of shape \(4,\), got \(3,\)"),
        (np.zeros(4), "not all zero"),
        (np.array([1.0, -1.0, 1.0, 1.0]), "not negative"),
        (np.array([1.0, np.nan, 1.0, 1.0]), "finite"),
    ],
)
def test_couple_refuses(weights, message):
    with pytest.raises(ValueError, match=message):
        couple(4, weights)
    with pytest.raises(ValueError, match="base_weights"):
        couple(4, None, weights)


class GaussianNetwork(nnx.Module):
    """The network that makes a `Denoiser` exact for N(mean, diag(variance))."""

    def __init__(self, mean, variance, sigma_data):
        self.mean, self.variance = nnx.Param(mean), nnx.Param(variance)
        self.sigma_data = sigma_data
        self.shape = mean.shape

    def __call__(self, c_noise, x):
        tau, s = jnp.exp(4 * c_noise), self.sigma_data
        norm = jnp.sqrt(tau**2 + s**2)
        mean, variance = self.mean[...], self.variance[...]
        exact = (variance * x * norm + tau**2 * mean) / (variance + tau**2)
        return (exact - s**2 / norm * x) * norm / (tau * s)


@pytest.mark.parametrize("tau", [0.05, 0.6, 5.0])
def test_loss_of_the_exact_denoiser_is_its_closed_form(tau):
    s, mean, variance = 0.8, np.float32([0.3, -1.0, 0.0]), np.float32([0.1, 0.5, 2.0])
    exact = Denoiser(GaussianNetwork(jnp.asarray(mean), jnp.asarray(variance), s), s)

    @jax.jit
    def batch(exact, key):
        start, noise = jax.random.normal(key, (2, 500, 3), np.float32)
        return denoising_loss(
            exact, mean + jnp.sqrt(variance) * start, jnp.full(500, tau, np.float32), noise
        )

    found = np.array([batch(exact, jax.random.key(k)) for k in range(60)])
    posterior = variance * tau**2 / (variance + tau**2)
    expected = (tau**2 + s**2) / (tau * s) ** 2 * posterior.mean()
    assert abs(found.mean() - expected) <= 5 * found.std(ddof=1) / np.sqrt(60) + 1e-5 * expected


def test_untrained_loss_is_one_on_data_of_scale_sigma_data():
    rng = np.random.default_rng(0)
    x0, noise = rng.normal(size=(2, 20_000, 3)).astype(np.float32)
    tau = np.exp(rng.normal(size=20_000)).astype(np.float32)
    loss = jax.jit(denoising_loss)(fresh(sigma_data=0.5), 0.5 * x0, tau, noise)
    assert abs(float(loss) - 1) < 5 * np.sqrt(2 / 60_000)  # chi-squared entries


@pytest.mark.slow
def test_training_nears_the_optimum_of_a_gaussian():
    rng = np.random.default_rng(0)
    variance = np.array([2.0, 0.02])
    images = (np.sqrt(variance) * rng.normal(size=(8000, 2))).astype(np.float32)
    s = float(images.std())
    settings = TrainSettings(steps=800, batch_size=128, learning_rate=3e-3, warmup=20)
    start = fresh(2, s, ModelSettings("mlp", 16, 1))
    trained = train(start, images, key=jax.random.key(0), settings=settings, progress=False)

    x0 = np.sqrt(variance) * rng.normal(size=(8000, 2))
    tau = np.exp(settings.p_mean + settings.p_std * rng.normal(size=8000))
    batch = [jnp.asarray(a, np.float32) for a in (x0, tau, rng.normal(size=x0.shape))]
    exact = Denoiser(GaussianNetwork(jnp.zeros(2), jnp.asarray(variance), s), s)
    loss = jax.jit(denoising_loss)
    before, after, best = (float(loss(m, *batch)) for m in (start, trained.model, exact))
    assert after - best < 0.03 * (before - best)
    assert after > best  # no denoiser is better than the posterior mean
    assert trained.losses.shape == (16,)
    np.testing.assert_allclose(trained.losses[-6:].mean(), after, rtol=0.05)


def test_one_key_gives_one_model_and_leaves_the_start_alone():
    start, images = fresh(), points()
    before = jax.tree.map(np.array, start)
    equal = np.full(len(images), 3.0)
    runs = [
        train(start, images, key=jax.random.key(k), settings=QUICK, weights=w, progress=False)
        for k, w in ((0, None), (0, equal), (1, None), (0, np.arange(32) % 2.0))
    ]
    assert same(runs[0].model, runs[1].model)
    np.testing.assert_array_equal(runs[0].losses, runs[1].losses)
    assert not same(runs[0].model, runs[2].model)
    assert not same(runs[0].model, runs[3].model)
    assert same(start, before)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(runs[0].model))


def test_runs_with_other_weights_share_noise_and_most_draws():
    images = jnp.asarray(points())
    weights = np.ones(32) - 0.5 * (np.arange(32) < 8)
    settings = TrainSettings(batch_size=4000)
    batches = [
        denoising.draw_batch(images, couple(32, w), jax.random.key(5), settings)
        for w in (None, weights)
    ]
    np.testing.assert_array_equal(batches[0].tau, batches[1].tau)
    np.testing.assert_array_equal(batches[0].noise, batches[1].noise)
    agree = 1 - np.abs(weights / weights.sum() - 1 / 32).sum() / 2
    found = (batches[0].drawn == batches[1].drawn).mean()
    assert abs(found - agree) < 5 * np.sqrt(agree * (1 - agree) / 4000)
    logs = np.log(batches[0].tau)
    assert abs(logs.mean() - settings.p_mean) < 5 * settings.p_std / np.sqrt(4000)
    assert abs(logs.std() - settings.p_std) < 5 * settings.p_std / np.sqrt(8000)


def test_average_is_that_of_the_parameters_with_a_growing_halflife():
    images, key = jnp.asarray(points()), jax.random.key(0)
    state = denoising.begun(fresh(), QUICK)
    leaves = jax.tree.leaves(state.model)
    average = [np.asarray(leaf, np.float64) for leaf in leaves]
    for step in range(1, 41):
        state, _ = train_step(state, images, couple(32), key, QUICK)
        keep = 2 ** (-1 / min(1.5, 0.05 * step))
        leaves = jax.tree.leaves(state.model)
        average = [
            keep * a + (1 - keep) * np.asarray(p) for a, p in zip(average, leaves, strict=True)
        ]
    for found, expected in zip(jax.tree.leaves(state.ema), average, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    gap = max(float(jnp.abs(a - b).max()) for a, b in zip(leaves, average, strict=True))
    assert gap > 1e-4  # the average is not just the last parameters


@pytest.mark.parametrize("decay", [True, False])
def test_warmup_and_decay_set_the_size_of_a_step(decay):
    settings = dataclasses.replace(QUICK, decay=decay)
    images, key = jnp.asarray(points()), jax.random.key(0)
    state, moves = denoising.begun(fresh(), settings), []

    def bias(model):
        return np.asarray(model.network.write.bias)

    for _ in range(60):
        before = bias(state.model)
        state, _ = train_step(state, images, couple(32), key, settings)
        moves.append(np.abs(bias(state.model) - before).max())
    assert moves[0] == 0  # the warm-up starts at rate 0
    assert moves[1] == pytest.approx(1e-3 / 5, rel=0.5)
    assert 5e-4 < max(moves) < 2e-3
    assert moves[-1] < 1e-5 if decay else moves[-1] > 5e-5


def test_repeated_training_compiles_once():
    train(fresh(), points(), key=jax.random.key(0), settings=QUICK, progress=False)
    count = train_step._cache_size  # pyright: ignore[reportAttributeAccessIssue]
    before = count()
    for seed, weights in ((1, None), (2, np.arange(32.0))):
        key = jax.random.key(seed)
        train(fresh(), points(), key=key, settings=QUICK, weights=weights, progress=False)
    assert count() == before


def test_progress_shows_rate_and_loss(capsys):
    train(fresh(), points(), key=jax.random.key(0), settings=QUICK)
    shown = capsys.readouterr().err
    assert "60/60" in shown and "step/s" in shown and "loss=" in shown


def test_train_refuses():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"images of shape \[N, 3\], got \(5, 4\)"):
        train(fresh(), np.zeros((5, 4), np.float32), key=key, settings=QUICK)
    images = points()
    images[:] = np.inf
    with pytest.raises(
        FloatingPointError, match="the loss became nan by step 50: lower the learning rate"
    ):
        train(fresh(), images, key=key, settings=QUICK, progress=False)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "steps must be positive"),
        ("batch_size", -1, "batch_size must be positive"),
        ("learning_rate", float("nan"), "learning_rate must be positive"),
        ("warmup", 12_000, "warmup must be from 0 to below steps"),
        ("p_std", 0.0, "p_std must be positive"),
    ],
)
def test_settings_refuse(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**{field: value})


def test_train_to_file_saves_what_it_returns(tmp_path):
    data = Dataset("points", points(), np.zeros(32, np.int64), ("all",))
    result = train_to_file(tmp_path / "a", data, SMALL, QUICK, seed=4, progress=False)
    model, metadata = models.load(tmp_path / "a")
    assert same(model, result.model)
    assert model.sigma_data == pytest.approx(float(data.images.std()))
    assert metadata["data"] == "points" and metadata["seed"] == 4 and metadata["count"] == 32
    assert TrainSettings(**metadata["train"]) == QUICK
    again = train_to_file(tmp_path / "b", data, SMALL, QUICK, seed=4, progress=False)
    assert same(again.model, result.model)

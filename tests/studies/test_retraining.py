"""The outputs of trained models, and the files that keep them."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.models import ModelSettings, build
from scoresens.studies import retraining
from scoresens.studies.retraining import (
    Queries,
    Retraining,
    Trial,
    baselines,
    evaluate,
    train_trial,
    training_levels,
)
from scoresens.training.denoising import TrainSettings, denoising_loss, loss_weight

TINY = ModelSettings(kind="mlp", width=8, depth=1)
SETTINGS = TrainSettings(steps=4, batch_size=4, warmup=1)
IMAGES = np.random.default_rng(0).normal(size=(6, 2, 2, 1)).astype(np.float32)
LEVELS = jnp.asarray([0.3, 2.0], jnp.float32)
QUERIES = Queries(
    ss.EDM().sample_prior((3, 2, 2, 1), key=jax.random.key(0)).astype(jnp.float32),
    jnp.asarray(IMAGES[:2]),
    LEVELS,
    jax.random.key(1),
)


@pytest.fixture(scope="module")
def model():
    return build(TINY, (2, 2, 1), 0.7, key=jax.random.key(2))


def test_levels_are_quantiles_of_those_of_training():
    settings = TrainSettings(p_mean=-0.4, p_std=0.9)
    drawn = np.exp(-0.4 + 0.9 * np.random.default_rng(0).normal(size=200_000))
    found = training_levels(settings, 4)
    np.testing.assert_allclose(found, np.quantile(drawn, [1 / 8, 3 / 8, 5 / 8, 7 / 8]), rtol=0.02)


@pytest.mark.slow
def test_outputs_are_samples_and_losses_on_the_table_of_noise(model):
    found = evaluate(model, QUERIES, ss.Solve(steps=4))
    truth = ss.sample_ode(
        ss.EDM(), ss.from_denoiser(ss.EDM(), model), QUERIES.noise, solve=ss.Solve(steps=4)
    )
    laws.close(found.samples, truth.x, relative=1e-5)
    for i, loss in enumerate(found.losses):
        own = jax.random.fold_in(QUERIES.key, i)
        keys = [jax.random.fold_in(own, j) for j in (0, 1)]
        noise = jnp.stack([jax.random.normal(key, (2, 2, 1), jnp.float32) for key in keys])
        copies = jnp.repeat(jnp.asarray(IMAGES[i : i + 1]), 2, 0)
        laws.close(loss, denoising_loss(model, copies, LEVELS, noise), relative=1e-5)


@pytest.mark.slow
def test_the_loss_is_that_of_loss_sensitivity(model):
    found = ss.loss_sensitivity(
        ss.EDM(),
        ss.from_denoiser(ss.EDM(), model),
        ss.Points(jnp.asarray(IMAGES), bandwidth=0.5),
        QUERIES.images,
        levels=LEVELS,
        key=QUERIES.key,
        weights=loss_weight(LEVELS, model.sigma_data) / 4,
    )
    laws.close(evaluate(model, QUERIES, ss.Solve(steps=2)).losses, found.loss, relative=1e-5)


def test_trials_of_one_seed_differ_by_their_data_alone():
    half = np.array([1.0, 1, 1, 0, 0, 0])
    trials = Trial(0), Trial(0, np.ones(6)), Trial(0, half), Trial(1)
    made = [jax.tree.leaves(train_trial(trial, IMAGES, TINY, SETTINGS)) for trial in trials]
    same = [all(np.array_equal(a, b) for a, b in zip(made[0], m, strict=True)) for m in made]
    assert same == [True, True, False, False]


def test_a_study_trains_each_model_once(tmp_path, monkeypatch):
    """Its models, samples of one of them, and the outputs of all; then again, from the files."""
    trained = []
    train = retraining.train_trial

    def counted(trial, *rest):
        trained.append(trial)
        return train(trial, *rest)

    monkeypatch.setattr(retraining, "train_trial", counted)
    study = Retraining(tmp_path, IMAGES, TINY, SETTINGS, ss.Solve(steps=2))
    bases = baselines(2)
    others = bases | {"half-0": Trial(0, np.array([1.0, 1, 1, 0, 0, 0]))}

    def run():
        models = study.models(bases)
        drawn = study.generated(models["all-0"], QUERIES.noise, held=np.arange(2))
        return models, drawn, study.outputs(others, models, QUERIES)

    models, drawn, outputs = run()
    assert [trial.seed for trial in trained if trial.weights is None] in ([0, 1], [1, 0])
    assert len(trained) == 3
    x = evaluate(models["all-0"], QUERIES, study.solve).samples
    laws.close(drawn, np.clip(x, IMAGES.min(), IMAGES.max()), relative=1e-6)
    laws.close(outputs["all-0"].samples, x, relative=1e-6)
    again = run()
    assert len(trained) == 3
    for one, two in zip(
        jax.tree.leaves((models, drawn, outputs)), jax.tree.leaves(again), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    with np.load(tmp_path / "questions.npz") as kept:
        assert set(kept.files) == {"generated", "noise", "held"}
    names = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.*")}
    assert names == {
        "all-0.safetensors", "all-1.safetensors", "questions.npz",
        "models/all-0.npz", "models/all-1.npz", "models/half-0.npz",
    }  # fmt: skip

"""What trained models are asked, and the files that keep their answers."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.models import ModelSettings, build
from scoresens.studies.retraining import (
    PROCESS,
    Answers,
    Questions,
    Trial,
    answers,
    ask,
    read_answers,
    train_trial,
    training_levels,
)
from scoresens.training.denoising import TrainSettings, denoising_loss, loss_weight

TINY = ModelSettings(kind="mlp", width=8, depth=1)
SETTINGS = TrainSettings(steps=4, batch_size=4, warmup=1)
IMAGES = np.random.default_rng(0).normal(size=(6, 2, 2, 1)).astype(np.float32)
LEVELS = jnp.asarray([0.3, 2.0], jnp.float32)
QUESTIONS = Questions(
    PROCESS.sample_prior((3, 2, 2, 1), key=jax.random.key(0)).astype(jnp.float32),
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


def test_answers_are_samples_and_losses_on_the_table_of_noise(model):
    found = ask(model, QUESTIONS, ss.Solve(steps=4))
    truth = ss.sample_ode(
        PROCESS, ss.from_denoiser(PROCESS, model), QUESTIONS.noise, solve=ss.Solve(steps=4)
    )
    laws.close(found.samples, truth.x, relative=1e-5)
    for i, loss in enumerate(found.losses):
        own = jax.random.fold_in(QUESTIONS.key, i)
        noise = jnp.stack(
            [jax.random.normal(jax.random.fold_in(own, j), (2, 2, 1), jnp.float32) for j in (0, 1)]
        )
        copies = jnp.repeat(jnp.asarray(IMAGES[i : i + 1]), 2, 0)
        laws.close(loss, denoising_loss(model, copies, LEVELS, noise), relative=1e-5)


def test_the_loss_is_that_of_loss_sensitivity(model):
    found = ss.loss_sensitivity(
        PROCESS,
        ss.from_denoiser(PROCESS, model),
        ss.Points(jnp.asarray(IMAGES), bandwidth=0.5),
        QUESTIONS.images,
        levels=LEVELS,
        key=QUESTIONS.key,
        weights=loss_weight(LEVELS, model.sigma_data) / 4,
    )
    laws.close(ask(model, QUESTIONS, ss.Solve(steps=2)).losses, found.loss, relative=1e-5)


def test_trials_of_one_seed_differ_by_their_data_alone():
    half = np.array([1.0, 1, 1, 0, 0, 0])
    trials = Trial(0), Trial(0, np.ones(6)), Trial(0, half), Trial(1)
    made = [jax.tree.leaves(train_trial(trial, IMAGES, TINY, SETTINGS)) for trial in trials]
    same = [all(np.array_equal(a, b) for a, b in zip(made[0], m, strict=True)) for m in made]
    assert same == [True, True, False, False]


def test_a_run_that_was_stopped_goes_on(tmp_path):
    made = []

    def make(name):
        made.append(int(name[1]))
        if len(made) == 3:
            raise KeyboardInterrupt
        return Answers(jnp.full((1, 2), float(name[1])), jnp.zeros(1))

    names = [f"t{seed}" for seed in range(4)]
    with pytest.raises(KeyboardInterrupt):
        answers(tmp_path, names, make)
    assert len(list(tmp_path.iterdir())) == 2  # nothing of the third
    (tmp_path / f"t{made[0]}.npz").write_bytes(b"torn")
    found = answers(tmp_path, names, make)
    assert {name: float(a.samples[0, 0]) for name, a in found.items()} == {
        "t0": 0.0, "t1": 1.0, "t2": 2.0, "t3": 3.0,
    }  # fmt: skip
    assert sorted(made[3:]) == sorted({0, 1, 2, 3} - {made[1]})


def test_a_trial_that_another_process_has_done_is_not_done_again(tmp_path):
    other = Answers(np.ones((1, 2)), np.zeros(1))

    def make(name):
        np.savez(tmp_path / f"t{1 - int(name[1])}.npz", **other._asdict())
        return Answers(np.zeros((1, 2)), np.zeros(1))

    found = answers(tmp_path, ["t0", "t1"], make)
    assert sorted(float(a.samples.sum()) for a in found.values()) == [0.0, 2.0]


def test_files_without_answers_are_told_apart(tmp_path):
    assert read_answers(tmp_path / "none.npz") is None
    np.savez(tmp_path / "other.npz", samples=np.zeros(1))
    assert read_answers(tmp_path / "other.npz") is None

"""Named changes whose training set is not the data's own: edits, and another model's samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoresens as ss
from scoresens.datasets.images import Dataset, DataSettings, prepare
from scoresens.laws.changed import change
from scoresens.models import ModelSettings, build, save
from scoresens.studies.changes import ChangeSettings, make_change
from scoresens.studies.finetuning import Finetuning, predict_change, real_changes
from scoresens.training.denoising import TrainSettings


@pytest.fixture(scope="module")
def dataset():
    images = np.random.default_rng(0).normal(size=(12, 2, 2, 1)).astype(np.float32)
    return Dataset("twelve", images, np.repeat(np.arange(3), 4), ("a", "b", "c"))


@pytest.fixture(scope="module")
def data(dataset):
    return ss.Points(jnp.asarray(dataset.images), bandwidth=0.5)


def network(seed):
    model = build(ModelSettings("mlp", 8, 1), (2, 2, 1), 1.0, key=jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save(path, network(1), {})
    return path


@pytest.mark.slow
def test_a_shift_trains_on_the_law_that_it_predicts_with(dataset, data):
    settings = ChangeSettings("shift", ("b",), mass=0.5)
    named = make_change(dataset, data, settings)
    shifted = dataset.images.copy()
    shifted[4:8, :, 1] = 0.5 * (dataset.images[4:8, :, 0] + dataset.images[4:8, :, 1])
    shifted[4:8, :, 0] = 0.5 * (dataset.images[4:8, :, 0] - 1)
    np.testing.assert_allclose(np.asarray(named.images), shifted, rtol=1e-6, atol=1e-6)
    law = change(data, named.perturbation, settings.mass)
    trained_on = ss.Points(jnp.asarray(shifted), bandwidth=0.5)
    x = jnp.asarray(dataset.images[5])
    found = data.denoise(0.3, x) + law[0].shift(0.3, x, data.posterior(0.3, x))[0]
    np.testing.assert_allclose(found, trained_on.denoise(0.3, x), rtol=1e-5, atol=1e-6)


def test_another_model_is_its_own_samples_in_training(dataset, data, checkpoint):
    settings = ChangeSettings("model", mass=0.25, checkpoint=checkpoint, seed=4)
    named = make_change(dataset, data, settings)
    (nu,) = named.perturbation.learned
    noise = ss.EDM().sample_prior((12, 2, 2, 1), key=jax.random.key(4)).astype(jnp.float32)
    drawn = ss.sample_ode(nu.process, nu.score, noise).x
    np.testing.assert_array_equal(named.images[:12], dataset.images)
    np.testing.assert_allclose(named.images[12:], drawn, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.asarray(named.weights), np.repeat([0.75, 0.25], 12) / 12)
    np.testing.assert_allclose(np.asarray(named.base_weights), np.repeat([1.0, 0.0], 12) / 12)


@pytest.mark.slow
def test_the_control_is_trained_on_the_unchanged_data(dataset, data, checkpoint, tmp_path):
    """With nothing of the other model, or no shift, both of a pair are one training."""
    model, noise = network(0), jnp.ones((2, 2, 2, 1), jnp.float32)
    options = {
        "key": jax.random.key(2),
        "settings": TrainSettings(steps=5, batch_size=4, warmup=1, ema_halflife=2.0),
        "solve": ss.Solve(steps=5),
    }

    def run(folder, named):
        return real_changes(model, data, named, noise, Finetuning(tmp_path / folder, **options))[5]

    other = make_change(dataset, data, ChangeSettings("model", mass=0.5, checkpoint=checkpoint))
    moved = make_change(dataset, data, ChangeSettings("shift", ("a",)))
    for folder, named in (("other", other), ("moved", moved)):
        assert np.abs(run(folder, named).displacement).max() > 1e-6
    nothing = run("nothing", other._replace(weights=other.base_weights))
    np.testing.assert_array_equal(nothing.control, nothing.changed)
    still = run("still", moved._replace(images=dataset.images))
    np.testing.assert_array_equal(still.control, still.changed)


@pytest.mark.slow
def test_predictions_of_every_method_for_another_model_and_for_a_shift(dataset, data, checkpoint):
    """The finite ones approach the first-order ones as the mass goes to 0."""
    model, noise = network(0), 80 * jnp.ones((2, 2, 2, 1), jnp.float32)
    for settings in (
        ChangeSettings("model", mass=1e-5, checkpoint=checkpoint),
        ChangeSettings("shift", ("a",), mass=1e-2),
    ):
        named = make_change(dataset, data, settings)
        found = predict_change(model, data, named, settings.mass, noise, ss.Solve(steps=20))
        for base in ("model", "sharp", "data"):
            first, finite = found[f"first_order_{base}"], found[f"counterfactual_{base}"]
            size = np.abs(first).max()
            np.testing.assert_allclose(finite, first, atol=0.05 * size + 1e-5)


def test_settings_that_name_nothing_are_refused(dataset, data, tmp_path):
    with pytest.raises(ValueError, match="needs the checkpoint"):
        ChangeSettings("model")
    with pytest.raises(ValueError, match="needs either classes, or images"):
        ChangeSettings("shift")
    path = tmp_path / "wide.safetensors"
    save(path, build(ModelSettings("mlp", 8, 1), (3, 3, 1), 1.0, key=jax.random.key(0)), {})
    with pytest.raises(ValueError, match=r"draws images of shape \(3, 3, 1\)"):
        make_change(dataset, data, ChangeSettings("model", checkpoint=path))


def test_data_of_some_classes():
    threes = prepare(DataSettings("digits", classes=("3", "8")))
    assert set(threes.labels) == {3, 8}
    everything = prepare(DataSettings("digits"))
    np.testing.assert_array_equal(
        threes.images, everything.images[np.isin(everything.labels, [3, 8])]
    )
    with pytest.raises(ValueError, match="class 'x' is not in digits"):
        prepare(DataSettings("digits", classes=("x",)))

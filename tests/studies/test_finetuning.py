"""Measures of agreement, named changes, and the fine-tuning experiment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

import scoresens as ss
from scoresens.datasets.images import Dataset
from scoresens.laws.changed import change
from scoresens.models import ModelSettings, build
from scoresens.studies import finetuning
from scoresens.studies._baselines import wiener
from scoresens.studies.changes import ChangeSettings, make_change
from scoresens.studies.finetuning import (
    EDGES,
    Finetuning,
    RealChange,
    calibration,
    compare,
    predict_change,
    predict_steps,
    real_changes,
    reliability,
)
from scoresens.training.denoising import TrainSettings

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(12, 2, 2, 1)).astype(np.float32)
    return Dataset("twelve", images, np.repeat(np.arange(3), 4), NAMES)


def points(dataset):
    return ss.Points(jnp.asarray(dataset.images), bandwidth=0.5)


def test_measures_are_those_of_scipy():
    rng = np.random.default_rng(1)
    real = rng.normal(size=(30, 2, 3))
    predicted = real + 0.5 * rng.normal(size=real.shape)
    found = {name: estimate.value for name, estimate in compare(predicted, real).items()}
    p, r = predicted.reshape(30, -1), real.reshape(30, -1)
    sizes = np.linalg.norm(p, axis=1), np.linalg.norm(r, axis=1)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(p, r, strict=True)]
    wanted = {
        "median_cosine": np.median(cosines),
        "pooled_pearson": pearsonr(p.ravel(), r.ravel())[0],
        "relative_l2": np.linalg.norm(p - r) / np.linalg.norm(r),
        "magnitude_ratio": sizes[0].mean() / sizes[1].mean(),
        "magnitude_spearman": spearmanr(*sizes)[0],
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-12)


def test_intervals_are_percentiles_over_resamples_of_the_samples():
    rng = np.random.default_rng(2)
    real = rng.normal(size=(20, 4))
    predicted = real + rng.normal(size=real.shape)
    found = compare(predicted, real, resamples=50, seed=3)["pooled_pearson"]
    rows = np.random.default_rng(3).integers(20, size=(50, 20))
    drawn = [pearsonr(predicted[row].ravel(), real[row].ravel())[0] for row in rows]
    np.testing.assert_allclose(np.array(found[1:]), np.percentile(drawn, (2.5, 97.5)), rtol=1e-12)


def test_a_perfect_prediction_agrees_and_its_opposite_does_not():
    real = np.random.default_rng(4).normal(size=(9, 3))
    same, opposite = compare(real, real), compare(-real, real)
    assert same["median_cosine"].value == pytest.approx(1)
    assert same["relative_l2"].value == pytest.approx(0, abs=1e-7)
    assert opposite["pooled_pearson"].high == pytest.approx(-1)
    assert opposite["magnitude_spearman"].value == pytest.approx(1)


def test_reliability_is_a_distance_in_bandwidths_per_mass_moved():
    predicted = np.array([[[3.0, 4.0]], [[0.0, 0.0]], [[0.0, 1.0]]])
    np.testing.assert_allclose(reliability(predicted, 0.1, 2.0), [25.0, 0.0, 5.0])


def test_a_calibration_tells_what_a_reliability_was_worth():
    rng = np.random.default_rng(5)
    real = rng.normal(size=(200, 6))
    signal = rng.uniform(0, 7, size=200)
    predicted = real * signal[:, None] + rng.normal(size=real.shape)
    found = calibration(signal, predicted, real, resamples=50, seed=3)
    cosines = np.array([p @ r / np.linalg.norm(p) / np.linalg.norm(r)
                        for p, r in zip(predicted, real, strict=True)])  # fmt: skip
    assert found.spearman.value == pytest.approx(spearmanr(signal, cosines)[0])
    rows = np.random.default_rng(3).integers(200, size=(50, 200))
    drawn = [spearmanr(signal[row], cosines[row])[0] for row in rows]
    np.testing.assert_allclose(
        np.array(found.spearman[1:]), np.percentile(drawn, (2.5, 97.5)), rtol=1e-12
    )
    ends = [*EDGES[1:], np.inf]
    for place, (low, high) in enumerate(zip(EDGES, ends, strict=True)):
        own = cosines[(signal >= low) & (signal < high)]
        assert found.count[place] == len(own)
        wanted = np.percentile(own, (10, 50, 90)) if len(own) else np.full(3, np.nan)
        np.testing.assert_allclose(found.cosine[place], wanted)
    assert found.count[-1] == 0  # no signal reaches 8
    assert found.cosine[0, 1] < found.cosine[3, 1]


@pytest.mark.parametrize(
    "settings, moved",
    [
        (ChangeSettings("add", ("b",), mass=0.3), 0.3 * 8 / 12),
        (ChangeSettings("remove", ("a",)), 4 / 12),
        (ChangeSettings("remove", ("a",), mass=0.5), 2 / 12),
        (ChangeSettings("half"), 0.5),
        (ChangeSettings("shift", ("a", "b")), 8 / 12),
    ],
)
def test_a_change_knows_how_much_mass_it_moves(dataset, settings, moved):
    assert make_change(dataset, points(dataset), settings).moved == pytest.approx(moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ChangeSettings("add", ("b",), mass=0.2),
        ChangeSettings("add", images=(3, 5), mass=0.5),
        ChangeSettings("remove", ("a", "c")),
        ChangeSettings("remove", images=(7,), mass=0.5),
        ChangeSettings("half", seed=1),
        ChangeSettings("add", random=3, mass=0.4, seed=2),
    ],
    ids=lambda settings: settings.title,
)
def test_a_named_change_trains_on_the_law_that_it_predicts_with(dataset, settings):
    """At its mass the perturbed law has the noised density of the reweighted data."""
    data = points(dataset)
    named = make_change(dataset, data, settings)
    assert named.weights.sum() == pytest.approx(1)
    weighted = ss.Points(data.points, jnp.asarray(named.weights), data.bandwidth)
    perturbation = named.perturbation.bumped_like(ss.Smoothed(data.bandwidth))
    law = change(data, perturbation, settings.mass)
    for tau in (0.1, 1.0):
        x = data.points[2] + tau * jnp.asarray(dataset.images[5])
        found = data.denoise(tau, x) + law[0].shift(tau, x, data.posterior(tau, x))[0]
        np.testing.assert_allclose(found, weighted.denoise(tau, x), rtol=1e-5, atol=1e-6)


def test_a_change_of_what_is_not_there_is_refused(dataset):
    with pytest.raises(ValueError, match="class 'd' is not in twelve: its classes are a, b, c"):
        make_change(dataset, points(dataset), ChangeSettings("add", ("d",), mass=0.1))
    with pytest.raises(ValueError, match="image 12 lies outside the data's 12 images"):
        make_change(dataset, points(dataset), ChangeSettings("remove", images=(12,)))
    with pytest.raises(ValueError, match="13 random images are more than the 12 there"):
        make_change(dataset, points(dataset), ChangeSettings("remove", random=13))
    empty = dataset._replace(labels=np.zeros(12, int))
    with pytest.raises(ValueError, match="class 'b' has no image"):
        make_change(empty, points(dataset), ChangeSettings("add", ("b",), mass=0.1))
    with pytest.raises(ValueError, match="needs either classes, or images"):
        ChangeSettings("add")
    with pytest.raises(ValueError, match="needs either classes, or images"):
        ChangeSettings("add", ("a",), random=2)
    with pytest.raises(ValueError, match="mass must lie in"):
        ChangeSettings("half", mass=1.5)


@pytest.mark.slow
def test_pairs_of_fine_tunings_share_all_but_the_change(dataset, tmp_path, monkeypatch):
    data = points(dataset)
    model = build(ModelSettings("mlp", 8, 1), data.shape, 1.0, key=jax.random.key(0))
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)
    noise = ss.EDM().sample_prior((3, *data.shape), key=jax.random.key(1)).astype(jnp.float32)
    settings = TrainSettings(steps=5, batch_size=4, warmup=1, ema_halflife=2.0)
    solve = ss.Solve(steps=5)

    def run(folder, weights, repeats):
        named = make_change(dataset, data, ChangeSettings("half"))._replace(weights=weights)
        how = Finetuning(folder, settings, jax.random.key(2), repeats, solve=solve)
        return real_changes(model, data, named, noise, how)

    nothing = run(tmp_path / "nothing", np.full(12, 1 / 12), 1)[5]
    np.testing.assert_array_equal(nothing.control, nothing.changed)
    weights = np.repeat([0.0, 0.125, 0.125], 4)
    twice = run(tmp_path / "twice", weights, 2)[5]
    np.testing.assert_array_equal(twice.control[:1], nothing.control)
    assert np.abs(twice.control[0] - twice.control[1]).max() > 1e-4  # another key
    each = twice.changed - twice.control
    np.testing.assert_allclose(twice.displacement, 0.5 * (each[0] + each[1]), rtol=1e-6)
    np.testing.assert_array_equal(twice.ceiling[0], each[0])
    (tmp_path / "twice" / "changed-0.npz").unlink()  # of a run that was stopped
    trained, train = [], finetuning.train
    monkeypatch.setattr(
        finetuning, "train", lambda *a, **k: trained.append(k["weights"]) or train(*a, **k)
    )
    again = run(tmp_path / "twice", weights, 2)[5]
    np.testing.assert_array_equal(again.changed, twice.changed)
    assert len(trained) == 1 and trained[0] is weights  # nothing else


@pytest.mark.slow
def test_a_fine_tuning_is_looked_at_on_its_way(dataset, tmp_path):
    """At a constant learning rate, after k steps it is the fine-tuning of k steps."""
    data = points(dataset)
    model = build(ModelSettings("mlp", 8, 1), data.shape, 1.0, key=jax.random.key(0))
    noise = ss.EDM().sample_prior((3, *data.shape), key=jax.random.key(1)).astype(jnp.float32)
    named = make_change(dataset, data, ChangeSettings("half"))

    def run(folder, steps, after=()):
        settings = TrainSettings(steps=steps, batch_size=4, warmup=0, decay=False, ema_halflife=2.0)
        options = {"after": after, "solve": ss.Solve(steps=5)}
        how = Finetuning(tmp_path / folder, settings, jax.random.key(2), **options)
        return real_changes(model, data, named, noise, how)

    found = run("all", 5, (1, 3))
    assert list(found) == [1, 3, 5]
    for steps, seen in found.items():
        alone = run(str(steps), steps)[steps]
        np.testing.assert_allclose(seen.changed, alone.changed, rtol=1e-5, atol=1e-6)
    assert np.abs(found[1].displacement - found[5].displacement).max() > 1e-4


@pytest.mark.slow
def test_predictions_are_displacements_of_the_named_samples(dataset):
    """Each method against the verb that it names; the class mean by hand."""
    data = points(dataset)
    model = build(ModelSettings("mlp", 8, 1), data.shape, 1.0, key=jax.random.key(0))
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)
    noise = ss.EDM().sample_prior((3, *data.shape), key=jax.random.key(1)).astype(jnp.float32)
    named = make_change(dataset, data, ChangeSettings("add", ("b",), mass=0.3))
    solve = ss.Solve(steps=5)
    found = predict_change(model, data, named, 0.3, noise, solve)
    score = ss.from_denoiser(ss.EDM(), model)
    x = ss.sample_ode(ss.EDM(), score, noise, solve=solve).x
    np.testing.assert_allclose(found["before"], x, rtol=1e-5, atol=1e-6)
    mean = dataset.images[4:8].mean(0)
    np.testing.assert_allclose(found["class_mean"], 0.3 * (mean - x), rtol=1e-5, atol=1e-6)
    small = make_change(dataset, data, ChangeSettings("add", ("b",), mass=1e-3))
    tiny = predict_change(model, data, small, 1e-3, noise, solve)["counterfactual_data"] / 1e-3
    np.testing.assert_allclose(found["first_order_data"] / 0.3, tiny, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("kind", ["add", "shift"])
def test_of_gaussian_data_wieners_filter_is_the_whole_answer(dataset, kind):
    """Of a score that is itself linear, samples go where the changed law's mean and covariance
    send them: a closed form of the flow, `mu' + S'^1/2 (S' + T^2)^-1/2 (noise - mu')`."""
    data = points(dataset)
    change = make_change(dataset, data, ChangeSettings(kind, ("b",), mass=0.4))
    images = np.asarray(data.points if change.images is None else change.images, np.float64)

    def moments(images, weights):
        flat, shares = images.reshape(len(images), -1), weights / weights.sum()
        mean = shares @ flat
        return mean, (flat - mean).T @ (shares[:, None] * (flat - mean))

    mean, spread = moments(np.asarray(data.points, np.float64), np.ones(12))

    def score(t, x):
        inverse = jnp.linalg.inv(jnp.asarray(spread) + t**2 * jnp.eye(4))
        return (inverse @ (jnp.asarray(mean) - x.reshape(-1))).reshape(x.shape)

    noise = ss.EDM().sample_prior((3, *data.shape), key=jax.random.key(1))
    found = wiener(ss.EDM(), score, data, change, noise, ss.Solve(steps=200))
    mean, spread = moments(images, change.weights)
    variances, axes = np.linalg.eigh(spread)
    shrunk = np.sqrt((variances + ss.Solve().tau_min ** 2) / (variances + 80.0**2))
    start = np.asarray(noise).reshape(3, -1) - mean
    expected = mean + (start @ axes * shrunk) @ axes.T
    np.testing.assert_allclose(found.reshape(3, -1), expected, atol=2e-3)


def test_what_few_steps_learn_is_filtered_along_the_axes(dataset):
    """With the spectral bias of the learning rates that were taken; all of it after very many."""
    data = ss.Points(points(dataset).points, None, 0.6, width=1.0, resolution=0.1)
    model = build(ModelSettings("mlp", 8, 1), data.shape, 1.0, key=jax.random.key(0))
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)
    noise = ss.EDM().sample_prior((3, *data.shape), key=jax.random.key(1)).astype(jnp.float32)
    settings = TrainSettings(steps=40, learning_rate=1e-3, warmup=10, decay=False)
    named = make_change(dataset, data, ChangeSettings("add", ("b",), mass=0.3))
    given, solve = (model, data, named, 0.3, noise), ss.Solve(steps=5)
    found = predict_steps(*given, settings, (1, 40), solve)
    score = ss.from_denoiser(ss.EDM(), model)
    x = ss.sample_ode(ss.EDM(), score, noise, solve=solve).x
    taken = 1e-3 * (0.05 + np.arange(10) / 10).sum() + 30e-3
    for steps, rates in ((1, 0.05e-3), (40, taken)):
        base = ss.Points(
            data.points, None, 0.6, width=1.0, resolution=0.1, spectral_bias=1.5e-4 / rates
        )
        after = ss.counterfactual(
            ss.EDM(), score, named.perturbation, noise, mass=0.3, base=base, solve=solve
        ).x
        np.testing.assert_allclose(found[steps] - x, after[:, 0] - x, rtol=1e-3, atol=1e-6)
    longer = dataclasses.replace(settings, steps=10**6, decay=True)
    everything = predict_change(*given, solve)["counterfactual_data"]
    nearly = predict_steps(*given, longer, (10**6,), solve)[10**6] - x
    np.testing.assert_allclose(nearly, everything, rtol=1e-2, atol=1e-4)
    assert np.abs(found[1] - x).max() < 0.5 * np.abs(everything).max()


def test_black_boxes_are_asked_about_the_data_without_their_kernel(dataset):
    """What is given a width or a resolution predicts by `data` alone; the others are as they
    were."""
    plain = points(dataset)
    given = ss.Points(plain.points, None, 0.6, width=1.0, resolution=0.1)
    plain = plain.with_kernel(plain.kernel, ss.default_bandwidth(plain.points))
    model = build(ModelSettings("mlp", 8, 1), plain.shape, 1.0, key=jax.random.key(0))
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)
    noise = ss.EDM().sample_prior((3, *plain.shape), key=jax.random.key(1)).astype(jnp.float32)
    one, other = (
        predict_change(
            model, data, make_change(dataset, data, ChangeSettings("half")), 0.3, noise,
            ss.Solve(steps=5),
        )
        for data in (plain, given)
    )  # fmt: skip
    for name in one:
        same = np.allclose(one[name], other[name], rtol=1e-4, atol=1e-5)
        assert same == (not name.endswith("_data")), name


def test_what_the_effect_itself_would_reach():
    """Measured on an effect that is known: two pairs agree at 1/2, four pairs' mean at
    sqrt(4 / 5)."""
    rng = np.random.default_rng(0)
    effect, *noise = rng.normal(size=(9, 400, 50))
    control, own = np.stack(noise[:4]), np.stack(noise[4:8])
    real = RealChange(control, control + effect + own)
    reached = np.corrcoef(effect.ravel(), real.displacement.ravel())[0, 1]
    assert reached == pytest.approx(0.8**0.5, abs=0.01)
    assert real.reach == pytest.approx(reached, abs=0.01)
    assert np.isnan(RealChange(control[:1], control[:1] + effect).reach)

"""`scoresens validate` with experiment = "removal"."""

import numpy as np
import pytest
from command_line import TINY, Ran, scoresens, settings_file

from scoresens.cli import removal as command
from scoresens.datasets.images import DataSettings
from scoresens.models import ModelSettings
from scoresens.studies import retraining
from scoresens.training.denoising import TrainSettings

pytestmark = pytest.mark.slow  # commands from end to end

SETTINGS = """
experiment = "removal"
queries = 2
shares = [0.1, 0.5]
levels = 2
steps = 3
resamples = 20

[data]
name = "digits"
count = 20
"""
SETTINGS += TINY
METHODS = ("ours, by the loss", "ours, by movement", "ours, least first", "nearest", "random")


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    folder = tmp_path_factory.mktemp("removal")
    found = scoresens("validate", settings_file(folder, SETTINGS), out=folder / "out")
    assert found.code == 0, found.told
    return found


def test_effects_are_differences_from_the_model_of_all_images(ran):
    def outputs(name):
        return np.load(ran.out / f"models/{name}.npz")

    base = outputs("all-0")
    for method in METHODS:
        slug = method.replace(", ", "-").replace(" ", "-")
        for effect, points in (
            (effect, ran.result["effects"][effect][method]) for effect in ("loss", "moved")
        ):
            for point, share in zip(points, (0.1, 0.5), strict=True):
                for query in range(2):
                    without = outputs(f"{slug}-{query:02d}-{share:g}-0")
                    true = (
                        without["losses"][query] - base["losses"][query]
                        if effect == "loss"
                        else np.linalg.norm(without["samples"][query] - base["samples"][query])
                    )
                    assert point["each"][query] == pytest.approx(true, rel=1e-4, abs=1e-7)
                assert point["value"] == pytest.approx(np.mean(point["each"]))
                assert point["low"] <= point["value"] <= point["high"]


def test_the_table_and_the_picture(ran):
    for line in (*METHODS, "rise of the denoising loss", "how far the sample moved", "50.0%"):
        assert line in ran.printed
    assert {"report.png", "questions.npz", "study.json", "all-0.safetensors"} <= ran.files
    assert len(list((ran.out / "models").glob("*.npz"))) == 1 + 5 * 2 * 2


def test_what_is_left_out_comes_first_in_the_order():
    tiny = ModelSettings("mlp", 8, 1)
    run = command.RemovalRun(
        data=DataSettings("digits"), model=tiny, train=TrainSettings(), shares=(0.2, 0.6)
    )
    order = np.array([[3, 0, 4, 1, 2]])
    made = command._trials(run, {"nearest": order}, 5)
    assert list(made) == ["nearest-00-0.2-0", "nearest-00-0.6-0"]
    np.testing.assert_array_equal(made["nearest-00-0.2-0"].weights, [1, 1, 1, 0, 1])
    np.testing.assert_array_equal(made["nearest-00-0.6-0"].weights, [0, 1, 1, 0, 0])


def test_a_removal_goes_on_where_it_was(ran, monkeypatch):
    monkeypatch.setattr(retraining, "train_trial", lambda *_: pytest.fail("trained again"))
    again = scoresens("validate", ran.out.parent / "run.toml", out=ran.out)
    assert again.code == 0 and again.printed == ran.printed


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[0.1, 0.5]", "[0.5, 0.1]", "shares must rise"),
        ("[0.1, 0.5]", "[0.1, 1.0]", "shares must lie between 0 and 1"),
        ("queries = 2", "queries = 1", "queries must be at least 2"),
    ],
)
def test_settings_that_cannot_be(tmp_path, old, new, words):
    file = settings_file(tmp_path, SETTINGS.replace(old, new))
    refused = scoresens("validate", file, out=tmp_path / "out")
    assert refused.code == 2 and words in refused.told

"""The commands on a table, a series and points of a plane."""

import numpy as np
import pytest
from command_line import TINY, arrays_of, is_complete, refused, rows, scoresens, settings_file

from scoresens.cli import _quick
from scoresens.datasets import load
from scoresens.training.denoising import TrainSettings

pytestmark = pytest.mark.slow  # commands from end to end


@pytest.fixture(autouse=True)
def trained_at_once(monkeypatch):
    """In a few steps, for the demo."""
    monkeypatch.setattr(_quick, "TRAIN", TrainSettings(steps=60, batch_size=32, warmup=5))
    monkeypatch.setattr("scoresens.cli.demo.DRAWN", 12)
    monkeypatch.setattr("scoresens.cli.demo.STRIP", (0.5,))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of two blobs, one of them of class `far`."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)) * [1, 10, 100] + np.repeat([[0, 0, 0], [5, 50, 500]], 20, 0)
    names = ["near"] * 20 + ["far"] * 20
    lines = [f"{a:.4f},{b:.3f},{c:.2f},{n}" for (a, b, c), n in zip(x, names, strict=True)]
    (folder / "blobs.csv").write_text("\n".join(["a,b,c,class", *lines]))
    return folder / "blobs.csv"


def test_the_demo_tells_the_story_of_a_table(tmp_path):
    ran = scoresens("demo", "--data", "wine", "--count", 2, out=tmp_path / "out")
    pictures = ("report.png", "strip.png", "attribution.png")
    assert is_complete(ran, *pictures, "model.safetensors")
    result, wine = ran.result, load("wine")
    assert result["class"] == "3" and result["change"] == "add class 3 at mass 0.2"
    assert result["class_share"]["data_before"] == pytest.approx(48 / 178)
    assert result["unit_of_norms"] == "standard deviations"
    assert set(result["columns_in_own_units"]) == set(wine.form.columns)
    assert "wine: add class 3 at mass 0.2 (48 of 178 rows)" in ran.printed
    means = ran.printed.split("mean, own units")[1]
    assert "proline" in means and "746.9" in means
    assert "image" not in ran.printed


def test_the_demo_of_a_series_adds_what_is_like_one_window(tmp_path):
    np.savetxt(tmp_path / "s.csv", np.sin(np.arange(60)), header="sine", comments="")
    options = ("--data", tmp_path / "s.csv", "--window", 6, "--near", 7, "--count", 1)
    ran = scoresens("demo", *options, out=tmp_path / "out")
    assert is_complete(ran, "report.png", "strip.png", "attribution.png", "model.safetensors")
    assert ran.result["near"] == 7 and "class" not in ran.result
    assert ran.result["change"] == "add 3 windows like window 7 at mass 0.2"
    assert ran.result["touched_images"] == 3 and "sine" in ran.result["columns_in_own_units"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--data", "wine", "--class", "4"), "class '4' is not in wine: its classes are 1, 2, 3"),
        (("--data", "moons", "--near", "600"), "point 600 lies outside the data's 600 points"),
        (("--class", "3", "--near", "1"), "either a class is added, or what is near"),
        (("--data", "no.csv"), "no file no.csv"),
        (("--data", "wine", "--label", "hue"), "label is of a table in a file"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, complaint):
    assert complaint in refused(scoresens("demo", *options, out=tmp_path / "out"))


def test_the_demo_of_other_images_says_what_to_run(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((9, 4, 4)))
    told = refused(scoresens("demo", "--data", tmp_path / "a.npy", out=tmp_path / "out"))
    assert "use scoresens train" in told


@pytest.mark.filterwarnings("default:.*is taken as the label")
def test_a_table_is_trained_on_and_its_numbers_are_in_own_units(table, tmp_path):
    data = f"[data]\nname = '{table}'\n"
    ran = scoresens("train", settings_file(tmp_path, data + TINY), out=tmp_path / "model")
    assert is_complete(ran, "model.safetensors", "samples.png", "loss.png")
    assert "note: blobs.csv: column 'class' is taken as the label (2 classes)" in ran.told
    assert "rows" in ran.printed and rows(ran.printed)["blobs"][0] == "40"
    checkpoint = f"checkpoint = '{tmp_path}/model/model.safetensors'\ncount = 8\n"
    drawn = scoresens("sample", settings_file(tmp_path, checkpoint), out=tmp_path / "samples")
    arrays, result = arrays_of(drawn.out / "samples.npz"), drawn.result
    values = np.loadtxt(table, delimiter=",", skiprows=1, usecols=(0, 1, 2))
    by_hand = values.mean(0) + values.std(0) * arrays["x"]
    np.testing.assert_allclose(arrays["x_in_own_units"], by_hand, rtol=1e-6)
    for place, column in enumerate("abc"):
        found = result["columns_in_own_units"][column]
        assert found["sample_mean"] == pytest.approx(by_hand[:, place].mean())
        assert found["sample_std"] == pytest.approx(by_hand[:, place].std())
    change = data + "label = 'class'\n[change]\nclasses = ['far']\nmass = 0.3\n"
    moved = scoresens(
        "counterfactual", settings_file(tmp_path, f"{checkpoint}bandwidth = 0.5\n{change}"),
        out=tmp_path / "moved",
    )  # fmt: skip
    assert is_complete(moved, "report.png", "samples.npz")
    arrays = arrays_of(moved.out / "samples.npz")
    moves = (arrays["x"][:, -1] - arrays["before"]) * values.std(0)
    found = [moved.result["columns_in_own_units"][column] for column in "abc"]
    means = [each["change_at_last_mass_mean"] for each in found]
    np.testing.assert_allclose(means, moves.mean(0), rtol=1e-5)
    sizes = [each["change_at_last_mass_rms"] for each in found]
    np.testing.assert_allclose(sizes, np.sqrt((moves**2).mean(0)), rtol=1e-5)


def test_a_table_of_another_scale_is_refused(table, tmp_path):
    data = f"[data]\nlabel = 'class'\nname = '{table}'\n"
    scoresens("train", settings_file(tmp_path, data + TINY), out=tmp_path / "model")
    other = tmp_path / "other.csv"
    other.write_text(table.read_text().rsplit("\n", 1)[0])
    text = (
        f"checkpoint = '{tmp_path}/model/model.safetensors'\n{data.replace(str(table), str(other))}"
    )
    change = "[change]\nclasses = ['far']\n"
    told = refused(
        scoresens("sensitivity", settings_file(tmp_path, text + change), out=tmp_path / "x")
    )
    assert "was trained on rows of other columns or of another mean and spread" in told


def test_a_column_is_attributed_in_its_own_units(table, tmp_path):
    data = f"[data]\nlabel = 'class'\nname = '{table}'\n"
    scoresens("train", settings_file(tmp_path, data + TINY), out=tmp_path / "model")
    text = f"checkpoint = '{tmp_path}/model/model.safetensors'\ncount = 3\nbandwidth = 0.5\n{data}"
    asked = settings_file(tmp_path, f"{text}[functional]\nkind = 'pixel'\npixel = [2]\n")
    ran = scoresens("attribute", asked, out=tmp_path / "owed")
    assert is_complete(ran, "report.png", "scores.npz") and "decide c of a sample" in ran.printed
    x = arrays_of(ran.out / "scores.npz")["x"]
    values = np.loadtxt(table, delimiter=",", skiprows=1, usecols=2)
    np.testing.assert_allclose(
        ran.result["value"], values.mean() + values.std() * x[:, 2], rtol=1e-5
    )

"""`scoresens attribute`."""

from pathlib import Path

import numpy as np
import pytest
from command_line import DATA, Ran, arrays_of, is_complete, rows, scoresens, with_checkpoint

from scoresens.cli._config import read
from scoresens.cli.attribute import AttributeRun
from scoresens.datasets.images import prepare

pytestmark = pytest.mark.slow  # commands from end to end


def attributed(folder: Path, trained: Ran, text: str) -> tuple[Ran, dict]:
    text = f"count = 3\nsteps = 4\ntop = 2\n{text}"
    ran = scoresens("attribute", with_checkpoint(folder, trained, text), out=folder / "out")
    assert is_complete(ran, "scores.npz", "report.png")
    return ran, dict(np.load(folder / "out" / "scores.npz"))


@pytest.mark.parametrize("how", ["", "scores = 'top'\nbase = 'model'\ntrace = 1\nsampler = 'sde'"])
def test_attribute_names_the_helpful_and_the_harmful(tmp_path, trained, how):
    ran, arrays = attributed(tmp_path, trained, f"{how}\n{DATA}")
    result = ran.result
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes.pop("x") == (3, 8, 8, 1) and shapes.pop("value") == (3,)
    assert shapes.pop("levels") == (4,) and shapes.pop("profile") == (3, 4)
    if "top" in how:
        assert shapes.keys() == {"top_indices", "top_values", "bottom_indices", "bottom_values"}
        assert set(shapes.values()) == {(3, 2)}
    else:
        assert shapes == {"scores": (3, 60)}
        order = np.argsort(arrays["scores"], 1)
        np.testing.assert_array_equal(result["top_indices"], order[:, :-3:-1])
        np.testing.assert_array_equal(result["bottom_indices"], order[:, :2])
        largest = np.sort(arrays["scores"], 1)[:, :-3:-1]
        np.testing.assert_allclose(result["top_values"], largest, rtol=1e-6)
    # the number that is asked about: the distance from the mean of the data
    (images,) = (read_data(tmp_path).images,)
    distances = np.linalg.norm((arrays["x"] - images.mean(0)).reshape(3, -1), axis=1)
    np.testing.assert_allclose(result["value"], distances, rtol=1e-4)
    assert list(rows(ran.printed)) == ["sample 0", "sample 1", "sample 2"]
    best = result["top_values"][0][0] / 100
    assert f"{best:+.2f} by #{result['top_indices'][0][0]}" in ran.printed
    assert 0.002 < min(result["median_level"]) <= max(result["median_level"]) < 80


def read_data(folder: Path):
    return prepare(read(folder / "run.toml", AttributeRun).data)


def test_attribute_agrees_with_sensitivity(tmp_path, trained):
    """The score of a class, by summing over its images, and by its tangent."""
    text = f"count = 3\nsteps = 4\n{DATA}[change]\nclasses = ['3']\nmass = 1.0"
    config = with_checkpoint(tmp_path, trained, text)
    assert scoresens("sensitivity", config, out=tmp_path / "forward").code == 0
    tangent = arrays_of(tmp_path / "forward" / "tangents.npz")["tangent"]
    _, arrays = attributed(tmp_path, trained, f"{DATA}[functional]\nkind='pixel'\npixel=[4, 3]")
    data = read_data(tmp_path)
    summed = arrays["scores"][:, data.labels == 3].mean(1)
    np.testing.assert_allclose(summed, tangent[:, 4, 3, 0], rtol=1e-3, atol=1e-5)


def test_attribute_takes_several_numbers_at_once(tmp_path, trained):
    text = f"{DATA}[functional]\nkind = 'components'\ncomponents = 2"
    ran, arrays = attributed(tmp_path, trained, text)
    assert arrays["scores"].shape == (3, 2, 60) and arrays["profile"].shape == (3, 2, 4)
    assert np.shape(ran.result["top_indices"]) == (3, 2, 2)
    assert "most raising" in ran.printed and "helpful" not in ran.printed
    assert list(rows(ran.printed))[:2] == ["sample 0, component 1", "sample 0, component 2"]

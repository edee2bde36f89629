"""`scoresens counterfactual`."""

import json

import numpy as np
import pytest
from command_line import CHANGE, DATA, arrays_of, is_complete, rows, scoresens, with_checkpoint

from scoresens.datasets.images import DataSettings, prepare
from scoresens.studies.trust import POWER, QUANTILE

pytestmark = pytest.mark.slow  # commands from end to end


@pytest.mark.parametrize(
    ("change", "base", "masses"),
    [
        (CHANGE, "data", ()),
        ("[change]\nkind = 'remove'\nclasses = ['3', '5']", "model", (0.5, 1.0)),
    ],
)
def test_counterfactual_writes_a_strip_and_its_samples(tmp_path, trained, change, base, masses):
    text = f"base = '{base}'\nmasses = {list(masses)}\ncount = 3\nsteps = 4\n{DATA}{change}"
    ran = scoresens(
        "counterfactual", with_checkpoint(tmp_path, trained, text), out=tmp_path / "out"
    )
    assert is_complete(ran, "samples.npz", "report.png")
    result, arrays = ran.result, arrays_of(tmp_path / "out" / "samples.npz")
    added = "remove" not in change
    masses = masses or (0.008, 0.02, 0.04, 0.08, 0.2)
    np.testing.assert_allclose(arrays["masses"], masses)
    assert result["masses"] == pytest.approx(masses)
    assert arrays["before"].shape == (3, 8, 8, 1)
    assert arrays["x"].shape == (3, len(masses), 8, 8, 1)
    moved = (arrays["x"] - arrays["before"][:, None]).reshape(3, len(masses), -1)
    sizes = np.linalg.norm(moved, axis=2)
    if added:  # in 4 steps the density ratios of a removal are not to be trusted
        assert (sizes[:, -1] > sizes[:, 0]).all()
    np.testing.assert_allclose(result["norms"], sizes, rtol=1e-6)
    assert [row["max"] for row in result["norm"]] == pytest.approx(sizes.max(0))
    assert result["bounded_steps"] == arrays["bounded"].sum(0).tolist()
    assert result["bounded_samples"] == (arrays["bounded"] > 0).sum(0).tolist()
    assert sum(result["bounded_steps"]) == 0 or (base, added) == ("model", False)
    if base == "data":  # of one network and its data all bounds tell the same m
        bound = np.array(result["cosine_bound"])
        apart = sizes[:, -1] * np.tan(np.arccos(bound) / 2) ** (1 / POWER) / QUANTILE
        assert apart[0] > 0.05 and bound.shape == (3,)
        np.testing.assert_allclose(apart, apart[0], rtol=1e-5)
        assert f"above {np.median(bound):.2f} at the median sample" in ran.printed
    else:
        assert "cosine_bound" not in result
        assert "how far to trust it was measured on other predictions only" in ran.printed
    assert list(rows(ran.printed)) == [f"{mass:g}" for mass in masses]
    assert ("add class 3 at mass" in ran.printed) == added


def test_along_the_sde_small_changes_are_those_that_attribute_predicts(tmp_path, trained):
    """The same Brownian path before, after, and in the scores of another command."""
    few = f"sampler = 'sde'\ncount = 3\nsteps = 4\nseed = 5\n{DATA}"
    change = "[change]\nclasses = ['3']\nmass = 1.0"
    config = with_checkpoint(tmp_path, trained, f"masses = [0.001]\n{few}{change}")
    assert scoresens("counterfactual", config, out=tmp_path / "after").code == 0
    arrays = arrays_of(tmp_path / "after" / "samples.npz")
    assert "cosine_bound" not in json.loads((tmp_path / "after" / "result.json").read_text())
    config = with_checkpoint(tmp_path, trained, f"{few}[functional]\nkind='pixel'\npixel=[4, 3]")
    assert scoresens("attribute", config, out=tmp_path / "scores").code == 0
    found = arrays_of(tmp_path / "scores" / "scores.npz")
    np.testing.assert_allclose(found["x"], arrays["before"], rtol=1e-5, atol=1e-5)
    data = prepare(DataSettings("digits", count=60))
    predicted = found["scores"][:, data.labels == 3].mean(1)
    slope = (arrays["x"][:, 0] - arrays["before"])[:, 4, 3, 0] / 0.001
    np.testing.assert_allclose(slope, predicted, rtol=0.02, atol=0.02 * np.abs(predicted).max())

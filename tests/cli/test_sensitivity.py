"""`scoresens sensitivity`."""

import numpy as np
import pytest
from command_line import CHANGE, DATA, arrays_of, is_complete, rows, scoresens, with_checkpoint

pytestmark = pytest.mark.slow  # commands from end to end


@pytest.mark.parametrize("base", ["data", "model"])
def test_sensitivity_writes_tangents_and_a_report(tmp_path, trained, base):
    text = f"base = '{base}'\ncount = 3\nsteps = 4\ntrace = 1\n{DATA}{CHANGE}"
    ran = scoresens("sensitivity", with_checkpoint(tmp_path, trained, text), out=tmp_path / "out")
    assert is_complete(ran, "tangents.npz", "report.png")
    arrays = arrays_of(tmp_path / "out" / "tangents.npz")
    assert arrays["x"].shape == arrays["tangent"].shape == (3, 8, 8, 1)
    assert ("log_density" in arrays) == (base == "model")
    sizes = 0.2 * np.linalg.norm(arrays["tangent"].reshape(3, -1), axis=1)
    np.testing.assert_allclose(ran.result["norms"], sizes, rtol=1e-6)
    assert ran.result["first_order_norm"]["max"] == pytest.approx(sizes.max())
    assert ran.result["touched_images"] < ran.result["images"] == 60
    assert list(rows(ran.printed)) == [f"first order ({base})"]
    assert "add class 3 at mass 0.2" in ran.printed

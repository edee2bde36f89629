"""`scoresens demo`."""

import numpy as np
import pytest
from command_line import is_complete, refused, rows, scoresens

from scoresens.datasets.images import load

pytestmark = pytest.mark.slow  # commands from end to end


def test_demo_needs_no_settings(tmp_path):
    ran = scoresens("demo", "--class", 1, "--mass", 0.3, "--count", 2, out=tmp_path / "out")
    assert is_complete(ran, "report.png", "strip.png", "attribution.png")
    result = ran.result
    assert (result["class"], result["mass"], result["count"]) == ("1", 0.3, 128)
    assert {name: len(values) for name, values in result["samples"].items()} == dict.fromkeys(
        ("first_order_norm", "counterfactual_norm", "cosine", "class_before", "class_after"), 128
    )
    sizes = np.array(result["samples"]["counterfactual_norm"])
    assert result["shown"] == [sizes.argmax(), sizes.argmin()]
    ones = (load("digits").labels == 1).mean()
    shares = result["class_share"]
    assert shares["data_before"] == pytest.approx(ones)
    assert shares["data_after"] == pytest.approx(0.7 * ones + 0.3)
    assert shares["samples_after"] > shares["samples_before"] + 0.1  # what the demo is to show
    assert len(rows(ran.printed)) == 3
    strip = result["strip"]
    assert strip["masses"] == [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0]
    np.testing.assert_allclose(np.array(strip["norms"])[:, 4], sizes, rtol=1e-6)
    found = result["attribution"]
    assert np.shape(found["top_indices"]) == np.shape(found["bottom_values"]) == (2, 10)
    assert found["class"] == [result["samples"]["class_before"][i] for i in result["shown"]]
    shares = found["same_class"]
    assert shares["top"] > max(0.5, shares["bottom"])  # what the picture is to show


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--class", "11"), "class '11' is not in digits: its classes are 0, 1"),
        (("--mass", "1.5"), "mass must lie in (0, 1], got 1.5"),
        (("--mass", "x"), "argument --mass: invalid float value: 'x'"),
        (("--count", "0"), "count must be at least 1"),
        (("--cuont", "1"), "unrecognized arguments: --cuont"),
    ],
)
def test_wrong_options_of_the_demo_are_named(tmp_path, options, complaint):
    assert complaint in refused(scoresens("demo", *options, out=tmp_path / "out"))

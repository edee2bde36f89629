"""The page's Python runs as printed."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "discrete.md"


@pytest.mark.slow
def test_the_page_runs_and_its_numbers_are_of_one_change():
    script = "\n".join(
        re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    )
    names = {}
    with jax.enable_x64(False):
        exec(script, names)
    moved, change = np.asarray(names["moved"]), np.asarray(names["change"])
    assert moved.shape == (8, 1) and change.shape == (8,)
    assert names["owed"].top_values.shape == names["owed"].bottom_values.shape == (8, 5)
    # A small step is the derivative's, to second order and float32.
    dc, small = names["dc"], 1e-3
    given = (names[name] for name in ("process", "denoiser", "data", "threes"))
    process, denoiser, data, threes = given
    near = dc.counterfactual(process, denoiser, data, threes, small)
    step = dc.log_probability(process, near, names["drawn"])
    step = np.asarray(step - dc.log_probability(process, denoiser, names["drawn"])) / small
    np.testing.assert_allclose(step, moved[:, 0], atol=0.05 * np.abs(moved).max())

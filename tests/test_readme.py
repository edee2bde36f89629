"""The README's Python runs as printed."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_scripts_run_and_agree_with_each_other():
    scripts = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    with jax.enable_x64(False):
        exec("\n".join(scripts), names)
    moved, after, alone = names["moved"], names["after"], names["alone"]
    assert moved.tangent.shape == after.x.shape == alone.tangent.shape == (16, 1, 8, 8, 1)
    # Both bases follow the same flow, and both predict the direction of the finite change.
    np.testing.assert_allclose(moved.x, alone.x, atol=1e-3)
    real = (after.x[:, 0] - moved.x).reshape(16, -1)
    for predicted in (moved.tangent[:, 0].reshape(16, -1), alone.tangent[:, 0].reshape(16, -1)):
        sizes = np.linalg.norm(real, axis=1) * np.linalg.norm(predicted, axis=1)
        cosines = np.sum(np.asarray(real * predicted), 1) / sizes
        assert np.median(cosines) > 0.8
    # The wave has a residual of its own size, and opens a gap that the bound covers.
    assert 0.01 < np.abs(names["residual"]).max() < 1
    assert names["bound"].energy.high > 0 and int(names["bound"].kept) == 64

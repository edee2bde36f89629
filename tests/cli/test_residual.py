"""`scoresens residual` from end to end on tiny runs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import refused, scoresens, settings_file

import scoresens as ss
from scoresens.cli._config import read
from scoresens.cli.residual import ResidualRun, at_level
from scoresens.datasets.images import load
from scoresens.flow.traces import Exact
from scoresens.laws.measures import GaussianMixture
from scoresens.laws.scores import exact_score, from_denoiser
from scoresens.models import ModelSettings, build, save

pytestmark = pytest.mark.slow  # commands from end to end


@pytest.fixture
def checkpoint(tmp_path):
    """A small network of random parameters."""
    settings = ModelSettings(kind="mlp", width=8, depth=1)
    model = build(settings, (8, 8, 1), 0.5, key=jax.random.key(0))
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda leaf: leaf + np.float32(0.3 * rng.normal(size=leaf.shape)), model)
    save(tmp_path / "model.safetensors", moved, {})
    return tmp_path / "model.safetensors"


def test_residual_of_a_checkpoint_by_noise_level(tmp_path, checkpoint):
    text = f"""
    checkpoint = '{checkpoint}'
    levels = [0.3, 5]
    count = 3
    trace = 2
    [data]
    name = 'digits'
    count = 60
    """
    ran = scoresens("residual", settings_file(tmp_path, text), out=tmp_path / "out")
    assert ran.code == 0, ran.told
    assert ran.files == {"result.json", "report.png"}
    fine, coarse = ran.result["levels"]
    assert (fine["level"], coarse["level"]) == (0.3, 5.0) and ran.result["images"] == 60
    for row in (fine, coarse):
        for name in ("relative_residual", "antisymmetric_share", "denoiser_antisymmetric_share"):
            assert 0 <= row[name]["low"] <= row[name]["value"] <= row[name]["high"]
        assert row["antisymmetric_share"]["value"] < 1
        relative = row["residual_norm"]["value"] / row["rate_norm"]["value"]
        assert row["relative_residual"]["value"] == pytest.approx(relative)
    # at high noise every score is nearly that of one point, which obeys the equation
    assert 0 < coarse["relative_residual"]["value"] < fine["relative_residual"]["value"]
    assert 0 < coarse["antisymmetric_share"]["value"] < fine["antisymmetric_share"]["value"]
    value = fine["relative_residual"]["value"]
    (line,) = [line for line in ran.printed.splitlines() if line.startswith("0.3 ")]
    assert line.split()[1] == f"{value:.3g}"
    assert "2/2" in ran.told  # the progress bar


def test_an_exact_denoiser_leaves_nothing_over():
    """The score of a mixture of Gaussians obeys all equations."""
    means = jnp.asarray([[0.0, 1.0], [2.0, -1.0]])
    law = GaussianMixture(jnp.array([0.3, 0.7]), means, jnp.array([0.5, 0.2]))
    x = jax.random.normal(jax.random.key(0), (5, 2))
    score, key = exact_score(ss.EDM(), law), jax.random.key(1)
    found = at_level(ss.EDM(), score, x, 0.7, Exact(), key=key)
    assert (found.residual < 1e-18 * found.rate).all()
    assert found.twist.shape == (2, 5) and (found.twist < 1e-18 * found.whole).all()


def test_shares_are_those_of_dense_jacobians():
    """A linear denoiser W x: its Jacobian is W, and that of its score (W - I) / tau^2."""
    matrix = jnp.array([[0.5, 0.3], [-0.1, 0.2]])
    score = from_denoiser(ss.EDM(), lambda t, x: matrix @ x)
    found = at_level(ss.EDM(), score, jnp.ones((3, 2)), 2.0, Exact(), key=jax.random.key(0))
    whole = np.array([np.sum((matrix - jnp.eye(2)) ** 2), np.sum(matrix**2)])
    twisted = 2 * (0.4 / 2) ** 2  # |A|_F^2, A the antisymmetric part of either
    np.testing.assert_allclose(found.twist / found.whole, np.outer(twisted / whole, np.ones(3)))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("levels = [1, 0.5]", "levels must rise, got [1.0, 0.5]"),
        ("levels = [0, 0.5]", "levels must be positive"),
        ("levels = [1, 81]", "levels must be at most 80"),
        ("count = 1", "count must be at least 2, got 1"),
        ("checkpoint = 'no.safetensors'", "checkpoint: no checkpoint at"),
    ],
)
def test_wrong_settings_name_the_file_and_the_key(tmp_path, text, complaint):
    config = settings_file(tmp_path, text)
    line = refused(scoresens("residual", config, out=tmp_path / "out"))
    assert str(config) in line and complaint in line


def test_the_settings_file_that_comes_along_says_the_defaults():
    root = Path(__file__).parents[2]
    assert read(root / "configs/residual.toml", ResidualRun) == ResidualRun()
    assert len(load("digits").images) >= ResidualRun().count

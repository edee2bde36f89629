"""`scoresens validate` with experiment = "retrain"."""

import json

import numpy as np
import pytest
from command_line import TINY, Ran, scoresens, settings_file

from scoresens.cli import retrain as command
from scoresens.studies import retraining

pytestmark = pytest.mark.slow  # commands from end to end

SETTINGS = """
experiment = "retrain"
seeds = 2
count = 8
steps = 3
resamples = 20

[data]
name = "digits"
count = 24

[change]
kind = "half"
"""
SETTINGS += TINY


def straight(model, data, change, mass, noise, solve, trace):
    """Two predictions that cost nothing: what the picture shows must be there."""
    rising = np.zeros(noise.shape) + 0.1 * np.arange(1, 9)[:, None, None, None]
    return {"before": 0 * rising, "first_order_data": rising, "counterfactual_data": -rising}


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    folder = tmp_path_factory.mktemp("retrain")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(command, "predict_change", straight)
        found = scoresens("validate", settings_file(folder, SETTINGS), out=folder / "out")
    assert found.code == 0, found.told
    return found


def test_real_changes_are_of_pairs_of_one_seed(ran):
    models = {file.stem: np.load(file)["samples"] for file in (ran.out / "models").glob("*.npz")}
    assert models.keys() == {f"{name}-{seed}" for name in ("control", "changed") for seed in (0, 1)}
    real = np.stack([models[f"changed-{s}"] - models[f"control-{s}"] for s in (0, 1)])
    norm = np.linalg.norm(real.reshape(16, -1), axis=1).mean()
    assert ran.result["mean_norm"]["real"] == pytest.approx(norm, rel=1e-5)
    other, flat = real[::-1].ravel(), real.ravel()
    pearson = ran.result["another_seed"]["pooled_pearson"]["value"]
    assert pearson == pytest.approx(np.corrcoef(other, flat)[0, 1], rel=1e-4)


def test_every_method_is_in_the_table_and_the_picture_is_there(ran):
    for line in ("first_order_data", "counterfactual_data", "another_seed", "trained from scratch"):
        assert line in ran.printed
    assert {"report.png", "result.json", "study.json"} <= ran.files


def test_a_retraining_goes_on_where_it_was(ran, monkeypatch):
    monkeypatch.setattr(command, "predict_change", straight)
    monkeypatch.setattr(retraining, "train_trial", lambda *_: pytest.fail("trained again"))
    again = scoresens("validate", ran.out.parent / "run.toml", out=ran.out)
    assert again.code == 0 and again.printed == ran.printed


def test_another_change_is_kept_out(ran, tmp_path):
    other = settings_file(tmp_path, SETTINGS.replace('kind = "half"', 'kind = "half"\nseed = 5'))
    refused = scoresens("validate", other, out=ran.out)
    assert refused.code == 2 and "other settings of change" in refused.told
    assert json.loads((ran.out / "study.json").read_text())["change"]["seed"] == 0

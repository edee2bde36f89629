"""`scoresens train`."""

import pytest
from command_line import is_complete, rows

from scoresens.models import load as load_model

pytestmark = pytest.mark.slow  # commands from end to end


def test_train_writes_a_checkpoint_that_loads(trained):
    assert is_complete(trained, "model.safetensors", "samples.png", "loss.png")
    model, about = load_model(trained.out / "model.safetensors")
    assert model.network.shape == (8, 8, 1) and about["data"] == "digits"
    result = trained.result
    assert result["settings"]["train"]["steps"] == 20
    assert rows(trained.printed)["digits"][:3] == ["60", str(result["parameters"]), "20"]
    assert "100%" in trained.told  # the progress bar

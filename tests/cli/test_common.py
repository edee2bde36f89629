"""What the commands share."""

import math

import pytest
from command_line import CHANGE, DATA, with_checkpoint

from scoresens.cli._common import as_json, set_up_change
from scoresens.cli._config import read
from scoresens.cli._progress import Stages
from scoresens.cli.sensitivity import SensitivityRun


def test_a_number_that_does_not_exist_is_written_as_null():
    assert as_json({"value": 1.0, "low": math.nan, "high": math.inf}) == {
        "value": 1.0,
        "low": None,
        "high": None,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("count", "noted"), [(60, False), (50, True)])
def test_other_data_than_the_checkpoint_was_trained_on_are_pointed_out(
    tmp_path, trained, capsys, count, noted
):
    text = DATA.replace("60", str(count)) + CHANGE
    run = read(with_checkpoint(tmp_path, trained, text), SensitivityRun)
    found = set_up_change(run, run.checkpoint, "run.toml", Stages())
    assert len(found.setup.data) == count
    assert ("was trained on 60 images of digits" in capsys.readouterr().err) == noted

"""What the commands share."""

import math
import warnings
from pathlib import Path

import pytest
from command_line import CHANGE, DATA, with_checkpoint

from scoresens.cli._common import as_json, set_up_change
from scoresens.cli._config import read
from scoresens.cli._progress import Stages, noting
from scoresens.cli.sensitivity import SensitivityRun
from scoresens.datasets.images import DataSettings
from scoresens.studies.changes import ChangeSettings


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


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ({}, True),
        ({"temperature": 2.0}, True),
        ({"bandwidth": 1.0}, False),
        ({"width": 1.0}, False),
        ({"resolution": 0.0}, False),
        ({"base": "model"}, False),
        ({"change": ChangeSettings("model", checkpoint=Path("other"))}, False),
    ],
)
def test_the_model_is_asked_for_a_kernel_where_none_is_named(named, asked):
    """Nor for a black box, nor where another model is added: these want densities."""
    settings = {"data": DataSettings("digits"), "change": ChangeSettings("half")} | named
    assert SensitivityRun(**settings).calibrated == asked


def test_a_warning_to_the_user_is_a_note_in_a_line(capsys):
    with pytest.warns(DeprecationWarning), noting():
        warnings.simplefilter("always")
        warnings.warn("pictures are turned", stacklevel=1)
        warnings.warn("soon gone", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == "\nnote: pictures are turned\n"

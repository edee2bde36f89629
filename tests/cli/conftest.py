"""A checkpoint for all commands."""

import pytest
from command_line import DATA, scoresens, settings_file


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    text = f"""{DATA}
    [model]
    kind = "mlp"
    width = 16
    depth = 1
    [train]
    steps = 20
    batch_size = 16
    warmup = 2
    ema_halflife = 5
    """
    return scoresens("train", settings_file(folder, text), out=folder / "out")

"""`scoresens sample`."""

import pytest
from command_line import (
    arrays_of,
    is_complete,
    refused,
    rows,
    scoresens,
    settings_file,
    with_checkpoint,
)

WRITTEN = "samples.npz", "samples.png"
pytestmark = pytest.mark.slow  # commands from end to end


@pytest.mark.parametrize(
    ("how", "density"),
    [
        ("trace = 'exact'", True),
        ("sampler = 'sde'", False),
        ("sampler = 'sde'\ntrace = 2", True),
    ],
)
def test_sample_writes_what_it_drew(tmp_path, trained, how, density):
    config = with_checkpoint(tmp_path, trained, f"count = 3\nsteps = 4\n{how}")
    ran = scoresens("sample", config, out=tmp_path / "out")
    assert is_complete(ran, "samples.npz", "samples.png")
    arrays = arrays_of(tmp_path / "out" / "samples.npz")
    assert arrays["x"].shape == arrays["noise"].shape == (3, 8, 8, 1)
    assert ("log_density" in arrays) == ("log_density" in ran.result) == density
    assert ran.result["mean"] == pytest.approx(arrays["x"].mean())
    (row,) = rows(ran.printed).values()
    assert row[0] == "3" and len(row) == (5 if density else 3)
    if density:
        assert ran.result["log_density"]["mean"] == pytest.approx(arrays["log_density"].mean())


def test_a_second_run_replaces_the_files_of_the_first(tmp_path, trained):
    text = "count = 3\nsteps = 4\nsampler = 'sde'\nseed = "
    first, second = (
        scoresens("sample", with_checkpoint(tmp_path, trained, text + seed), out=tmp_path / "out")
        for seed in "01"
    )
    assert is_complete(second, "samples.npz", "samples.png")
    assert second.result["settings"]["seed"] == 1
    assert first.printed != second.printed


def test_an_error_of_drawing_costs_the_picture_and_a_line(tmp_path, trained, monkeypatch):
    def fail(*_):
        raise RuntimeError("latex was not found")

    config = with_checkpoint(tmp_path, trained, "count = 3\nsteps = 4\n")
    assert is_complete(scoresens("sample", config, out=tmp_path / "out"), *WRITTEN)
    monkeypatch.setattr("scoresens.report.page.Page.save", fail)
    again = scoresens("sample", config, out=tmp_path / "out")
    assert is_complete(again, "samples.npz")  # nor is the earlier picture beside later numbers
    (line,) = [line for line in again.told.splitlines() if "latex" in line]
    assert line == "note: samples.png is not drawn: RuntimeError: latex was not found"
    assert "samples.npz, result.json" in again.printed


def test_a_truncated_checkpoint_is_refused(tmp_path, trained):
    whole = (trained.out / "model.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    config = settings_file(tmp_path, f"checkpoint = '{tmp_path}/half.safetensors'")
    assert "half.safetensors is damaged" in refused(
        scoresens("sample", config, out=tmp_path / "out")
    )

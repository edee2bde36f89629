"""`scoresens validate` with experiment = "halves"."""

import json
from pathlib import Path
from runpy import run_path

import jax
import numpy as np
import pytest
from command_line import TINY, Ran, scoresens, settings_file

import scoresens as ss
from scoresens.cli import halves as command
from scoresens.cli._config import read
from scoresens.datasets.images import DataSettings, prepare
from scoresens.models import load
from scoresens.studies import retraining
from scoresens.studies.predictions import LOSSES, MOVES

pytestmark = pytest.mark.slow  # commands from end to end

SETTINGS = """
experiment = "halves"
steps = 3
resamples = 20

[data]
name = "digits"
count = 24

[halves]
seeds = 2
subsets = 4
choosing = 4
samples = 2
held_out = 3
levels = 2
components = 2
"""
SETTINGS += TINY
JUDGE = Path(__file__).parents[2] / "benchmarks" / "rivals" / "judge.py"


@pytest.fixture(scope="module")
def few_methods():
    with pytest.MonkeyPatch.context() as patched:
        moves = {name: MOVES[name] for name in ("mean shift", "cosine")}
        losses = {name: LOSSES[name] for name in ("closed form, no network", "kernel", "random")}
        patched.setattr(command, "TARGETS", {"displacement": moves, "loss": losses})
        yield


@pytest.fixture(scope="module")
def folder(few_methods, tmp_path_factory):
    return tmp_path_factory.mktemp("halves")


@pytest.fixture(scope="module")
def ran(folder) -> Ran:
    found = scoresens("validate", settings_file(folder, SETTINGS), out=folder / "out")
    assert found.code == 0, found.told
    return found


def test_a_study_measures_every_method_with_its_ceiling(ran, folder):
    result = json.loads((folder / "out/result.json").read_text())
    assert result["displacement"]["methods"].keys() == {"mean shift", "cosine"}
    row = result["displacement"]["methods"]["mean shift"]
    assert row["chosen"].keys() == {"lds", "pearson", "cosine", "l2", "size"}
    assert max(row["choosing"], key=lambda pair: pair[1])[0] == row["setting"]
    assert "default" not in result["displacement"]["methods"]["cosine"]
    assert result["loss"]["ceiling"].keys() >= {"lds", "pearson"}
    assert result["generated"]["kernel"].keys() == {"generated", "held_out"}
    for line in ("mean shift", "kernel", "the effect that seeds share", "another seed's training"):
        assert line in ran.printed
    assert (folder / "out/report.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((folder / "out/models").glob("*.npz"))) == 2 * (8 + 1)


def pearson(folder, prediction):
    """Of losses predicted and true, from the files."""
    outputs = {file.stem: np.load(file)["losses"] for file in (folder / "out/models").glob("*.npz")}
    true = np.array([
        [outputs[f"half-{half:03d}-{seed}"] - outputs[f"all-{seed}"] for half in range(4)]
        for seed in range(2)
    ])  # fmt: skip
    found = np.load(folder / f"out/predictions/loss-{prediction}.npy")[:, :4]
    p, t = (a - a.mean(1, keepdims=True) for a in (found, true))
    each = [(p[r] * t[r]).sum() / np.sqrt((p[r] ** 2).sum() * (t[r] ** 2).sum()) for r in (0, 1)]
    return pytest.approx(np.mean(each), abs=1e-3)


def test_truth_is_what_the_models_put_out(ran, folder):
    """The table's number again, from the files."""
    row = json.loads((folder / "out/result.json").read_text())["loss"]["methods"]["kernel"]
    assert row["chosen"]["pearson"][0] == pearson(folder, f"kernel-{row['setting']}")


def test_the_default_is_the_kernel_that_each_model_is_nearest_to(ran, folder):
    """What `calibrate` says of a model that is kept, and what is predicted by it."""
    result = json.loads((folder / "out/result.json").read_text())
    kept = np.load(folder / "out/questions.npz")["kept"]
    images = prepare(DataSettings("digits", count=24)).images[kept]
    model, _ = load(folder / "out/all-1.safetensors")
    points = ss.calibrate(model.process, model.score, images, key=jax.random.key(0)).points
    kernel = {"width": points.kernel.width, "resolution": points.kernel.resolution}
    assert result["kernels"][1] == pytest.approx(kernel | {"bandwidth": points.bandwidth})
    row = result["loss"]["methods"]["closed form, no network"]
    assert row["choosing"][-1][0] == "calibrated" != row["setting"]
    assert row["default"]["pearson"][0] == pearson(folder, "closed-form-no-network-calibrated")


def test_a_study_goes_on_where_it_was(ran, folder, monkeypatch):
    for name in ("half-002-1", "all-0"):  # the model of all images is there, and is evaluated again
        (folder / f"out/models/{name}.npz").unlink()
    trained = []
    real = retraining.train_trial

    def counted(trial, *rest):
        trained.append(trial.seed)
        return real(trial, *rest)

    monkeypatch.setattr(retraining, "train_trial", counted)
    again = scoresens("validate", folder / "run.toml", out=folder / "out")
    assert again.code == 0 and trained == [1]
    assert again.printed == ran.printed


def test_another_study_is_kept_out(ran, folder, tmp_path):
    other = settings_file(tmp_path, SETTINGS.replace("steps = 6", "steps = 7"))
    refused = scoresens("validate", other, out=folder / "out")
    assert refused.code == 2
    assert "holds a study with other settings of train: choose another --out" in refused.told


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            '"halves"',
            '"thirds"',
            "experiment must be one of 'finetune', 'retrain', 'halves', 'removal', got 'thirds'",
        ),
        ("subsets = 4", "subsets = 3", "subsets must be at least 4, got 3"),
        ("held_out = 3", "held_out = 22", "24 images leave nothing to train on"),
    ],
)
def test_settings_that_cannot_be(tmp_path, old, new, words):
    refused = scoresens(
        "validate", settings_file(tmp_path, SETTINGS.replace(old, new)), out=tmp_path / "out"
    )
    assert refused.code == 2 and words in refused.told


def test_rivals_beside(ran, folder):
    """Scores of the points that another program has left are judged with the rest."""
    rivals = folder / "out/rivals"
    rivals.mkdir()
    scores = np.random.default_rng(0).normal(size=(2, 3, 5, 21)).astype(np.float32)
    kept = {"dampings": np.array([0.1, 1.0, 10.0]), "seeds": np.arange(2)}
    np.savez(rivals / "trak.npz", scores=scores, **kept)
    again = scoresens("validate", folder / "run.toml", out=folder / "out")
    assert again.code == 0 and "trak" in again.printed
    result = json.loads((folder / "out/result.json").read_text())
    assert [pair[0] for pair in result["loss"]["methods"]["trak"]["choosing"]] == ["0.1", "1", "10"]
    run = read(folder / "run.toml", command.HalvesRun)
    found = run_path(str(JUDGE))["judged"](run, folder / "out", rivals / "trak.npz")
    row, apart = json.loads(json.dumps(found))  # from what is kept alone, without the command
    assert row.pop("seeds") == [0, 1]
    assert row == result["loss"]["methods"]["trak"]
    assert apart == result["generated"]["trak"]

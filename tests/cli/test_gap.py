"""`scoresens gap` from end to end on tiny runs."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from command_line import Ran, refused, scoresens, settings_file
from flax import nnx

from scoresens._pytrees import fingerprint
from scoresens.cli import gap
from scoresens.cli._config import read
from scoresens.cli.gap import GapRun
from scoresens.flow.tabulated import Table
from scoresens.models.potential import PotentialMLP, read_potential, write_potential
from scoresens.statistics.histograms import Grid, wasserstein_of_histograms
from scoresens.studies import gap as gap_study
from scoresens.studies.store import Store

pytestmark = pytest.mark.slow  # commands from end to end

CONFIGS = Path(__file__).parents[2] / "configs"
SAMPLES = 500
GRID = Grid(3.5, 64)
NAMES = ["blob_w0.5", "odd"]
PUBLISHED = ("ode_blob_w0.5", "sde_blob_w0.5")
TRAIN = """
laws = ['blob']
weights = [0, 2]
samples = 500
bins = 16
[train]
steps = 2
batch_size = 4
collocation = 4
learning_rate = 1e-9
"""


def bowl(steep: float) -> PotentialMLP:
    """phi = -steep |x|_1 - 6 (|x_i| - 0.7)_+ summed, which keeps all samples near the origin."""
    network = PotentialMLP(2, width=8, rngs=nnx.Rngs(0))
    signs = np.kron([1.0, -1.0, 1.0, -1.0], np.eye(2))  # +x, +y, -x, -y, and once more
    weights = {
        "input": np.concatenate([np.zeros((1, 8)), signs]),
        "hidden1": np.eye(8),
        "hidden2": np.eye(8),
        "output": -np.repeat([steep, 6.0], 4)[:, None],
    }
    for name, kernel in weights.items():
        layer = getattr(network, name)
        layer.kernel[...] = jnp.asarray(kernel, jnp.float32)
        shift = [0.0, -0.7] if name == "input" else [0.0]
        shift = jnp.repeat(jnp.array(shift, jnp.float32), kernel.shape[1] // len(shift))
        layer.bias = nnx.Param(shift)
    return network


@pytest.fixture(scope="module", autouse=True)
def few_points():
    """Residuals at few points, truths of few samples, and small tables where none are named."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gap_study, "POINTS", 1000)
        patch.setattr(gap_study, "TRUTH", 20_000)
        patch.setattr(gap, "Table", lambda bins: Table(bins=min(bins, 16)))
        yield


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Two networks, one of no known weight, and published histograms of one of them."""
    folder = tmp_path_factory.mktemp("networks")
    for name, steep in zip(NAMES, (1.5, 3.0), strict=True):
        write_potential(folder / f"{name}.npz", bowl(steep))
    counts = np.zeros((64, 64), np.uint32)
    counts[20:44, 20:44] = 5
    with (folder / "histograms.npz").open("wb") as file:
        np.savez(file, **{"grid_axis": GRID.axis, **dict.fromkeys(PUBLISHED, counts)})
    return folder


@pytest.fixture(scope="module")
def first(networks, tmp_path_factory):
    out = tmp_path_factory.mktemp("gap") / "out"
    return scoresens("gap", "--networks", networks, "--samples", SAMPLES, "--seed", 3, out=out)


def copied(ran: Ran, folder: Path) -> Path:
    return Path(shutil.copytree(ran.out, folder / "out"))


def counting(monkeypatch) -> list[int]:
    """The numbers of samples of every network that is sampled from here on."""
    asked = []

    def sample(potential, samples, **options):
        asked.append(samples)
        return kept(potential, samples, **options)

    kept = gap_study.sample_network
    monkeypatch.setattr(gap_study, "sample_network", sample)
    return asked


# ------------------------------------------------------------------ gap


def test_gap_of_a_folder_writes_distances_and_pictures(first):
    assert first.code == 0, first.told
    assert first.files == {
        "result.json",
        "residual.png",
        "laws-blob.png",
        "laws-networks.png",
        *(f"samples/{name}.npz" for name in NAMES),
    }
    assert "laws-*.png, residual.png, result.json, samples/" in first.printed
    assert "networks/" not in first.printed  # none was trained
    result = first.result
    assert result.keys() >= {"settings", "versions", "seconds", "stages"}
    assert result["settings"]["samples"] == SAMPLES and result["settings"]["seed"] == 3
    assert list(result["networks"]) == NAMES
    assert f"{NAMES[1]}, 2 of 2: {SAMPLES} samples" in first.told


@pytest.mark.parametrize("name", NAMES)
def test_a_row_holds_the_numbers_of_its_samples(first, name):
    row = first.result["networks"][name]
    with np.load(first.out / "samples" / f"{name}.npz") as kept:
        found = {law: kept[law] for law in ("ode", "sde", "flow")}
    assert row["samples"] == SAMPLES
    for law in ("ode", "flow"):
        apart = wasserstein_of_histograms(found["sde"], found[law], GRID)
        assert row[f"w2_sde_{law}"] == pytest.approx(apart)
    low, high = row["w2_sde_ode_interval"]
    assert 0 <= low < row["w2_sde_ode"] < high
    low, high = row["residual_box_mean_interval"]
    assert low < row["residual_box_mean"] < high
    assert len(row["residual_by_time"]["mean"]) == len(row["residual_by_time"]["edges"]) - 1
    known = name == NAMES[0]  # the other's name tells neither law nor weight
    assert (row["data"], row["weight"]) == (("blob", 0.5) if known else ("odd", None))
    assert ("w2_ode_truth" in row) == ("published" in row) == known
    if known:
        published = row["published"]
        assert published["ratio_ode"] == pytest.approx(published["w2_ode"] / published["floor_ode"])


def test_the_table_shows_what_result_json_holds(first):
    row = first.result["networks"][NAMES[0]]
    lines = first.printed.splitlines()
    (header,) = [line for line in lines if line.startswith("network")]
    (line,) = [line for line in lines if line.startswith(NAMES[0])]
    low, high = row["w2_sde_ode_interval"]
    assert f"0.5  {row['w2_sde_ode']:.4f} [{low:.4f}, {high:.4f}]" in line
    assert line.endswith(f"{row['published']['w2_ode_flow']:.4f}")
    assert header.endswith("published ODE-flow") and "mean R^2" in header


def test_a_run_that_was_stopped_goes_on_where_it_was(first, networks, tmp_path, monkeypatch):
    out, asked = copied(first, tmp_path), counting(monkeypatch)
    (out / "result.json").unlink()
    (out / "samples" / f"{NAMES[1]}.npz").write_bytes(b"half a file")
    text = f"networks = '{networks}'\nsamples = {SAMPLES}\nseed = 3"  # as the options said
    again = scoresens("gap", settings_file(tmp_path, text), out=out)
    assert again.code == 0 and asked == [SAMPLES]  # of the damaged file alone
    assert again.result["networks"] == first.result["networks"]
    assert again.printed == first.printed.replace(str(first.out), str(out))


@pytest.fixture
def bowls(monkeypatch):
    """Training starts from a network whose samples stay."""
    monkeypatch.setattr(gap, "PotentialMLP", lambda *_, **__: bowl(1.5))


def test_gap_trains_a_network_a_law_and_weight_once(tmp_path, monkeypatch, bowls):
    config, out = settings_file(tmp_path, TRAIN), tmp_path / "out"
    ran = scoresens("gap", config, out=out)
    assert ran.code == 0, ran.told
    names = ["blob_w0.0", "blob_w2.0"]
    assert list(ran.result["networks"]) == names
    assert ran.files >= {f"networks/{name}.{end}" for name in names for end in ("npz", "json")}
    plain, penalised = (ran.result["networks"][name] for name in names)
    assert (plain["weight"], penalised["weight"]) == (0.0, 2.0)
    assert plain["training"].keys() == {"score_matching"}
    assert penalised["training"].keys() == {"score_matching", "residual"}
    assert json.loads((out / "networks" / "blob_w2.0.json").read_text())["train"]["steps"] == 2
    assert read_potential(out / "networks" / "blob_w2.0.npz").width == 8
    assert "networks/" in ran.printed

    (out / "networks" / "blob_w0.0.npz").write_bytes(b"half a file")
    trained, sampled = counting_trainings(monkeypatch), counting(monkeypatch)
    again = scoresens("gap", config, out=out)
    assert again.code == 0 and trained == [0.0]  # what was damaged alone
    assert sampled == []  # it is the same network again
    assert again.result["networks"] == ran.result["networks"]
    assert "blob_w2.0, 2 of 2: trained before" in again.told


def test_a_network_is_kept_for_the_settings_it_was_made_with(tmp_path):
    about = {"law": "blob", "seed": 0, "train": {"steps": 3, "where": "box"}}
    file = tmp_path / "blob_w0.0.npz"
    write_potential(file, bowl(1.0))

    def found(about):
        return Store(tmp_path, gap.network_of(about)).find("blob_w0.0")

    assert found(about) is None
    file.with_suffix(".json").write_text(json.dumps(about | {"losses": {"residual": 0.5}}))
    assert found(about).losses == {"residual": 0.5}
    assert fingerprint(found(about).potential) == fingerprint(bowl(1.0))
    for other in ({"seed": 1}, {"law": "checker"}, {"train": {"steps": 4, "where": "box"}}):
        assert found(about | other) is None
    file.with_suffix(".json").write_text("half a fi")
    assert found(about) is None


def counting_trainings(monkeypatch) -> list[float]:
    """The weights of the residual of every training from here on."""
    weights = []

    def train(*arguments, settings, **options):
        weights.append(settings.residual_weight)
        return kept(*arguments, settings=settings, **options)

    kept = gap.train_regularized
    monkeypatch.setattr(gap, "train_regularized", train)
    return weights


def test_a_network_that_drives_all_samples_away_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gap, "PotentialMLP", lambda *_, **__: bowl(-20.0))
    ran = scoresens("gap", settings_file(tmp_path, TRAIN), out=tmp_path / "out")
    assert ran.code == 1
    assert "error: blob_w0.0: none of 500 samples came within the grid" in ran.told.splitlines()[-1]
    assert "Traceback" not in ran.told and not (tmp_path / "out" / "result.json").exists()


# ------------------------------------------------------------------ what is refused, and how


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("laws = ['ring']", "laws[0]: expected 'blob' or 'circles2' or 'checker'"),
        ("laws = ['blob']\nweights = [-1]", "weights must be 0 or greater, got [-1.0]"),
        ("laws = ['blob']\nweights = []", "weights must be 0 or greater, got []"),
        ("laws = ['blob']\nweights = [1, 1.0]", "weights must differ"),
        ("laws = ['blob']\nsamples = 0", "samples must be at least 1, got 0"),
        ("laws = ['blob']\nbins = 3", "bins must be at least 4, got 3"),
        ("laws = ['blob']\n[train]\nsteps = 0", "train: steps must be positive"),
        (
            "laws = ['blob']\n[train]\nresidual_weight = 2",
            "train.residual_weight comes from weights",
        ),
        ("samples = 3", "name either laws to train networks on"),
        ("laws = ['blob']\nnetworks = 'x'", "name either laws to train networks on"),
        ("networks = 'no-such-folder'", "networks: no potential network in no-such-folder"),
    ],
)
def test_wrong_settings_name_the_file_and_the_key(tmp_path, text, complaint):
    config = settings_file(tmp_path, text)
    line = refused(scoresens("gap", config, out=tmp_path / "out"))
    assert str(config) in line and complaint in line


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "gap: either CONFIG or --networks FOLDER is needed, got neither"),
        (("CONFIG", "--networks", "x"), "gap: either CONFIG or --networks FOLDER is needed, got b"),
        (("CONFIG", "--samples", "3"), "gap: --samples goes with --networks: set it in CONFIG"),
        (("--networks", "x", "--samples", "0"), "gap: samples must be at least 1, got 0"),
        (("--networks", "x", "--samples", "many"), "argument --samples: invalid int value"),
    ],
)
def test_wrong_options_of_gap_are_named(tmp_path, options, complaint):
    assert complaint in refused(scoresens("gap", *options, out=tmp_path / "out"))


def folder_without_array(folder, networks):
    with np.load(networks / f"{NAMES[0]}.npz") as kept:
        arrays = dict(kept)
    del arrays["hidden2_b"]
    np.savez(folder / "blob_w1.0.npz", **arrays)


def folder_of_another_grid(folder, networks):
    shutil.copy(networks / f"{NAMES[0]}.npz", folder)
    np.savez(folder / "histograms.npz", grid_axis=np.linspace(-4, 4, 64))


def folder_of_another_dimension(folder, networks):
    write_potential(folder / "deep.npz", PotentialMLP(3, width=4, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder, networks: None, "no potential network in"),
        (folder_without_array, "blob_w1.0.npz lacks the arrays ['hidden2_b']"),
        (folder_of_another_grid, "histograms.npz: its grid has 64 points from -4 to 4"),
        (folder_of_another_dimension, "deep.npz takes samples of 3 entries"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, networks, make, complaint):
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder, networks)
    line = refused(scoresens("gap", "--networks", folder, out=tmp_path / "out"))
    assert "error: gap: networks:" in line and complaint in line


def test_the_settings_files_that_come_along_are_of_one_study():
    small, full = (read(CONFIGS / f"{name}.toml", GapRun) for name in ("gap", "gap-full"))
    assert small.laws == full.laws == ("blob", "circles2", "checker")
    assert small.weights == full.weights == (0.0, 0.1, 1.0, 10.0)
    assert small.train.steps < full.train.steps == 100_000 and full.train.collocation == 50_000

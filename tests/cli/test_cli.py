"""The command line from end to end on tiny runs: files, keys, tables, exit codes, and its words."""

import math
import os
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import Ran, scoresens, settings_file

from scoresens import cli
from scoresens.cli import EXPERIMENTS
from scoresens.cli.common import as_json, set_up
from scoresens.cli.config import read
from scoresens.cli.functionals import FunctionalSettings, make_question
from scoresens.cli.progress import Stages
from scoresens.cli.settings import (
    AttributeRun,
    CounterfactualRun,
    GapRun,
    ResidualRun,
    SampleRun,
    SensitivityRun,
    SweepRun,
    TrainRun,
    ValidateRun,
)
from scoresens.datasets.images import DataSettings, load, prepare
from scoresens.flow.solve import Solve
from scoresens.laws.measures import Points
from scoresens.laws.processes import EDM
from scoresens.laws.scores import exact_score
from scoresens.models import load as load_model
from scoresens.studies.finetuning import compare

CONFIGS = Path(__file__).parents[2] / "configs"
DATA = """
[data]
name = "digits"
count = 60
"""
CHANGE = """
[change]
classes = ["3"]
mass = 0.2
"""
MEASURES = {
    "median_cosine",
    "pooled_pearson",
    "relative_l2",
    "magnitude_ratio",
    "magnitude_spearman",
}


@pytest.fixture(scope="module")
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


def with_checkpoint(folder: Path, trained: Ran, text: str) -> Path:
    return settings_file(folder, f"checkpoint = '{trained.out}/model.safetensors'\n{text}")


def is_complete(ran: Ran, *files: str) -> bool:
    """Done, with its files and no others, and with what every result.json holds."""
    assert ran.code == 0, ran.told
    assert {path.name for path in ran.out.iterdir()} == {"result.json", *files}
    assert ran.result.keys() >= {"settings", "versions", "seconds", "stages"}
    assert ran.result["seconds"] >= sum(ran.result["stages"].values()) - 0.1
    for file in files:
        if file.endswith(".png"):
            width, height = struct.unpack(">II", (ran.out / file).read_bytes()[16:24])
            assert min(width, height) > 400
    assert str(ran.out) in ran.printed
    return True


def rows(printed: str) -> dict[str, list[str]]:
    """The rows of the table that was printed, by name; checks that its columns are aligned."""
    lines = printed.splitlines()
    (ruler,) = [i for i, line in enumerate(lines) if re.fullmatch(r"-+(  -+)+", line)]
    ends = [match.end() for match in re.finditer("-+", lines[ruler])]
    found = {}
    for line in lines[ruler + 1 :]:
        if not line:
            break
        cells = [line[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]
        assert len(line) <= ends[-1]
        found[cells[0]] = cells[1:]
    return found


# ------------------------------------------------------------------ runs


def test_train_writes_a_checkpoint_that_loads(trained):
    assert is_complete(trained, "model.safetensors", "samples.png", "loss.png")
    model, about = load_model(trained.out / "model.safetensors")
    assert model.network.shape == (8, 8, 1) and about["data"] == "digits"
    result = trained.result
    assert result["settings"]["train"]["steps"] == 20
    assert rows(trained.printed)["digits"][:3] == ["60", str(result["parameters"]), "20"]
    assert "100%" in trained.told  # the progress bar


@pytest.mark.parametrize(
    ("how", "density"),
    [
        ("log_density = 'exact'", True),
        ("sampler = 'sde'", False),
        ("sampler = 'sde'\nlog_density = 'hutchinson'", True),
    ],
)
def test_sample_writes_what_it_drew(tmp_path, trained, how, density):
    config = with_checkpoint(tmp_path, trained, f"count = 3\nsteps = 4\n{how}")
    ran = scoresens("sample", config, out=tmp_path / "out")
    assert is_complete(ran, "samples.npz", "samples.png")
    arrays = np.load(tmp_path / "out" / "samples.npz")
    assert arrays["x"].shape == arrays["noise"].shape == (3, 8, 8, 1)
    assert ("log_density" in arrays) == ("log_density" in ran.result) == density
    assert ran.result["mean"] == pytest.approx(arrays["x"].mean())
    (row,) = rows(ran.printed).values()
    assert row[0] == "3" and len(row) == (5 if density else 3)
    if density:
        assert ran.result["log_density"]["mean"] == pytest.approx(arrays["log_density"].mean())


@pytest.mark.parametrize("base", ["data", "model"])
def test_sensitivity_writes_tangents_and_a_report(tmp_path, trained, base):
    text = f"base = '{base}'\ncount = 3\nsteps = 4\ntrace = 'hutchinson'\n{DATA}{CHANGE}"
    ran = scoresens("sensitivity", with_checkpoint(tmp_path, trained, text), out=tmp_path / "out")
    assert is_complete(ran, "tangents.npz", "report.png")
    arrays = np.load(tmp_path / "out" / "tangents.npz")
    assert arrays["x"].shape == arrays["tangent"].shape == (3, 8, 8, 1)
    assert ("log_density" in arrays) == (base == "model")
    sizes = 0.2 * np.linalg.norm(arrays["tangent"].reshape(3, -1), axis=1)
    np.testing.assert_allclose(ran.result["norms"], sizes, rtol=1e-6)
    assert ran.result["first_order_norm"]["max"] == pytest.approx(sizes.max())
    assert ran.result["touched_images"] < ran.result["images"] == 60
    assert list(rows(ran.printed)) == [f"first order ({base})"]
    assert "add class 3 at mass 0.2" in ran.printed


@pytest.mark.parametrize(
    ("change", "base", "masses"),
    [
        (CHANGE, "data", ()),
        ("[change]\nkind = 'remove'\nclasses = ['3', '5']", "model", (0.5, 1.0)),
    ],
)
def test_counterfactual_writes_a_strip_and_its_samples(tmp_path, trained, change, base, masses):
    text = f"base = '{base}'\nmasses = {list(masses)}\ncount = 3\nsteps = 4\n{DATA}{change}"
    ran = scoresens(
        "counterfactual", with_checkpoint(tmp_path, trained, text), out=tmp_path / "out"
    )
    assert is_complete(ran, "samples.npz", "report.png")
    result, arrays = ran.result, np.load(tmp_path / "out" / "samples.npz")
    added = "remove" not in change
    masses = masses or (0.008, 0.02, 0.04, 0.08, 0.2)
    np.testing.assert_allclose(arrays["masses"], masses)
    assert result["masses"] == pytest.approx(masses)
    assert arrays["before"].shape == (3, 8, 8, 1)
    assert arrays["x"].shape == (3, len(masses), 8, 8, 1)
    moved = (arrays["x"] - arrays["before"][:, None]).reshape(3, len(masses), -1)
    sizes = np.linalg.norm(moved, axis=2)
    if added:  # in 4 steps the density ratios of a removal are not to be trusted
        assert (sizes[:, -1] > sizes[:, 0]).all()
    np.testing.assert_allclose(result["norms"], sizes, rtol=1e-6)
    assert [row["max"] for row in result["norm"]] == pytest.approx(sizes.max(0))
    assert result["bounded_steps"] == arrays["bounded"].sum(0).tolist()
    assert result["bounded_samples"] == (arrays["bounded"] > 0).sum(0).tolist()
    assert sum(result["bounded_steps"]) == 0 or (base, added) == ("model", False)
    assert list(rows(ran.printed)) == [f"{mass:g}" for mass in masses]
    assert ("add class 3 at mass" in ran.printed) == added


def attributed(folder: Path, trained: Ran, text: str) -> tuple[Ran, dict]:
    text = f"count = 3\nsteps = 4\ntop = 2\n{text}"
    ran = scoresens("attribute", with_checkpoint(folder, trained, text), out=folder / "out")
    assert is_complete(ran, "scores.npz", "report.png")
    return ran, dict(np.load(folder / "out" / "scores.npz"))


@pytest.mark.parametrize(
    "how", ["", "scores = 'top'\nbase = 'model'\ntrace = 'hutchinson'\nsampler = 'sde'"]
)
def test_attribute_names_the_helpful_and_the_harmful(tmp_path, trained, how):
    ran, arrays = attributed(tmp_path, trained, f"{how}\n{DATA}")
    result = ran.result
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes.pop("x") == (3, 8, 8, 1) and shapes.pop("value") == (3,)
    assert shapes.pop("levels") == (4,) and shapes.pop("profile") == (3, 4)
    if "top" in how:
        assert shapes.keys() == {"top_indices", "top_values", "bottom_indices", "bottom_values"}
        assert set(shapes.values()) == {(3, 2)}
    else:
        assert shapes == {"scores": (3, 60)}
        order = np.argsort(arrays["scores"], 1)
        np.testing.assert_array_equal(result["top_indices"], order[:, :-3:-1])
        np.testing.assert_array_equal(result["bottom_indices"], order[:, :2])
        largest = np.sort(arrays["scores"], 1)[:, :-3:-1]
        np.testing.assert_allclose(result["top_values"], largest, rtol=1e-6)
    # the number that is asked about: the distance from the mean of the data
    (images,) = (read_data(tmp_path).images,)
    distances = np.linalg.norm((arrays["x"] - images.mean(0)).reshape(3, -1), axis=1)
    np.testing.assert_allclose(result["value"], distances, rtol=1e-4)
    assert list(rows(ran.printed)) == ["sample 0", "sample 1", "sample 2"]
    best = result["top_values"][0][0] / 100
    assert f"{best:+.2f} by #{result['top_indices'][0][0]}" in ran.printed
    assert 0.002 < min(result["median_level"]) <= max(result["median_level"]) < 80


def read_data(folder: Path):
    return prepare(read(folder / "run.toml", AttributeRun).data)


def test_attribute_agrees_with_sensitivity(tmp_path, trained):
    """The score of a class, by summing over its images, and by its tangent."""
    text = f"count = 3\nsteps = 4\n{DATA}[change]\nclasses = ['3']\nmass = 1.0"
    config = with_checkpoint(tmp_path, trained, text)
    assert scoresens("sensitivity", config, out=tmp_path / "forward").code == 0
    tangent = np.load(tmp_path / "forward" / "tangents.npz")["tangent"]
    _, arrays = attributed(tmp_path, trained, f"{DATA}[functional]\nkind='pixel'\npixel=[4, 3]")
    data = read_data(tmp_path)
    summed = arrays["scores"][:, data.labels == 3].mean(1)
    np.testing.assert_allclose(summed, tangent[:, 4, 3, 0], rtol=1e-3, atol=1e-5)


def test_attribute_takes_several_numbers_at_once(tmp_path, trained):
    text = f"{DATA}[functional]\nkind = 'components'\ncomponents = 2"
    ran, arrays = attributed(tmp_path, trained, text)
    assert arrays["scores"].shape == (3, 2, 60) and arrays["profile"].shape == (3, 2, 4)
    assert np.shape(ran.result["top_indices"]) == (3, 2, 2)
    assert "most raising" in ran.printed and "helpful" not in ran.printed
    assert list(rows(ran.printed))[:2] == ["sample 0, component 1", "sample 0, component 2"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "itself"}, lambda x, data: distance(x, data.images.mean(0))),
        ({"kind": "closeness", "image": 7}, lambda x, data: -distance(x, data.images[7])),
        ({"kind": "pixel", "pixel": (4, 3)}, lambda x, data: x[:, 4, 3, 0]),
        ({"kind": "class", "class_name": "3"}, lambda x, data: log_odds(x, data)[:, 3]),
        ({"kind": "class"}, lambda x, data: log_odds(x, data).max(1)),
        ({"kind": "components"}, lambda x, data: projected(x, data, 3)),
        ({"kind": "log_density"}, lambda x, data: normal(x)),
    ],
    ids=lambda part: part.get("kind") if isinstance(part, dict) else "",
)
def test_each_functional_is_the_number_it_says(settings, expected):
    data = prepare(DataSettings("digits", count=60))
    points = Points(jnp.asarray(data.images), bandwidth=1.0)
    process = EDM()
    score = exact_score(process, Points(jnp.zeros((1, 8, 8, 1)), bandwidth=1.0))
    asked = FunctionalSettings(**settings)
    question = make_question(asked, data, points, process, score, Solve(steps=40))
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1))
    found = np.asarray(jax.jit(jax.vmap(question.functional))(jnp.asarray(x)))
    signs = np.sign(found / expected(x, data)) if question.parts else 1  # a component's is free
    tolerance = 0.02 if settings["kind"] == "log_density" else 1e-4
    np.testing.assert_allclose(found, signs * expected(x, data), rtol=tolerance)
    assert len(question.parts) == (found.shape[1] if found.ndim == 2 else 0)


def normal(x):
    """The standard normal log-density, that of one data point with a bump of width 1 about it."""
    return -0.5 * distance(x, 0) ** 2 - x[0].size / 2 * np.log(2 * np.pi)


def distance(x, image):
    return np.linalg.norm((x - image).reshape(len(x), -1), axis=1)


def log_odds(x, data):
    means = np.stack([data.images[data.labels == label].mean(0) for label in range(10)])
    variance = np.mean((data.images - means[data.labels]) ** 2)
    logits = np.stack([-(distance(x, mean) ** 2) / (2 * variance) for mean in means], 1)
    others = np.where(np.eye(10, dtype=bool), -np.inf, logits[:, None])  # of class, other
    return logits - np.logaddexp.reduce(others, axis=2)


def projected(x, data, count):
    centred = (data.images - data.images.mean(0)).reshape(len(data.images), -1)
    _, _, basis = np.linalg.svd(centred.astype(float), full_matrices=False)
    return (x - data.images.mean(0)).reshape(len(x), -1) @ basis[:count].T


def test_validate_compares_every_method_with_the_truth(tmp_path, trained):
    finetune = "[finetune]\nsteps = 10\nbatch_size = 16\nwarmup = 1\nema_halflife = 5"
    text = (
        f"count = 9\nsteps = 4\nrepeats = 2\nafter = [3]\nresamples = 40\n{DATA}{CHANGE}{finetune}"
    )
    ran = scoresens("validate", with_checkpoint(tmp_path, trained, text), out=tmp_path / "out")
    assert is_complete(ran, "report.png", "displacements.npz", "models", "study.json")
    result, arrays = ran.result, np.load(tmp_path / "out" / "displacements.npz")
    at_the_end, rest = ran.printed.split("counterfactual_data, by its reliability")
    by_reliability, by_steps = rest.split("pooled Pearson, by the number of steps")
    groups = result["reliability"]["groups"]
    assert sum(group["count"] for group in groups) == 9
    assert len(rows(by_reliability)) == sum(group["count"] > 0 for group in groups)
    assert result["moved"] == pytest.approx(0.2 * 54 / 60)  # 6 of 60 images are of the class
    assert list(rows(at_the_end)) == list(rows(by_steps)) == result["methods"]
    assert result["methods"] == [
        *(f"counterfactual_{base}" for base in ("data", "model", "sharp")),
        *(f"first_order_{base}" for base in ("data", "model", "sharp")),
        "class_mean",
        "another_finetuning",
    ]
    pairs = arrays["changed"] - arrays["control"]
    real = pairs.mean(0)
    for method in result["methods"]:
        matched = pairs if method == "another_finetuning" else (arrays[method], real)
        expected = compare(*matched, resamples=40)
        assert result[method].keys() == MEASURES
        for measure, found in result[method].items():
            assert found == pytest.approx(expected[measure]._asdict()), (method, measure)
    assert result["mean_norm"]["real"] == pytest.approx(
        np.linalg.norm(real.reshape(9, -1), axis=1).mean()
    )
    drift = (arrays["control"] - arrays["before"]).reshape(18, -1)
    drift = np.linalg.norm(drift, axis=1).mean()
    assert result["mean_norm"]["control_drift"] == pytest.approx(drift)
    assert list(result["after"]) == ["3", "10"]
    assert result["after"]["10"] == {method: result[method] for method in result["methods"]}
    kept = [np.load(tmp_path / "out" / "models" / f"{kind}-0.npz")["samples"]
            for kind in ("control", "changed")]  # fmt: skip
    np.testing.assert_array_equal(kept[0][1], arrays["control"][0])
    assert np.abs(kept[1][0] - kept[1][1]).max() > 1e-6  # after 3 steps and after 10
    other = with_checkpoint(tmp_path, trained, text.replace("count = 9", "count = 8"))
    refused = scoresens("validate", other, out=tmp_path / "out")
    assert refused.code == 2 and "holds a study with other settings of count" in refused.told


def test_demo_needs_no_settings(tmp_path):
    ran = scoresens("demo", "--class", 1, "--mass", 0.3, "--count", 2, out=tmp_path / "out")
    assert is_complete(ran, "report.png", "strip.png", "attribution.png")
    result = ran.result
    assert (result["class"], result["mass"], result["count"]) == ("1", 0.3, 128)
    assert {name: len(values) for name, values in result["samples"].items()} == dict.fromkeys(
        ("first_order_norm", "counterfactual_norm", "cosine", "class_before", "class_after"), 128
    )
    sizes = np.array(result["samples"]["counterfactual_norm"])
    assert result["shown"] == [sizes.argmax(), sizes.argmin()]
    ones = (load("digits").labels == 1).mean()
    shares = result["class_share"]
    assert shares["data_before"] == pytest.approx(ones)
    assert shares["data_after"] == pytest.approx(0.7 * ones + 0.3)
    assert shares["samples_after"] > shares["samples_before"] + 0.1  # what the demo is to show
    assert len(rows(ran.printed)) == 3
    strip = result["strip"]
    assert strip["masses"] == [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0]
    np.testing.assert_allclose(np.array(strip["norms"])[:, 4], sizes, rtol=1e-6)
    found = result["attribution"]
    assert np.shape(found["top_indices"]) == np.shape(found["bottom_values"]) == (2, 10)
    assert found["class"] == [result["samples"]["class_before"][i] for i in result["shown"]]
    shares = found["same_class"]
    assert shares["top"] > max(0.5, shares["bottom"])  # what the picture is to show


def test_a_second_run_replaces_the_files_of_the_first(tmp_path, trained):
    text = "count = 3\nsteps = 4\nsampler = 'sde'\nseed = "
    first, second = (
        scoresens("sample", with_checkpoint(tmp_path, trained, text + seed), out=tmp_path / "out")
        for seed in "01"
    )
    assert is_complete(second, "samples.npz", "samples.png")
    assert second.result["settings"]["seed"] == 1
    assert first.printed != second.printed


def test_a_number_that_does_not_exist_is_written_as_null():
    assert as_json({"value": 1.0, "low": math.nan, "high": math.inf}) == {
        "value": 1.0,
        "low": None,
        "high": None,
    }


@pytest.mark.parametrize(("count", "told"), [(60, False), (50, True)])
def test_other_data_than_the_checkpoint_was_trained_on_are_pointed_out(
    tmp_path, trained, capsys, count, told
):
    text = DATA.replace("60", str(count)) + CHANGE
    run = read(with_checkpoint(tmp_path, trained, text), SensitivityRun)
    assert len(set_up(run, "run.toml", Stages()).data) == count
    assert ("was trained on 60 images of digits" in capsys.readouterr().err) == told


# ------------------------------------------------------------------ settings that come along


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda file: file.stem)
def test_every_settings_file_is_read_by_its_command(file):
    kinds = {
        "sample": SampleRun,
        "sensitivity": SensitivityRun,
        "counterfactual": CounterfactualRun,
        "attribute": AttributeRun,
        "gap": GapRun,
        "gap-full": GapRun,
        "residual": ResidualRun,
        "sweep": SweepRun,
    }
    if experiment := next((name for name in EXPERIMENTS if name in file.stem), None):
        kind, command = EXPERIMENTS[experiment].settings, "validate"
    else:
        kind = kinds.get(file.stem, TrainRun)
        command = kind.__name__[:-3].lower()
    run = read(file, kind)
    assert f"scoresens {command} configs/{file.name}" in file.read_text()
    if kind is ValidateRun and file.stem.startswith("digits") and "quick" not in file.stem:
        assert run.finetune == read(CONFIGS / "digits-finetune.toml", ValidateRun).finetune
    assert replace(run) == run


# ------------------------------------------------------------------ what is refused, and how


def refused(ran: Ran) -> str:
    """The complaint of a run with wrong settings: one paragraph, no traceback, nothing written."""
    assert ran.code == 2
    assert not ran.printed
    assert "Traceback" not in ran.told
    assert not ran.out.exists() or not list(ran.out.iterdir())
    (line,) = [line for line in ran.told.splitlines() if "error:" in line]
    assert line == ran.told.splitlines()[-1]
    return line


SENSITIVITY = DATA + CHANGE
MODEL = "[model]\nkind = 'mlp'\nwidth = 8\ndepth = 1\n"


@pytest.mark.parametrize(
    ("command", "text", "complaint"),
    [
        ("sample", "count = 'x'", "count: expected int, got 'x'"),
        ("sample", "cuont = 3", "cuont: unknown key; did you mean 'count'"),
        ("sample", "count = 0", "count must be at least 1, got 0"),
        ("sample", "sampler = 'pde'", "sampler: expected 'ode' or 'sde'"),
        ("sample", "checkpoint = 'no.safetensors'", "checkpoint: no checkpoint at no.safetensors"),
        ("sample", "count = ", "not TOML"),
        ("sensitivity", DATA, "change: missing key"),
        ("sensitivity", DATA + "[change]\nclasses = ['x']", "change: class 'x' is not in digits"),
        ("sensitivity", DATA + "[change]\nimages = [60]", "change: image 60 lies outside"),
        ("sensitivity", DATA + "[change]", "change: kind = 'add' needs either classes, or images"),
        ("sensitivity", "[data]\nname = 'x'" + CHANGE, "data: unknown data set 'x'"),
        ("sensitivity", "[data]\nname = 'x.npy'" + CHANGE, "data: no file x.npy"),
        ("sensitivity", DATA + "size = 4" + CHANGE, "data: images of shape (4, 4, 1), where"),
        ("sensitivity", "bandwidth = -1.0" + SENSITIVITY, "bandwidth must be positive"),
        ("sensitivity", DATA.replace("60", "2000") + CHANGE, "data: a subset of digits has 1 to"),
        ("counterfactual", "masses = [0.0, 0.5]" + SENSITIVITY, "masses must lie in (0, 1]"),
        ("counterfactual", "masses = [0.5, 0.1]" + SENSITIVITY, "masses must rise"),
        ("attribute", "", "data: missing key"),
        ("attribute", "top = 0" + DATA, "top must be at least 1, got 0"),
        ("attribute", "top = 61" + DATA, "top is 61, and there are 60 images"),
        ("attribute", DATA + "[functional]\nkind='x'", "functional.kind: expected 'itself' or"),
        ("attribute", DATA + "[functional]\nkind='closeness'", "functional: kind = 'closeness'"),
        ("attribute", DATA + "[functional]\nkind='pixel'", "functional: kind = 'pixel' needs"),
        ("attribute", DATA + "[functional]\ncomponents=0", "components must be at least 1"),
        (
            "attribute",
            DATA + "[functional]\nkind='closeness'\nimage=60",
            "functional: image 60 lies outside the data's 60 images",
        ),
        (
            "attribute",
            DATA + "[functional]\nkind='pixel'\npixel=[8, 0]",
            "functional: pixel [8, 0] lies outside images of shape (8, 8, 1)",
        ),
        (
            "attribute",
            DATA + "[functional]\nkind='pixel'\npixel=[1, 1, 0, 0]",
            "functional: pixel [1, 1, 0, 0] lies outside",
        ),
        (
            "attribute",
            DATA + "[functional]\nkind='class'\nclass_name='x'",
            "functional: class 'x' has no image in digits: choose among 0, 1",
        ),
        (
            "attribute",
            DATA + "classes=['3']\n[functional]\nkind='class'".replace("60", "20"),
            "functional: kind = 'class' needs data of two classes at least",
        ),
        (
            "attribute",
            DATA + "[functional]\nkind='components'\ncomponents=61",
            "functional: the data have 60 components, not 61",
        ),
        ("validate", SENSITIVITY, "finetune: missing key"),
        ("validate", "count = 7" + SENSITIVITY + "[finetune]", "count must be at least 8, got 7"),
        ("train", DATA + "[model]\nkind='cnn'\nwidth=1\ndepth=1\n[train]", "model.kind: expected"),
        ("train", DATA + "[model]\nkind='unet'\nwidth=8\ndepth=6\n[train]", "model: a U-Net of"),
        ("train", DATA + MODEL + "[train]\nsteps = 0", "train: steps must be positive"),
    ],
)
def test_wrong_settings_name_the_file_and_the_key(tmp_path, command, text, complaint):
    config = settings_file(tmp_path, text)
    line = refused(scoresens(command, config, out=tmp_path / "out"))
    assert str(config) in line and complaint in line


def test_a_missing_settings_file_is_named(tmp_path):
    line = refused(scoresens("train", tmp_path / "no.toml", out=tmp_path / "out"))
    assert "no.toml: No such file" in line


def test_a_truncated_checkpoint_is_refused(tmp_path, trained):
    whole = (trained.out / "model.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    config = settings_file(tmp_path, f"checkpoint = '{tmp_path}/half.safetensors'")
    assert "half.safetensors is damaged" in refused(
        scoresens("sample", config, out=tmp_path / "out")
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--class", "11"), "class '11' is not in digits: its classes are 0, 1"),
        (("--mass", "1.5"), "mass must lie in (0, 1], got 1.5"),
        (("--mass", "x"), "argument --mass: invalid float value: 'x'"),
        (("--count", "0"), "count must be at least 1"),
        (("--cuont", "1"), "unrecognized arguments: --cuont"),
    ],
)
def test_wrong_options_of_the_demo_are_named(tmp_path, options, complaint):
    assert complaint in refused(scoresens("demo", *options, out=tmp_path / "out"))


def test_a_folder_that_cannot_be_made_is_refused_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    ran = scoresens("sample", out=tmp_path / "file" / "out")
    assert ran.code == 2 and "error: --out:" in ran.told


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (FloatingPointError("3 of 4 results\nhold NaN"), 1, "error: 3 of 4 results hold NaN"),
        (ValueError("the loss became nan"), 1, "error: the loss became nan"),
        (OSError(28, "No space left"), 1, "No space left"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_run_that_fails_says_so_in_one_line(tmp_path, monkeypatch, error, code, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("scoresens.cli.commands.sample_ode", fail)
    ran = scoresens("sample", out=tmp_path / "out")
    assert ran.code == code
    assert words in ran.told.splitlines()[-1]
    assert "Traceback" not in ran.told
    assert not list((tmp_path / "out").iterdir())


# ------------------------------------------------------------------ words


def helped(capsys, *arguments: str) -> str:
    assert cli.main([*arguments, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_says_what_a_command_answers_reads_and_writes(capsys, command):
    text = helped(capsys, command)
    assert "?" in text.split("\n\n")[1]  # the question
    assert f"scoresens {command}" in text
    if cli.COMMANDS[command].writes:
        assert f"scoresens-out/{command}" in text
        assert "result.json" in text
    for file in cli.COMMANDS[command].writes:
        assert f"  {file}" in text


def test_help_names_every_setting(capsys):
    for name, command in cli.COMMANDS.items():
        text = helped(capsys, name)
        for field in command.settings.__dataclass_fields__:
            spelt = field.replace("class_name", "class"), field.replace("_", "-")
            assert any(word in text.lower() for word in spelt), (name, field)


def test_help_names_every_command(capsys):
    text = helped(capsys)
    for command in cli.COMMANDS:
        assert f"scoresens {command}" in text
    assert "Exit codes" in text


@pytest.mark.parametrize("own, kept", [(None, True), ("elsewhere", False)])
def test_compiled_programs_are_kept(tmp_path, own, kept):
    """In a process of its own, for it sets what all of JAX shares."""
    program = (
        "import sys, jax; from scoresens.cli import command; sys.argv = ['scoresens', '--version'];"
        "command(); jax.jit(lambda x: x + 1)(1.0); print(jax.config.jax_compilation_cache_dir)"
    )
    named = {} if own is None else {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / own)}
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | named
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    where = tmp_path / "scoresens" if own is None else tmp_path / own
    assert ran.stdout.splitlines()[-1] == str(where)
    assert (tmp_path / "scoresens").is_dir() == kept


def test_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"scoresens \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_command_is_needed(capsys):
    assert cli.main([]) == 2
    assert "COMMAND" in capsys.readouterr().err

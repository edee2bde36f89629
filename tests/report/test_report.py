"""Pictures show the samples they say, and no text meets another; files are whole."""

import os
import struct
import subprocess
import sys

import matplotlib
import matplotlib.style
import numpy as np
import pytest

from scoresens._files import replacing
from scoresens.report._matplotlib import drawing
from scoresens.report._plots import FRAME, Curves, Dots, Scatter
from scoresens.report.influence import Influence, draw_influence, median_levels
from scoresens.report.page import Column, draw_grid, draw_loss, draw_sheet
from scoresens.report.samples import (
    Comparison,
    Strip,
    Touched,
    draw_demo,
    draw_sensitivity,
    draw_strip,
    draw_validation,
)
from scoresens.statistics.displacements import Named, nearest, norms, spread
from scoresens.studies.finetuning import compare

SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (20, 4, 4, 1)).astype(np.float32)
    return Named(images, np.arange(20) % 2, ("even", "odd"))


def size_of(path):
    """Width and height in pixels, read from the header of a PNG file."""
    content = path.read_bytes()
    assert content[:8] == SIGNATURE
    return struct.unpack(">II", content[16:24])


def draws(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


# ------------------------------------------------------------------ pictures


def test_half_of_the_influence_lies_above_its_median_level():
    edges = np.array([100.0, 10.0, 1.0, 0.1])
    profile = np.array([[[1.0, 3.0, 1.0], [5.0, 2.0, 2.0]], [[0.1, 0.1, 1.0], [1.0, 1.0, 0.0]]])
    expected = np.sqrt([[10, 1000], [0.1, 1000]])
    np.testing.assert_allclose(median_levels(profile, edges), expected)


@pytest.fixture
def sheet(monkeypatch):
    """What a picture of `report` or `influence` is made of, in place of the file."""
    seen = {}

    def look(path, columns, labels, **named):
        titles = [column.title.replace("\n", " ") for column in columns]
        seen.update(named, labels=labels, titles=titles)
        seen["columns"] = dict(zip(titles, columns, strict=True))
        return path

    monkeypatch.setattr("scoresens.report.samples.draw_sheet", look)
    monkeypatch.setattr("scoresens.report.influence.draw_sheet", look)
    return seen


def test_a_strip_shows_each_mass_and_who_changes_class(data, tmp_path, sheet):
    before = data.images[:3]
    after = np.stack([before, data.images[[0, 3, 2]]], 1)  # the second turns from odd to odd,
    after[2, 1] = data.images[5]  # and the third from even to odd
    bounded = np.array([[0, 0], [0, 2], [0, 0]])
    sizes = np.array([0.0, 1.0, 2.0])
    draw_strip(
        tmp_path / "a.png",
        Touched(data, data.labels == 1, "removed"),
        Strip(before, after, (0.1, 1.0), sizes, bounded),
        count=3,
        title="t",
    )
    assert sheet["labels"] == [
        "sample 2\nrank 1\neven → odd",
        "sample 1\nrank 2\nodd → odd",
        "sample 0\nrank 3\neven → even",
    ]
    assert sheet["titles"][:4] == ["before", "mass 0.1", "mass 1", "nearest removed"]
    first, last = (sheet["columns"][f"mass {mass}"] for mass in ("0.1", "1"))
    np.testing.assert_array_equal(first.images, before[::-1])
    np.testing.assert_array_equal(last.images, after[::-1, 1])
    moved = np.linalg.norm((after[:, 1] - before).reshape(3, -1), axis=1)
    assert list(first.notes) == ["0.00"] * 3
    assert list(last.notes) == [f"{moved[2]:.2f}", f"{moved[1]:.2f} *", "0.00"]
    assert [frame != FRAME for frame in last.frames] == [True, False, False]
    assert "* bounded" in sheet["caption"]
    closest = data.images[data.labels == 1][nearest(before[::-1], data.images[1::2], 1)[:, 0]]
    np.testing.assert_array_equal(sheet["columns"]["nearest removed"].images, closest)


@pytest.mark.parametrize("bounded", [None, np.zeros((1, 1), int)])
def test_a_strip_of_no_images_has_no_neighbours(data, tmp_path, sheet, bounded):
    nobody, x = np.zeros(20, bool), data.images[:1]
    draw_strip(
        tmp_path / "a.png",
        Touched(data, nobody, "removed"),
        Strip(x, x[:, None], (0.5,), np.ones(1), bounded),
        count=8,
        title="t",
    )
    assert sheet["titles"] == ["before", "mass 0.5"]
    assert "bounded" not in sheet["caption"]


def influence(data, rows=2, ranks=5, steps=4):
    rng = np.random.default_rng(3)
    order = np.stack([rng.permutation(len(data.images)) for _ in range(rows)])
    scores = -np.sort(-rng.normal(size=(rows, 2 * ranks)) * 10)
    return Influence(
        data.images[:rows],
        rng.normal(size=data.images[:rows].shape),
        np.array([5.125, -12.5])[:rows],
        order[:, :ranks],
        scores[:, :ranks],
        order[:, ::-1][:, :ranks],
        scores[:, ::-1][:, :ranks],
        np.geomspace(80, 0.002, steps + 1),
        rng.uniform(size=(rows, steps)),
        [f"row {row}" for row in range(rows)],
    )


def test_helpful_and_harmful_images_are_drawn_with_their_scores(data, tmp_path, sheet):
    found = influence(data)
    draw_influence(tmp_path / "a.png", data, found, images=3, title="t", says="Measured.")
    assert sheet["titles"] == [
        "sample", "what is measured", "most helpful", "2nd", "3rd", "most harmful", "2nd", "3rd"
    ]  # fmt: skip
    assert sheet["labels"] == ["row 0", "row 1"]
    assert list(sheet["columns"]["sample"].notes) == ["5.12", "−12.5"]
    helpful, harmful = (sheet["columns"][f"most {kind}"] for kind in ("helpful", "harmful"))
    np.testing.assert_array_equal(helpful.images, data.images[found.top[:, 0]])
    np.testing.assert_array_equal(harmful.images, data.images[found.bottom[:, 0]])
    assert list(helpful.notes) == [f"+{score / 100:.2f}" for score in found.top_scores[:, 0]]
    assert list(harmful.notes) == [f"−{-score / 100:.2f}" for score in found.bottom_scores[:, 0]]
    assert len({*helpful.frames, *harmful.frames}) == 2
    gradient = sheet["columns"]["what is measured"]
    assert gradient.signed and np.abs(gradient.images).max() == pytest.approx(1)
    assert sheet["caption"].startswith("Measured.")
    curves = sheet["beside"]
    assert (np.diff(curves.edges) > 0).all()  # fine detail to the left
    density = found.profile / np.log(80 / 0.002) * 4
    np.testing.assert_allclose(curves.heights, density[:, ::-1])
    np.testing.assert_allclose(curves.marks, median_levels(found.profile, found.edges))


def test_the_demo_marks_who_changes_class(data, tmp_path, sheet):
    before, after = data.images[:4], data.images[[0, 1, 2, 4]]
    touched = data.labels == 1
    draw_demo(
        tmp_path / "a.png",
        Touched(data, touched),
        before,
        np.zeros_like(before),
        after,
        count=1,
        title="t",
        remark="Remark.",
    )
    assert sheet["labels"] == ["sample 3\nrank 1\nodd → even"]
    assert sheet["caption"].endswith("Remark.")
    by_title = sheet["columns"]
    np.testing.assert_array_equal(by_title["before"].images, before[3:])
    np.testing.assert_array_equal(by_title["counterfactual sample"].images, after[3:])
    np.testing.assert_array_equal(by_title["counterfactual change"].images, (after - before)[3:])
    closest = nearest(after[3:], data.images[touched], 1)[:, 0]
    np.testing.assert_array_equal(by_title["nearest added"].images, data.images[touched][closest])
    assert by_title["first-order change"].signed and not by_title["before"].signed


def test_predicted_and_real_changes_are_of_the_same_samples(data, tmp_path, sheet):
    x = draws(9, 4, 4, 1)
    predicted = {f"{kind}_data": draws(9, 4, 4, 1, seed=seed)
                 for seed, kind in ((2, "first_order"), (3, "counterfactual"))}  # fmt: skip
    real = predicted["counterfactual_data"] + 0.1 * x
    results = {name: compare(found, real, resamples=9) for name, found in predicted.items()}
    found = Comparison(x, x + 1, x + 1 + real, real, predicted, results)
    draw_validation(tmp_path / "a.png", data.images, found, title="t", trained="a model trained")
    rows = spread(norms(real), 8)
    assert sheet["labels"][0] == f"sample {rows[0]}\nrank 1" and len(sheet["labels"]) == 8
    expected = {
        "before": x,
        "predicted after": x + predicted["counterfactual_data"],
        "control": x + 1,
        "really after": x + 1 + real,
        "first-order change": predicted["first_order_data"],
        "predicted change": predicted["counterfactual_data"],
        "real change": real,
    }
    assert sheet["titles"] == list(expected)
    for title, images in expected.items():
        np.testing.assert_array_equal(sheet["columns"][title].images, images[rows])
    dots, sizes, entries = sheet["beside"]
    assert list(dots.names) == ["first order (data)", "counterfactual (data)"]
    pearson = [results[name]["pooled_pearson"] for name in predicted]
    assert dots.values["pooled Pearson"] == pearson
    assert f"counterfactual, r = {pearson[1].value:.2f}" in entries.points
    np.testing.assert_array_equal(next(iter(sizes.points.values()))[0], norms(real))
    assert "a model trained on the changed data" in sheet["caption"]


def test_every_picture_is_written(data, tmp_path):
    x, change = draws(9, 4, 4, 1), draws(9, 4, 4, 1, seed=2)
    touched = Touched(data, data.labels == 1)
    draw_demo(tmp_path / "demo.png", touched, x, change, x + change, count=3, title="t", remark="r")
    draw_strip(
        tmp_path / "strip.png",
        touched,
        Strip(x, x[:, None] + draws(9, 3, 4, 4, 1), (0.1, 0.2, 1.0), draws(9)),
        count=2,
        title="t",
    )
    draw_influence(
        tmp_path / "influence.png",
        data,
        influence(data),
        images=4,
        title="t",
        says="s",
    )
    density = draws(9)
    draw_sensitivity(
        tmp_path / "sensitivity.png",
        touched,
        x,
        change,
        title="t",
        log_density=density,
    )
    predicted = {name: change * scale for name, scale in (("first_order_data", 2), ("other", 3))}
    predicted["counterfactual_data"] = change
    real = change + 0.1 * x
    results = {name: compare(guess, real, resamples=9) for name, guess in predicted.items()}
    draw_validation(
        tmp_path / "validation.png",
        data.images,
        Comparison(x, x, x + real, real, predicted, results),
        title="t",
        trained="a model trained",
    )
    draw_grid(tmp_path / "grid.png", x, title="t", caption="c", notes=[""] * 9)
    draw_loss(tmp_path / "loss.png", np.arange(5), draws(5), title="t", caption="c")
    for name in ("demo", "strip", "influence", "sensitivity", "validation", "grid", "loss"):
        assert min(size_of(tmp_path / f"{name}.png")) > 400
    assert len(list(tmp_path.iterdir())) == 7


@pytest.mark.parametrize("shape", [(3,), (3, 5), (4, 4, 3), (2, 3, 4), (1,), (2, 2, 2, 2)])
def test_samples_of_any_shape_can_be_drawn(tmp_path, shape):
    columns = [Column("x", draws(2, *shape)), Column("change", draws(2, *shape), True, ["a", "b"])]
    path = tmp_path / "sheet.png"
    draw_sheet(path, columns, ["1", "2"], title="t", caption="c", values=draws(4, *shape))
    draw_grid(tmp_path / "grid.png", draws(11, *shape), title="t", caption="c")
    assert size_of(path)[0] > 400


def test_no_text_leaves_the_page_or_meets_another(data, tmp_path, monkeypatch):
    """The layout in inches is right only if the words fit: measured by the renderer."""
    figures = []

    def keep(page, path):
        figures.append(page.figure)
        return path

    monkeypatch.setattr("scoresens.report.page.Page.save", keep)
    images = data.images[:8]
    columns = [
        Column("counterfactual\nsample", images),
        Column("counterfactual\nchange", images, True, ["-10.34"] * 8, split=True),
    ]
    edges = np.geomspace(0.002, 80, 41)
    levels = Curves(
        "at which noise level\nimages have their influence",
        "noise level τ, in grey values:\nfine detail  ←    →  coarse form",
        edges,
        draws(8, 40) ** 2,
        edges[[20] * 8],
        ["half above 0.0021"] * 8,
    )
    names = ["first order (model)", "first order (data)", "toward class mean"]
    lines = {name: [(0.5, 0.1, 0.9)] * 3 for name in ("median cosine", "pooled Pearson")}
    points = {"counterfactual, ρ = 0.93": (draws(5) ** 2, draws(5) ** 2)}
    panels = [Dots("Agreement", "x", lines, names), Scatter("Norms", "x", "y", points, True)]
    for columns_, beside in ((columns, {"beside": panels}), (2 * columns, {"beside": levels})):
        draw_sheet(
            tmp_path / "a.png",
            columns_,
            ["sample 127\nrank 128\nankle boot → sandal"] * 8,
            title="fashion-mnist: remove class ankle boot, sneaker (12000 of 60000 images)",
            caption="Word after word after word. " * 20,
            values=images,
            **beside,
        )
    for figure in figures:
        check_that_nothing_overlaps(figure)


@drawing
def check_that_nothing_overlaps(figure):
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts]
    boxes += [axes.get_tightbbox() for axes in figure.axes]
    page = figure.bbox
    for box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    for i, one in enumerate(boxes):
        assert not [other for other in boxes[:i] if one.overlaps(other)]


def test_no_global_state_of_matplotlib_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    draw_grid(tmp_path / "a.png", draws(2, 3, 3), title="t", caption="c")
    assert dict(matplotlib.rcParams) == before


def test_a_picture_does_not_hang_on_what_its_user_has_set(tmp_path):
    images = draws(2, 3, 3)
    hostile = draw_grid(tmp_path / "a.png", images, title="t", caption="c").read_bytes()
    with matplotlib.style.context("default"):
        plain = draw_grid(tmp_path / "a.png", images, title="t", caption="c").read_bytes()
    assert hostile == plain


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "kept"), [("module://a_notebook.backend", ""), ("svg", "svg")])
def test_a_backend_that_is_not_here_stops_nothing(tmp_path, asked, kept):
    """Nor does a matplotlibrc for papers. The user's own wish stays, where it can."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    program = (
        "import os, pathlib, numpy, scoresens.report as report, matplotlib\n"
        "report.draw_grid(pathlib.Path('a.png'), numpy.eye(4)[None], title='t', caption='c')\n"
        f"assert not {kept!r} or matplotlib.rcParams['backend'] == {kept!r}\n"
        "print(os.environ['MPLBACKEND'], matplotlib.rcParams['text.usetex'])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": asked},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout.split()) == (0, [asked, "True"]), ran.stderr
    assert (tmp_path / "a.png").stat().st_size > 1000


# ------------------------------------------------------------------ files


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as beside:
        beside.write_text("first")
    with pytest.raises(RuntimeError), replacing(path) as beside:
        beside.write_text("sec")
        raise RuntimeError
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]

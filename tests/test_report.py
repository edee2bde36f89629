"""Tables line up; pictures show the samples they say, and no text meets another; whole files."""

import math
import struct

import matplotlib
import numpy as np
import pytest

from scoresens.drawing import Column, Dots, Scatter, draw_grid, draw_loss, draw_sheet, replacing
from scoresens.report import (
    Named,
    cosines,
    draw_demo,
    draw_sensitivity,
    draw_validation,
    looks_like,
    nearest,
    spread,
    table,
    validation_table,
)
from scoresens.validation import compare

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


# ------------------------------------------------------------------ tables


def test_entries_stand_under_their_column():
    text = table({"a": {"one": "1", "two": "2.50"}, "longer": {"one": "10.0"}}, "name")
    assert text.splitlines() == [
        "name     one   two",
        "------  ----  ----",
        "a          1  2.50",
        "longer  10.0",
    ]


def test_numbers_are_shown_with_their_intervals():
    found = {"counterfactual_data": {"median_cosine": (0.9512, 0.9, 0.981)}}
    assert "0.95 [0.90, 0.98]" in validation_table(found)


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_number_that_does_not_exist_is_a_dash(missing):
    found = {"class_mean": {"magnitude_spearman": (missing, missing, missing)}}
    assert validation_table(found).endswith("- [-, -]")


# ------------------------------------------------------------------ numbers


def test_cosine_of_no_change_is_zero():
    a, b = draws(3, 2, 2), draws(3, 2, 2, seed=2)
    b[1], b[2] = 0, -3 * a[2]
    expected = np.vdot(a[0], b[0]) / np.linalg.norm(a[0]) / np.linalg.norm(b[0])
    np.testing.assert_allclose(cosines(a, b), [expected, 0, -1], atol=1e-12)


def test_nearest_images_by_brute_force():
    x, images = draws(5, 3, 2), draws(9, 3, 2, seed=2)
    distances = np.linalg.norm((x[:, None] - images).reshape(5, 9, -1), axis=-1)
    np.testing.assert_array_equal(nearest(x, images, 4), np.argsort(distances, 1)[:, :4])
    assert nearest(x, images[:2], 4).shape == (5, 2)


def test_a_training_image_looks_like_its_class(data):
    np.testing.assert_array_equal(looks_like(data.images, data), data.labels)


def test_samples_shown_run_from_the_most_to_the_least_moved():
    sizes = np.random.default_rng(0).permutation(128).astype(float)
    np.testing.assert_array_equal(sizes[spread(sizes, 8)], 128 - 2.0 ** np.arange(8))


@pytest.mark.parametrize(("drawn", "count"), [(1, 1), (5, 8), (8, 8), (9, 8), (128, 1), (48, 47)])
def test_as_many_samples_are_shown_as_asked_for(drawn, count):
    sizes = draws(drawn)
    shown = spread(sizes, count)
    assert len(set(shown)) == min(count, drawn)
    assert shown[0] == np.argmax(sizes)
    assert (np.diff(sizes[shown]) < 0).all()


# ------------------------------------------------------------------ pictures


def test_the_demo_marks_who_changes_class(data, tmp_path, monkeypatch):
    seen = {}

    def look(*given, **named):
        seen.update(named, given=given)
        return given[0]

    monkeypatch.setattr("scoresens.report.draw_sheet", look)
    before, after = data.images[:4], data.images[[0, 1, 2, 4]]
    touched = data.labels == 1
    draw_demo(
        tmp_path / "a.png",
        data,
        touched,
        before,
        np.zeros_like(before),
        after,
        count=1,
        title="t",
        remark="Remark.",
    )
    _, columns, labels = seen["given"]
    assert labels == ["sample 3\nrank 1\nodd → even"]
    assert seen["caption"].endswith("Remark.")
    by_title = {column.title.replace("\n", " "): column for column in columns}
    np.testing.assert_array_equal(by_title["before"].images, before[3:])
    np.testing.assert_array_equal(by_title["counterfactual sample"].images, after[3:])
    np.testing.assert_array_equal(by_title["counterfactual change"].images, (after - before)[3:])
    closest = nearest(after[3:], data.images[touched], 1)[:, 0]
    np.testing.assert_array_equal(by_title["nearest added"].images, data.images[touched][closest])
    assert by_title["first-order change"].signed and not by_title["before"].signed


def test_every_picture_is_written(data, tmp_path):
    x, change = draws(9, 4, 4, 1), draws(9, 4, 4, 1, seed=2)
    touched = data.labels == 1
    draw_demo(
        tmp_path / "demo.png", data, touched, x, change, x + change, count=3, title="t", remark="r"
    )
    density = draws(9)
    draw_sensitivity(
        tmp_path / "sensitivity.png",
        data,
        touched,
        x,
        change,
        title="t",
        verb="added",
        log_density=density,
    )
    predicted = {name: change * scale for name, scale in (("first_order_data", 2), ("other", 3))}
    predicted["counterfactual_data"] = change
    real = change + 0.1 * x
    results = {name: compare(guess, real, resamples=9) for name, guess in predicted.items()}
    draw_validation(
        tmp_path / "validation.png",
        data.images,
        predicted,
        x,
        x,
        x + real,
        real,
        results,
        title="t",
    )
    draw_grid(tmp_path / "grid.png", x, title="t", caption="c", notes=[""] * 9)
    draw_loss(tmp_path / "loss.png", np.arange(5), draws(5), title="t", caption="c")
    for name in ("demo", "sensitivity", "validation", "grid", "loss"):
        assert min(size_of(tmp_path / f"{name}.png")) > 400
    assert len(list(tmp_path.iterdir())) == 5


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

    monkeypatch.setattr("scoresens.drawing._Page.save", keep)
    images = data.images[:8]
    columns = [
        Column("counterfactual\nsample", images),
        Column("counterfactual\nchange", images, True, ["-10.34"] * 8, split=True),
    ]
    names = ["first order (model)", "first order (data)", "toward class mean"]
    lines = {name: [(0.5, 0.1, 0.9)] * 3 for name in ("median cosine", "pooled Pearson")}
    points = {"counterfactual, ρ = 0.93": (draws(5) ** 2, draws(5) ** 2)}
    panels = [Dots("Agreement", "x", lines, names), Scatter("Norms", "x", "y", points, True)]
    draw_sheet(
        tmp_path / "a.png",
        columns,
        ["sample 127\nrank 128\nankle boot → sandal"] * 8,
        title="fashion-mnist: remove class ankle boot, sneaker (12000 of 60000 images)",
        caption="Word after word after word. " * 20,
        values=images,
        panels=panels,
    )
    (figure,) = figures
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

"""Every picture, of every kind of data: what is not an image is never drawn as one."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from scoresens.datasets.forms import Form
from scoresens.report._rows import MOST, PAINTERS, Bars, painter
from scoresens.report.influence import Influence, draw_influence
from scoresens.report.page import at_most, draw_grid
from scoresens.report.samples import (
    Comparison,
    Strip,
    Touched,
    draw_demo,
    draw_sensitivity,
    draw_strip,
    draw_validation,
)
from scoresens.statistics.displacements import Named
from scoresens.studies.finetuning import compare

RNG = np.random.default_rng(0)
FORMS = {
    "table": (Form("table", ("alpha", "beta", "gamma"), (1e2, 0.5, -3.0), (20.0, 0.1, 1.0)), (3,)),
    "wide": (Form("table", tuple(f"c{i}" for i in range(30)), (0.0,) * 30, (1.0,) * 30), (30,)),
    "series": (Form("series", ("level",), (50.0,), (40.0,)), (6, 1)),
    "several": (Form("series", ("level", "rate"), (50.0, 1.0), (40.0, 0.2)), (6, 2)),
    "points": (Form("points", ("east", "north"), (5.0, -5.0), (2.0, 3.0)), (2,)),
}  # fmt: skip


@pytest.fixture
def figures(monkeypatch):
    """The figures, in place of their files."""
    kept = []
    monkeypatch.setattr(
        "scoresens.report._canvas.Page.save", lambda page, path: kept.append(page.figure) or path
    )
    return kept


def of_kind(name):
    form, shape = FORMS[name]
    rows = RNG.normal(size=(20, *shape)).astype(np.float32)
    return Named(rows, np.arange(20) % 2, ("even", "odd"), form)


def words_of(figure):
    """All text on a figure, of its axes too."""
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [axes.get_xlabel(), axes.get_ylabel()]
        found += [text.get_text() for text in (*axes.texts, *axes.get_yticklabels())]
    return "\n".join(found)


def influence(data):
    order = np.stack([np.arange(20), np.arange(20)[::-1]])
    scores = -np.sort(-RNG.normal(size=(2, 20)))
    ranked = order[:, :4], scores[:, :4], order[:, ::-1][:, :4], scores[:, ::-1][:, :4]
    gradient = RNG.normal(size=data.images[:2].shape)
    edges, profile = np.geomspace(80, 0.002, 5), RNG.uniform(size=(2, 4))
    return Influence(
        data.images[:2], gradient, np.ones(2), *ranked, edges, profile, ["row 0", "row 1"]
    )


def draw_all(path, data):
    """Every picture that shows samples."""
    x, form = data.images[:3], data.form
    change = RNG.normal(size=x.shape).astype(np.float32)
    touched, words = Touched(data, data.labels == 1), {"title": "t"}
    draw_demo(path, touched, x, change, x + change, count=2, remark="r", **words)
    strip = Strip(x, np.stack([x + change, x + 2 * change], 1), (0.1, 1.0), np.arange(3.0))
    draw_strip(path, touched, strip, count=2, **words)
    draw_sensitivity(path, touched, x, change, log_density=np.ones(3), **words)
    draw_influence(path, data, influence(data), images=3, says="s", **words)
    predicted = {"first_order_data": 2 * change, "counterfactual_data": change}
    results = {name: compare(guess, change + x, resamples=9) for name, guess in predicted.items()}
    found = Comparison(x, x, x + change, change + x, predicted, results)
    draw_validation(path, data.images, found, trained="a model", form=form, **words)
    draw_grid(path, x, caption="c", form=form, data=data.images, **words)
    draw_grid(path, x, caption="c", form=form, **words)


@pytest.mark.parametrize("name", FORMS)
def test_every_picture_names_its_columns_and_shows_no_image(tmp_path, figures, name):
    data = of_kind(name)
    draw_all(tmp_path / "a.png", data)
    assert len(figures) == 7
    for figure in figures:
        text = words_of(figure)
        assert "own units" in text or "standard deviations" in text
        assert "grey value" not in text and "darker" not in text
        assert not [axes for axes in figure.axes if axes.images]
        shown = data.form.columns[:1] if name == "wide" else data.form.columns
        assert name == "wide" or all(column in text for column in shown)


@pytest.mark.slow
def test_texts_stay_on_the_page_and_apart(tmp_path, figures):
    for name in FORMS:
        draw_all(tmp_path / "a.png", of_kind(name))
    for figure in figures:
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.texts]
        frames = [axes.get_window_extent() for axes in figure.axes]
        for box in (*boxes, *(axes.get_tightbbox() for axes in figure.axes)):
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
        for place, one in enumerate(boxes):
            assert not [other for other in (*boxes[:place], *frames) if one.overlaps(other)]


def test_bars_say_values_in_the_columns_own_units():
    form, _ = FORMS["table"]
    data, change = np.eye(3), np.array([[1.5, -0.5, 0.0]])
    hand = painter(form, data, [data], [change])
    for signed, sample, numbers in (
        (False, np.array([1.0, -2.0, 0.5]), ["120", "0.30", "−2.5"]),
        (True, change[0], ["+30", "−0.05", "0"]),
    ):
        axes = Figure().add_subplot()
        hand.draw(axes, sample, signed=signed, first=True)
        assert [text.get_text() for text in axes.texts] == numbers
        assert [text.get_text() for text in axes.get_yticklabels()] == list(form.columns)


def test_a_wide_table_shows_what_changes_most():
    form, _ = FORMS["wide"]
    changes = np.zeros((2, 30))
    changes[:, 7], changes[:, 25] = 3, -2
    hand = painter(form, np.ones((4, 30)), [], [changes])
    assert isinstance(hand, Bars) and len(hand.names) == MOST
    assert {"c7", "c25"} <= set(hand.names)


def test_a_line_and_a_dot_stand_in_their_own_units():
    data = of_kind("series").images
    axes = Figure().add_subplot()
    painter(FORMS["series"][0], data, [data], []).draw(axes, data[0], signed=False, first=True)
    np.testing.assert_allclose(
        np.asarray(axes.lines[0].get_ydata()), 50 + 40 * data[0, :, 0], rtol=1e-6
    )
    assert axes.get_ylabel() == "level"
    data = of_kind("points").images
    axes = Figure().add_subplot()
    painter(FORMS["points"][0], data, [data], []).draw(axes, data[3], signed=False, first=True)
    where = [5 + 2 * data[3, 0], -5 + 3 * data[3, 1]]
    np.testing.assert_allclose(np.asarray(axes.lines[1].get_xydata())[0], where, rtol=1e-6)


def test_every_kind_is_drawn_in_one_place():
    assert set(PAINTERS) == {"images", "table", "series", "points"}
    assert at_most(Form()) == 64 < at_most(FORMS["table"][0])

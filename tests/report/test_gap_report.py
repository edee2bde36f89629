"""Tables and pictures of the gap: rows, columns, what is left out, and files that are pictures."""

import struct
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from scoresens.report.gap import (
    OTHERS,
    Studied,
    draw_laws,
    draw_levels,
    draw_residuals,
    families,
    gap_table,
    levels_table,
)
from scoresens.report.page import Page
from scoresens.statistics.estimates import Estimate
from scoresens.studies.gap import EDGES, GRID, Sampled

AXIS = GRID.axis


def blob(x: float, y: float) -> np.ndarray:
    """Counts about a point, first index y."""
    squares = (AXIS[:, None] - y) ** 2 + (AXIS - x) ** 2
    return np.round(1000 * np.exp(-2 * squares)).astype(int)


def network(data: str, weight: float | None, truth: bool = True, published: bool = False):
    size = 10.0 ** -(weight or 0)
    profile = np.outer(size / EDGES[1:], [1.0, 0.9, 1.1])
    ode, sde = blob(2, 1), blob(1, 0)
    found = Sampled(ode, sde, ode, np.zeros(3, int), np.array([1.0, 0.9, 1.1]) * size, profile)
    row = {
        "samples": 1000,
        "w2_sde_ode": 0.1234567,
        "w2_sde_ode_interval": [0.0, 0.25],
        "w2_sde_flow": 0.11,
        "residual_box_mean": size,
        "residual_box_mean_interval": [0.9 * size, 1.1 * size],
        "residual_by_time": {"edges": EDGES.tolist(), "mean": profile.tolist()},
    }
    if truth:
        row |= {f"w2_{law}_truth": 0.05 for law in ("ode", "sde", "flow")}
    if published:
        row["published"] = {"ratio_ode": 1.5, "ratio_sde": 0.98, "w2_ode_flow": 0.043}
    name = data if weight is None else f"{data}_w{weight}"
    return Studied(name, data, weight, found, blob(2, 1) if truth else None, row)


SEVERAL = [network("a", 0.0), network("a", 1.0, published=True), network("b", 1.0, truth=False)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures saved, by the name of their file."""
    figures: dict[str, Figure] = {}

    def save(self, path: Path) -> Path:
        figures[path.name] = self.figure
        return kept(self, path)

    kept = Page.save
    monkeypatch.setattr(Page, "save", save)
    return figures


def is_picture(path: Path) -> bool:
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return min(width, height) > 400


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def test_networks_are_grouped_by_their_data():
    odd = network("odd", None)
    found = families([*SEVERAL, odd])
    assert {family: [n.label for n in members] for family, members in found.items()} == {
        "a": ["w = 0", "w = 1"],
        "b": ["w = 1"],
        OTHERS: ["odd"],
    }


def test_the_table_has_the_columns_that_any_network_has():
    lines = gap_table(SEVERAL).splitlines()
    assert len(lines) == 5 and all(len(line) <= len(lines[1]) for line in lines)
    for column in ("SDE-ODE", "ODE-truth", "ODE/floor", "published ODE-flow", "mean R^2"):
        assert column in lines[0]
    assert "0.1235 [0.0000, 0.2500]" in lines[2]
    assert lines[3].split()[-3:] == ["1.50", "0.98", "0.0430"]
    assert lines[4].startswith("b_w1.0") and " - " in lines[4]
    alone = gap_table([network("b", None, truth=False)])
    assert "truth" not in alone and "floor" not in alone


def test_laws_are_drawn_upright_on_one_scale(tmp_path, drawn):
    path = draw_laws(tmp_path / "laws.png", "a", SEVERAL[:2])
    assert is_picture(path)
    figure = drawn["laws.png"]
    pictures = [axes.images[0] for axes in figure.axes if axes.images]
    laws = [p for p in pictures if p.get_cmap().name == "gray_r"]
    changes = [p for p in pictures if p.get_cmap().name == "RdBu_r"]
    assert (len(laws), len(changes)) == (8, 2)
    assert len({id(p.norm) for p in laws}) == len({id(p.norm) for p in changes}) == 1
    sde = np.asarray(laws[1].get_array())  # rows from the top, so that y = 0 is in the middle
    assert sde.sum() * GRID.spacing**2 == pytest.approx(1)
    down, across = np.unravel_index(sde.argmax(), sde.shape)
    assert (AXIS[::-1][down], AXIS[across]) == pytest.approx((0, 1), abs=GRID.spacing)
    change = np.asarray(changes[0].get_array())
    down, across = np.unravel_index(change.argmax(), change.shape)
    assert AXIS[::-1][down] > 0.5 and AXIS[across] > 1.5  # more where the ODE is
    said = words(figure)
    for part in ("truth", "w = 1", "W₂ 0.123 apart", "W₂ 0.050 from truth", "1,000 samples"):
        assert part in said


def test_an_unknown_truth_is_left_blank(tmp_path, drawn):
    draw_laws(tmp_path / "laws.png", "b", SEVERAL[2:])
    figure = drawn["laws.png"]
    laws = [a for a in figure.axes if a.images and a.images[0].get_cmap().name == "gray_r"]
    assert len(laws) == 3
    assert "not known" in words(figure) and "from truth" not in words(figure)


@pytest.mark.parametrize("extra", [0, 3])
def test_residuals_are_drawn_over_time_and_against_the_gap(tmp_path, drawn, extra):
    others = [network(f"a network of a long name, number {i}", None) for i in range(extra)]
    assert is_picture(draw_residuals(tmp_path / "residual.png", [*SEVERAL, *others]))
    panels = drawn["residual.png"].axes
    assert len(panels) == (4 if extra else 3)
    curve = panels[0].lines[1]
    assert curve.get_label() == "w = 1"
    np.testing.assert_allclose(curve.get_ydata(), 0.1 / EDGES[1:])
    points = [line for line in panels[-1].lines if len(line.get_xdata()) == 1]
    assert {(float(p.get_xdata()[0]), float(p.get_ydata()[0])) for p in points} == {
        (1.0, 0.1234567**2),
        (0.1, 0.1234567**2),
    }
    assert panels[0].lines[1].get_color() == panels[1].lines[0].get_color()  # w = 1 in both
    assert panels[-1].get_ylabel() == "W₂² between SDE and ODE"


def test_levels_in_a_table_and_in_a_picture(tmp_path, drawn):
    row = {
        "relative_residual": Estimate(0.5, 0.0, 0.6),
        "antisymmetric_share": Estimate(0.1, 0.09, 0.11),
        "denoiser_antisymmetric_share": Estimate(0.2, 0.19, 0.21),
    }
    levels = {0.1: row, 2.0: row}
    lines = levels_table(levels).splitlines()
    assert lines[2].startswith("0.1 ") and "0.5 [0, 0.6]" in lines[2] and len(lines) == 4
    for trace in ("exact", 3):
        path = draw_levels(tmp_path / f"{trace}.png", levels, title="t", count=3, trace=trace)
        assert is_picture(path)
        assert ("random probes (3 a point)" in words(drawn[path.name])) == (trace == 3)
    first, second = drawn["exact.png"].axes
    np.testing.assert_allclose(first.lines[0].get_xdata(), [0.1, 2.0])
    assert [line.get_label() for line in second.lines] == ["of the score", "of the denoiser"]

"""Tables and pictures of training on halves, and without what matters to a sample."""

import struct

import numpy as np
import pytest
from matplotlib.figure import Figure

from scoresens.report.halves import draw_halves, halves_table
from scoresens.report.removal import draw_removal, removal_tables
from scoresens.statistics import Estimate


def measured(lds, pearson):
    names = ("cosine", "l2", "size")
    found = {"lds": Estimate(lds, lds - 0.1, lds + 0.1)}
    found["pearson"] = Estimate(pearson, pearson - 0.2, pearson + 0.2)
    return found | {name: Estimate(2e5, 0.0, 1.0) for name in names}


ROWS = {
    "weak": {"setting": "1", "chosen": measured(0.2, 0.3)},
    "strong": {"setting": "1.5", "chosen": measured(0.6, 0.4), "default": measured(0.5, 0.35)},
}
CEILING = {name: Estimate(value, value - 0.1, value + 0.1) for name, value in (
    ("lds", 0.8), ("pearson", 0.5), ("lds_of_another_seed", 0.64), ("pearson_of_another_seed", 0.25)
)}  # fmt: skip
HALVES = {
    "displacement": {"methods": ROWS, "ceiling": CEILING},
    "loss": {"methods": ROWS, "ceiling": {}},
}
EFFECTS = {
    effect: {
        method: [
            {"share": share, "value": size * share, "low": 0.5 * size * share, "high": size}
            for share in (0.01, 0.1)
        ]
        for method, size in (("by the loss", 2.0), ("random", 1.0))
    }
    for effect in ("loss", "moved")
}


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, in their order."""
    saved = []

    def save(figure, *arguments, **options):
        saved.append(figure)
        return savefig(figure, *arguments, **options)

    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def is_picture(path):
    return min(struct.unpack(">II", path.read_bytes()[16:24])) > 400


def test_methods_are_ranked_by_their_lds_above_the_ceiling():
    displacements, losses = halves_table(HALVES).split("\n\n")
    lines = displacements.splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "strong", "weak", "the effect that seeds share", "another seed's training"
    ]  # fmt: skip
    strong = [part.strip() for part in lines[2].split("  ") if part.strip()]
    assert strong[:4] == ["strong", "1.5", "0.60 [0.50, 0.70]", "0.40 [0.20, 0.60]"]
    assert strong[4] == "2e+05 [0.00, 1.00]"  # a black box may overshoot
    assert strong[-4] == "80%"  # of the ceiling; by default:
    assert strong[-3:] == ["0.50 [0.40, 0.60]", "0.35 [0.15, 0.55]", "70%"]
    assert "0.80 [0.70, 0.90]" in lines[4] and "0.25 [0.15, 0.35]" in lines[5]
    assert "ceiling" not in losses and "cosine" not in losses and "seed" not in losses


def test_halves_are_drawn_with_their_intervals_and_ceilings(tmp_path, figures):
    assert is_picture(draw_halves(tmp_path / "a.png", HALVES, title="t"))
    moves, losses = figures[0].axes
    assert [label.get_text() for label in moves.get_yticklabels()] == ["strong, 1.5", "weak, 1"]
    points = [container.lines[0].get_xdata() for container in moves.containers]
    np.testing.assert_allclose(points, [[0.6, 0.2], [0.4, 0.3]])
    ends = np.array([c.lines[2][0].get_segments() for c in moves.containers])[..., 0]
    np.testing.assert_allclose(ends[0], [[0.5, 0.7], [0.1, 0.3]])
    ceilings = [line.get_xdata()[0] for line in moves.lines if line.get_linestyle() == "--"]
    assert ceilings == [0.8, 0.5]
    assert not [line for line in losses.lines if line.get_linestyle() == "--"]


def test_a_removal_has_a_table_and_a_panel_an_effect(tmp_path, figures):
    loss, table, moved, _ = removal_tables(EFFECTS).split("\n\n")
    assert loss == "rise of the denoising loss at the sample, by the share of the images left out"
    assert moved.startswith("how far the sample moved")
    table = table.splitlines()
    assert table[0].split() == ["left", "out", "1.0%", "10.0%"]
    assert table[2].endswith("0.020 [0.010, 2.000]  0.200 [0.100, 2.000]")
    assert is_picture(draw_removal(tmp_path / "a.png", EFFECTS, title="t"))
    panel, _ = figures[0].axes
    names = panel.get_legend_handles_labels()[1]
    assert names == ["by the loss", "random"]
    np.testing.assert_allclose(panel.containers[0].lines[0].get_ydata(), [0.02, 0.2])
    np.testing.assert_allclose(panel.get_xticks(), [1, 10])

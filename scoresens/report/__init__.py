"""What people look at: pictures and tables of samples, their changes, and what they are owed to."""

from scoresens.report.page import draw_grid, draw_loss, draw_sheet
from scoresens.report.samples import table

__all__ = [
    "draw_grid",
    "draw_loss",
    "draw_sheet",
    "table",
]

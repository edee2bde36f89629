"""What people look at: tables, and pictures of samples, of their changes and of the training images
that they are attributed to."""

from scoresens.report.page import draw_grid, draw_loss, draw_sheet
from scoresens.report.tables import table

__all__ = ["draw_grid", "draw_loss", "draw_sheet", "table"]

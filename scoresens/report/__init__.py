"""What people look at: tables, and pictures of samples, of their changes and of the training images
that they are attributed to.

What draws a picture writes it to `path`, a PNG file, under its `title`, and returns the path.
"""

from scoresens.report import _matplotlib as _matplotlib
from scoresens.report.page import draw_grid, draw_loss, draw_sheet
from scoresens.report.tables import table

__all__ = ["draw_grid", "draw_loss", "draw_sheet", "table"]

"""matplotlib as it comes, whatever its user has set: no picture hangs on a matplotlibrc, and no
import on MPLBACKEND, which a notebook leaves to programs that lack its backend.

Imported before anything else of matplotlib's.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def _import() -> None:
    """Import matplotlib, with the backend that MPLBACKEND names if it is there."""
    asked = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if asked is not None:
            os.environ["MPLBACKEND"] = asked
    if asked:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = asked


if "matplotlib" not in sys.modules:
    _import()

from matplotlib import style  # noqa: E402


def drawing(draw: Callable[P, T]) -> Callable[P, T]:
    """What draws a picture, under matplotlib's own settings."""

    @wraps(draw)
    def drawn(*given: P.args, **named: P.kwargs) -> T:
        with style.context("default"):
            return draw(*given, **named)

    return drawn

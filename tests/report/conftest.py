"""Pictures are drawn for people who have set matplotlib up for papers, without LaTeX at hand."""

import matplotlib
import pytest

PAPERS = {
    "text.usetex": True,
    "font.family": "no font of this name",
    "font.size": 40.0,
    "axes.linewidth": 20.0,
    "savefig.bbox": "tight",
    "savefig.transparent": True,
}


@pytest.fixture(autouse=True)
def set_up_for_papers():
    with matplotlib.rc_context(PAPERS):
        yield

"""Questions about thousands of samples: in blocks, on a mesh of devices and by several processes,
on disk as they come.
"""

from scoresens.sweeps.questions import (
    Question,
    attributions,
    bytes_of,
    fields_of,
    layout_of,
    mesh_of,
    run,
    sensitivities,
)
from scoresens.sweeps.store import Block, Field, Layout, Store, progress

__all__ = [
    "Block", "Field", "Layout", "Question", "Store", "attributions", "bytes_of", "fields_of",
    "layout_of", "mesh_of", "progress", "run", "sensitivities",
]  # fmt: skip

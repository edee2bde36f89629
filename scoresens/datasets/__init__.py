"""Where data come from: images, tables, series and points that are at hand, files and folders, and
arrays that stay on disk and are read in blocks.
"""

from scoresens.datasets.forms import Dataset, Form
from scoresens.datasets.images import (
    BACKGROUND,
    DataSettings,
    downsample,
    load,
    of_classes,
    prepare,
    read_idx,
    subset,
)
from scoresens.datasets.streams import ImageFiles, Stream, stream

__all__ = [
    "BACKGROUND", "DataSettings", "Dataset", "Form", "ImageFiles", "Stream", "downsample", "load",
    "of_classes", "prepare", "read_idx", "stream", "subset",
]  # fmt: skip

"""Numbers that are what they should be."""

from typing import Any

import numpy as np


def floats(name: str, x: Any) -> np.ndarray:
    """An array of floating-point numbers."""
    x = np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"{name} holds {x.dtype} where floating-point numbers belong; convert it first, "
            f"for example {name}.astype(np.float32)"
        )
    return x

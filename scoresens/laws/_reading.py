"""Points read in blocks, wherever they are: on a device, on the host, in files."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from scoresens import _checks

ROOM = 2**22  # numbers of a block: 32 MB in float64


def read(
    points: Any, beside: int = 1
) -> Iterator[tuple[Int[np.ndarray, " B"], Float[np.ndarray, "B d"]]]:
    """The points `[N, *shape]` in blocks, their numbers first, in float64: as many at a time as
    there is room for, of d numbers and of so many beside them."""
    size = max(1, ROOM // max(math.prod(points.shape[1:]), beside))
    for start in range(0, len(points), size):
        block = _checks.samples("points", points[start : start + size])
        at = np.arange(start, start + len(block))
        yield at, np.array(block, np.float64).reshape(len(block), -1)


def evenly(count: int, most: int) -> Int[np.ndarray, " n"]:
    """The numbers of at most so many of `count` points, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))


def chosen(points: Any, which: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n d"]:
    """The points of these numbers, rising."""
    return np.concatenate([block[np.isin(at, which)] for at, block in read(points)])

"""Where the functions that stand for operations of torch are found."""

from collections.abc import Callable, Sequence
from typing import Any

Operation = Callable[..., Any]
OPERATIONS: dict[str, Operation] = {}


def operation(*names: str) -> Callable[[Operation], Operation]:
    """Enters a function in `OPERATIONS` under names such as `add.Tensor`."""

    def enter(function):
        for name in names:
            OPERATIONS[name] = function
        return function

    return enter


def axes_of(dim: Any) -> Any:
    """All axes for none, as torch has it for an empty list too."""
    if isinstance(dim, Sequence):
        return tuple(dim) or None
    return dim

"""Where the functions that stand for operations of torch are found."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Operation = Callable[..., Any]
OPERATIONS: dict[str, Operation] = {}


def operation(*names: str) -> Callable[[Operation], Operation]:
    """Enters a function in `OPERATIONS` under names such as `add.Tensor`."""

    def entered(function: Operation) -> Operation:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return entered


def enter(functions: Mapping[str, Operation], *overloads: str) -> None:
    """Enters a table of functions: each under its name with all of the overloads, or, without them,
    under the whole names, parted by spaces, that it stands by."""
    for names, function in functions.items():
        operation(*([f"{names}.{overload}" for overload in overloads] or names.split()))(function)


def axes_of(dim: Any) -> Any:
    """All axes for none, as torch has it for an empty list too."""
    if isinstance(dim, Sequence):
        return tuple(dim) or None
    return dim

"""PyTorch, for those who ask for it: the rest of the package never imports it."""

from collections.abc import Callable
from typing import Any


def needed_torch(what: str) -> Any:
    """Returns torch, or an error that says how to get it."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"{what} needs PyTorch, which is not installed: pip install 'scoresens[torch]'"
        ) from error
    return torch


def calling(module: Any, rule: Callable[..., Any]) -> Any:
    """The module `(*inputs) -> rule(module, *inputs)`, with the other inside it."""
    torch = needed_torch("calling a module")

    class Calling(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, *inputs):
            return rule(self.inner, *inputs)

    return Calling()

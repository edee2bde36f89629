"""PyTorch, for those who ask for it: the rest of the package never imports it."""

from collections.abc import Callable
from typing import Any

from scoresens._extras import needed


def needed_torch(what: str) -> Any:
    """torch, or an error that says how to get it."""
    return needed("torch", what, "torch")


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

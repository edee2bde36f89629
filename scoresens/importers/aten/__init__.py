"""PyTorch's operations, in JAX.

A `torch.export`ed program is a list of calls of *ATen* operations, such as `aten.conv2d.default`.
Each function here computes what the operation of its name does, for arrays instead of tensors and
with torch's argument order and defaults; `OPERATIONS` finds it. What is not here is decomposed at
the export into what is (see `torch_export`), so that this is the short half of ATen: elementwise
maps, reductions, shapes, products, and the layers worth keeping whole.

The conventions of torch that matter: images are `[N, C, *space]`, axes may be negative, and a
Python number does not widen the dtype of a tensor, as in JAX.

References: the operators' list in PyTorch's documentation, "IRs" (core ATen).
"""

from scoresens.importers.aten import layers, maps, shapes  # noqa: F401  they fill OPERATIONS
from scoresens.importers.aten.registry import OPERATIONS

__all__ = ["OPERATIONS"]

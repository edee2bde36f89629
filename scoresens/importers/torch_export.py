"""A PyTorch module as a JAX function, by way of `torch.export`.

`torch.export` follows a module once, at a batch of one, and writes down the operations that it
calls. Those that `aten` has stay whole; the others are decomposed into smaller ones. What remains
without a counterpart is refused, by name and with its place in the module. The result, a `Program`,
needs torch no more: it is saved, loaded and run without it.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from scoresens.importers._torch import needed_torch
from scoresens.importers.aten import OPERATIONS
from scoresens.importers.program import Program, Reference, TensorName, encoded, references

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]

CONVOLUTIONS = [f"conv{n}d.{kind}" for n in (1, 2, 3) for kind in ("default", "padding")]
DROPPED = ("device", "layout", "memory_format", "pin_memory", "non_blocking", "copy")


def torch_export(
    module: "torch.nn.Module",
    inputs: Sequence[Any],
    *,
    named: Mapping[str, Any] | None = None,
    output: int = 0,
) -> Program:
    """A PyTorch module as a function of JAX arrays.

    Args:
        module: in any mode; it is exported in eval mode, and left in the mode it was in.
        inputs: example tensors of the module's positional arguments, at a batch of one: their
            shapes and dtypes are the program's. Numbers and None are fixed.
        named: the same by name.
        output: which of the tensors that the module returns.

    Returns:
        `program(*inputs) -> output`, the tensors of `inputs` first, then those of `named`, all with
            their batch axis of one; see `Program`.

    Raises:
        ImportError: if torch is not installed.
        ValueError: if torch cannot export the module, an operation has no counterpart here, or a
            tensor holds numbers that are not finite.

    Notes:
        Control flow that hangs on values cannot be exported; random operations have no counterpart.
        The parameters are copied, kernels that only convolutions ask for as `[*window, in, out]`.

    References:
        PyTorch's documentation of torch.export.
    """
    torch = needed_torch("torch_export")
    exported = _exported(torch, module, tuple(inputs), dict(named or {}))
    tensors = _tensors(exported)
    names = {place: TensorName(name) for place, (name, _) in tensors.items()}
    nodes = list(exported.graph.nodes)
    calls = [_call(node, names) for node in nodes if node.op == "call_function"]
    given = [x for x in nodes if x.op == "placeholder" and x.name not in names]
    wanted = [x for x in given if hasattr(x.meta.get("val"), "shape")]
    end = exported.graph_signature.user_outputs[output]
    calls, kernels = _with_turned_kernels(_alive(calls, end))
    asked = {asked for call in calls for asked in references([call["args"], call["kwargs"]])}
    whole = {
        "inputs": [_input(node) for node in wanted],
        "calls": [
            call | {"args": encoded(call["args"]), "kwargs": encoded(call["kwargs"])["map"]}
            for call in calls
        ],
        "output": end,
    }
    kept = {name: x for name, x in tensors.values() if TensorName(name) in asked}
    turned = {name: np.moveaxis(kept[name], (0, 1), (-1, -2)) for name in kernels}
    leaves = {name: jnp.asarray(x) for name, x in (kept | turned).items()}
    return Program(leaves, json.dumps(whole, allow_nan=False))


def _exported(torch: Any, module: Any, inputs: tuple, named: dict) -> Any:
    was_training = module.training
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own insides
            exported = torch.export.export(module.eval(), inputs, named)
            table = torch.export.default_decompositions()
            for operation in [op for op in table if _spelt(op) in OPERATIONS]:
                del table[operation]
            return exported.run_decompositions(table)
    except Exception as error:
        raise ValueError(
            f"torch.export cannot follow {type(module).__name__}: {error}{_advice(str(error))}"
        ) from error
    finally:
        module.train(was_training)


def _advice(error: str) -> str:
    """What to do about an error of torch that does not tell itself."""
    if "'indices'" not in error or "Long" not in error:
        return ""
    return (
        "\nA table (torch.nn.Embedding) takes whole numbers, and times are floating-point numbers "
        "here, also between steps: have the module look up t.round().long(), or give from_torch "
        "call=lambda module, x, t: module(x, t.round().long())"
    )


def _tensors(exported: Any) -> dict[str, tuple[str, np.ndarray]]:
    """For each placeholder that is no input: what its tensor is called, and the tensor."""
    signature = exported.graph_signature
    found = {}
    for names in (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    ):
        for placeholder, name in names.items():
            held = exported.state_dict if name in exported.state_dict else exported.constants
            found[placeholder] = (name, _array(name, held[name]))
    return found


def _array(name: str, tensor: Any) -> np.ndarray:
    values = tensor.detach().cpu()
    values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    try:
        values = values.numpy().copy()
    except TypeError as error:
        raise ValueError(
            f"the module's tensor {name} is of {values.dtype}, which has no counterpart here: "
            "convert the module first, by module.float()"
        ) from error
    if not np.isfinite(values).all():
        raise ValueError(f"the module's tensor {name} has values that are not finite")
    return values


def _call(node: Any, names: Mapping[str, TensorName]) -> dict[str, Any]:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    place, kind = (stack[-1][0], str(stack[-1][1]).rpartition(".")[2]) if stack else ("", "")
    return {
        "name": node.name,
        "op": _spelt(node.target),
        "args": [_argument(value, names) for value in node.args],
        "kwargs": {k: _argument(v, names) for k, v in node.kwargs.items() if k not in DROPPED},
        "place": f"{place} ({kind})" if place else kind,
    }


def _spelt(target: Any) -> str:
    """`aten.add.Tensor` is add.Tensor here, and Python's own getitem is getitem."""
    return str(target).removeprefix("aten.") if hasattr(target, "_schema") else target.__name__


def _argument(value: Any, names: Mapping[str, TensorName]) -> Any:
    kind = type(value).__name__
    if kind == "Node":
        return names.get(value.name, Reference(value.name))
    if kind == "dtype":
        return _dtype(value)
    if kind in ("device", "layout", "memory_format"):
        return None
    if isinstance(value, list | tuple):
        return [_argument(item, names) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"an argument of type {kind} has no counterpart here: {value}")


def _dtype(value: Any) -> np.dtype:
    name = str(value).removeprefix("torch.")
    return jnp.dtype("float32" if name == "bfloat16" else name)


def _input(node: Any) -> dict[str, Any]:
    found = node.meta["val"]
    return {"name": node.name, "shape": list(found.shape), "dtype": _dtype(found.dtype).name}


def _alive(calls: list[dict[str, Any]], end: str) -> list[dict[str, Any]]:
    """Those of the calls that the output hangs on."""
    wanted, kept = {Reference(end)}, []
    for call in reversed(calls):
        if Reference(call["name"]) in wanted:
            wanted |= set(references([call["args"], call["kwargs"]]))
            kept.append(call)
    return kept[::-1]


def _with_turned_kernels(calls: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], set[str]]:
    """The calls with kernels `[*window, in, out]`, and the names of the tensors that are to be so:
    those that only convolutions ask for. Those of torch, `[out, in, *window]`, would be turned at
    every call, which takes as long as half the convolutions of one sample."""
    kernels = {kernel for call in calls if (kernel := _kernel(call))}
    for call in calls:
        args = call["args"] if _kernel(call) is None else [call["args"][0], *call["args"][2:]]
        kernels -= set(references([args, call["kwargs"]]))
    turned = [
        call | {"kwargs": call["kwargs"] | {"turned": True}} if _kernel(call) in kernels else call
        for call in calls
    ]
    return turned, {kernel.name for kernel in kernels}


def _kernel(call: dict[str, Any]) -> TensorName | None:
    """The tensor that a convolution has for its kernel."""
    kernel = call["args"][1] if call["op"] in CONVOLUTIONS else None
    return kernel if isinstance(kernel, TensorName) else None

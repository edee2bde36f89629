"""A PyTorch program as a JAX function: a list of calls, and the tensors they are made with.

    calls = [{"name", "op", "args", "kwargs", "place"}, ...]

Each call names an operation of `aten`, its arguments (numbers, or names of tensors, of inputs and
of calls above it) and its place in the module that it comes from. Running the program is walking
down the list. The list is kept as the JSON text that a file holds, and is static to JAX: a program
is a pytree whose leaves are its tensors alone.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from scoresens._pytrees import register_dataclass
from scoresens.importers.aten import OPERATIONS


class Input(NamedTuple):
    """An input of a program: its name, its shape at a batch of one, and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@register_dataclass
@dataclass(frozen=True)
class Program:
    """A PyTorch program: `program(*inputs) -> output`, as the module at a batch of one.

    Args:
        tensors: the parameters, buffers and constants by name.
        text: JSON of the inputs, the calls and the name of the output. Made by `torch_export`.

    Raises:
        ValueError: if the text is no program, asks for tensors that are not there, or calls what
            has no counterpart here. Calling it raises it for inputs of other shapes.

    Notes:
        It may cross `jit`, `vmap`, `grad`, `jvp` and `vjp`; other parameters do not compile again.
        It computes in the dtypes of its tensors; the output is of the first input's dtype.
    """

    tensors: dict[str, Array]
    text: str = field(metadata={"static": True})

    def __post_init__(self):
        check(self.text, self.tensors)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What a call wants."""
        return _parsed(self.text).inputs

    def __call__(self, *inputs: Array) -> Array:
        parsed = _parsed(self.text)
        known: dict[Any, Any] = {TensorName(name): leaf for name, leaf in self.tensors.items()}
        for wanted, given in zip(parsed.inputs, _fitting(parsed.inputs, inputs), strict=True):
            known[Reference(wanted.name)] = given
        for call in parsed.calls:
            args, kwargs = _filled(call["args"], known), _filled(call["kwargs"], known)
            with jax.named_scope(call["place"] or "module"):
                known[Reference(call["name"])] = OPERATIONS[call["op"]](*args, **kwargs)
        return known[Reference(parsed.output)].astype(jnp.asarray(inputs[0]).dtype)


class _Parsed(NamedTuple):
    inputs: tuple[Input, ...]
    calls: list[dict[str, Any]]
    output: str


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> _Parsed:
    try:
        whole = json.loads(text)
        inputs = tuple(Input(x["name"], tuple(x["shape"]), x["dtype"]) for x in whole["inputs"])
        calls = [
            c | {"args": _decoded(c["args"]), "kwargs": _decoded({"map": c["kwargs"]})}
            for c in whole["calls"]
        ]
        return _Parsed(inputs, calls, whole["output"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"this is no program of a PyTorch module: {error!r}") from error


# ------------------------------------------------------------------ what JSON cannot say


@dataclass(frozen=True)
class Reference:
    """An input, or what a call above returned."""

    name: str


@dataclass(frozen=True)
class TensorName:
    """A tensor of the module."""

    name: str


def encoded(value: Any) -> Any:
    """An argument as JSON holds it; `_decoded` is its inverse."""
    if isinstance(value, Reference):
        return {"of": value.name}
    if isinstance(value, TensorName):
        return {"tensor": value.name}
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if isinstance(value, float) and not np.isfinite(value):
        return {"number": str(value)}
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    if isinstance(value, Mapping):
        return {"map": {name: encoded(item) for name, item in value.items()}}
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, said)] = value.items()
    if kind == "of":
        return Reference(said)
    if kind == "tensor":
        return TensorName(said)
    if kind == "dtype":
        return np.dtype(said)
    if kind == "number":
        return float(said)
    return {name: _decoded(item) for name, item in said.items()}


def _filled(value: Any, known: Mapping[Any, Any]) -> Any:
    """An argument with arrays in place of their names."""
    if isinstance(value, Reference | TensorName):
        return known[value]
    if isinstance(value, np.dtype):
        return np.dtype(jax.dtypes.canonicalize_dtype(value))
    if isinstance(value, list):
        return [_filled(item, known) for item in value]
    if isinstance(value, dict):
        return {name: _filled(item, known) for name, item in value.items()}
    return value


# ------------------------------------------------------------------ checks


def check(text: str, tensors: Mapping[str, Any]) -> None:
    """Refuses a text that is no program of these tensors, naming what is wrong and where."""
    parsed = _parsed(text)
    unknown = {call["op"]: call["place"] for call in parsed.calls if call["op"] not in OPERATIONS}
    if unknown:
        listed = "; ".join(
            f"{op}, in {place or 'the module itself'}" for op, place in unknown.items()
        )
        raise ValueError(f"operations of PyTorch that have no counterpart here: {listed}")
    above = {Reference(wanted.name) for wanted in parsed.inputs}
    held, used = {TensorName(name) for name in tensors}, {Reference(parsed.output)}
    for call in parsed.calls:
        asked = set(references([call["args"], call["kwargs"]]))
        if missing := asked - above - held:
            raise ValueError(
                f"the program lacks {', '.join(sorted(x.name for x in missing))}, "
                f"in {call['place']}"
            )
        above.add(Reference(call["name"]))
        used |= asked
    if Reference(parsed.output) not in above:
        raise ValueError(f"the program lacks its output {parsed.output}")
    if extra := sorted(x.name for x in held - used):
        raise ValueError(f"tensors that are no part of the program: {', '.join(extra)}")


def references(value: Any) -> Iterator[Reference | TensorName]:
    """All that an argument, or a list of them, refers to."""
    if isinstance(value, Reference | TensorName):
        yield value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        yield from references(item)


def _fitting(wanted: tuple[Input, ...], given: tuple[Any, ...]) -> list[Array]:
    """The inputs as the program takes them, or an error that says what it takes."""
    shapes = [tuple(jnp.shape(x)) for x in given]
    if shapes != [x.shape for x in wanted]:
        expected = ", ".join(f"{x.name} {list(x.shape)}" for x in wanted)
        raise ValueError(
            f"the program takes {expected}, got {[list(shape) for shape in shapes]}: it was "
            "exported at a batch of one; map over more with jax.vmap"
        )
    return [
        jnp.asarray(x, jax.dtypes.canonicalize_dtype(np.dtype(like.dtype)))
        for x, like in zip(given, wanted, strict=True)
    ]

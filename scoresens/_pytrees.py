"""Nouns as pytrees, and the fingerprint of one.

`jax.tree_util.register_dataclass` rebuilds a noun through its constructor, whose checks then meet
the placeholders (`None`, `True`, `object()`) that tree transformations pass for leaves. Here a noun
is checked when a person makes it, and rebuilt without a check.

A dataclass compares its fields, and arrays answer with arrays. Here two nouns are equal, `True` or
`False`, where their classes, structures and leaves are.
"""

import dataclasses
import hashlib
from typing import Any, TypeVar

import jax
import numpy as np

Noun = TypeVar("Noun")


def fingerprint(tree: Any) -> str:
    """A digest of all the numbers of a pytree, bit for bit."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def register_dataclass(cls: type[Noun]) -> type[Noun]:
    """Make a dataclass a pytree; fields marked `static=True` belong to its structure."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    static = [field.name for field in fields if field.metadata.get("static", False)]
    dynamic = [field.name for field in fields if field.name not in static]
    keys = [jax.tree_util.GetAttrKey(name) for name in dynamic]

    def flatten(noun):
        leaves = tuple(getattr(noun, name) for name in dynamic)
        return leaves, tuple(getattr(noun, name) for name in static)

    def flatten_with_keys(noun):
        leaves, structure = flatten(noun)
        return tuple(zip(keys, leaves, strict=True)), structure

    def unflatten(structure, leaves):
        noun = object.__new__(cls)
        for name, value in zip(static + dynamic, (*structure, *leaves), strict=True):
            object.__setattr__(noun, name, value)
        return noun

    def equal(noun, other):
        if type(other) is not cls:
            return NotImplemented
        (leaves, structure), (theirs, form) = map(jax.tree.flatten, (noun, other))
        return structure == form and all(map(_same, leaves, theirs))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    cls.__eq__ = equal  # type: ignore[method-assign]
    return cls


def _same(one: Any, other: Any) -> bool:
    return one is other or (np.shape(one) == np.shape(other) and bool(np.all(one == other)))

"""Configurations of other libraries: JSON objects, every key of which is known here, or refused.

A key that is not known may be the one that says how a network was trained, or built. To go on
without it would give another network's answer without a word.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

LARGEST = 2**53  # of whole numbers: all below are floating-point numbers too


def read_config(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds one object, with a byte order mark or without.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no JSON, no text, or no object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or no JSON in UTF-8: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__} where a configuration belongs, a JSON object "
            "of keys and values"
        )
    return content


def unknown_keys(config: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """The keys that are not known; diffusers' own records, which begin with `_`, are none."""
    return [name for name in config if not name.startswith("_") and name not in known]


def mistyped(given: Mapping[str, Any], settings: type) -> Iterator[str]:
    """Yields what is wrong with values that have not the types of a dataclass's fields."""
    for field in fields(settings):
        kind: Any = field.type
        value = given[field.name]
        flag = isinstance(value, bool) and bool not in (get_args(kind) or (kind,))
        if flag or not isinstance(value, kind):  # to Python True is an int
            yield f"{field.name} is {value!r}, not of type {getattr(kind, '__name__', kind)}"
        elif isinstance(value, int) and abs(value) > LARGEST:
            yield f"{field.name} is above {LARGEST}, which no setting is"

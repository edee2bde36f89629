"""What a run leaves behind: one `result.json`, complete or absent."""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scoresens._files import write_text

PACKAGES = ("scoresens", "jax", "jaxlib", "flax", "diffrax", "numpy")


def write_result(
    folder: str | Path, result: Mapping[str, Any], *, settings: Any, seconds: float
) -> Path:
    """The path of the `result.json` written to a folder.

    The file holds the result's own keys, then `settings`, `seconds` and `versions`. It is written
    beside and moved into place, so that a reader never sees half of it.

    Args:
        folder: created if absent.
        result: what was found. Arrays become lists, paths strings, dataclasses tables.
        settings: the settings of the run, a dataclass or a mapping.
        seconds: how long the run took.

    Raises:
        ValueError: for a number that is not finite, or a key of `result` that is taken.
        TypeError: for a value that JSON cannot hold.
    """
    record = {"settings": settings, "seconds": float(seconds), "versions": versions()}
    if taken := record.keys() & result.keys():
        raise ValueError(
            f"result: {', '.join(sorted(taken))} is written beside the result; choose another name"
        )
    text = json.dumps(_plain({**result, **record}, ""), indent=2, allow_nan=False)
    path = Path(folder) / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")
    return path


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a number may depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _plain(value: Any, key: str) -> Any:
    """`value` in JSON's own types; `key` is its dotted name in the file."""
    if hasattr(value, "tolist"):  # arrays and their scalars
        value = value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{key}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{key}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key}: {value} is not a number that result.json can hold; write None")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{key}: {type(value).__name__} cannot be written to result.json")

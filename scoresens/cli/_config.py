"""Settings files: a TOML file becomes a frozen dataclass, or an error that says what to mend."""

import tomllib
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from scoresens._reading import read_text

T = TypeVar("T")
LARGEST = 2**63 - 1  # of integers


class ConfigError(ValueError):
    """A settings file that cannot be used: names the file, the key and the remedy."""


def read(path: str | Path, cls: type[T]) -> T:
    """The settings in a TOML file, as an instance of a dataclass.

    A table is a nested dataclass. Field types may be `bool`, `int`, `float` (an integer will do),
    `str`, `Path`, `tuple`, `Literal`, a dataclass, and unions of these; `None` is a key left out.

    Args:
        path: the TOML file.
        cls: a dataclass; fields without a default are required.

    Raises:
        ConfigError: for a file that is missing or not TOML, a key that is unknown or missing, a
            value of the wrong type, or one that the dataclass itself refuses with `ValueError`.
    """
    with _naming(path):
        return _convert(_table(path), cls, "")


def read_one_of(path: str | Path, key: str, kinds: Mapping[str, type[T]]) -> T:
    """The settings in a TOML file whose top-level `key` says which of several dataclasses they are.

    Args:
        path: the TOML file.
        key: of the choice; every class has it as a field.
        kinds: the classes by that key's values; the first is meant where the key is left out.

    Raises:
        ConfigError: as `read`, and for another value of the key.
    """
    with _naming(path):
        table = _table(path)
        name = table.get(key, next(iter(kinds)))
        if not isinstance(name, str) or name not in kinds:
            raise _Refused(f"{key} must be one of {', '.join(map(repr, kinds))}, got {name!r}")
        return _convert(table, kinds[name], "")


def _table(path: str | Path) -> dict[str, Any]:
    text = read_text(Path(path))
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not TOML: {error}") from None


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """What goes wrong in here names the file."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except _Refused as error:
        raise ConfigError(f"{path}: {error}") from error.__cause__


class _Refused(Exception):
    """A complaint about one key, before the file's name is known."""


def _convert(value: Any, kind: Any, key: str) -> Any:
    """`value` as a `kind`; `key` is its dotted name in the file."""
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        raise _Refused(f"{key}: expected at most 64 bits, got {value.bit_length() + 1}")
    if is_dataclass(kind) and isinstance(value, dict):
        return _dataclass(value, kind, key)
    if origin in (Union, types.UnionType):
        return _union(value, args, kind, key)
    if origin is Literal and any(value == a and type(value) is type(a) for a in args):
        return value
    if (origin or kind) is tuple and isinstance(value, list):
        kinds = args[:1] * len(value) if args[-1:] == (Ellipsis,) else args
        if len(kinds) == len(value):
            triples = zip(value, kinds, range(len(value)), strict=True)
            return tuple(_convert(v, k, f"{key}[{i}]") for v, k, i in triples)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is Any or type(value) is kind:
        return value
    hint = _suggest(value, args) if origin is Literal else ""
    raise _Refused(f"{key}: expected {_name(kind)}, got {_shown(value)}{hint}")


def _dataclass(table: dict[str, Any], cls: Any, key: str) -> Any:
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls) if f.init}
    prefix = f"{key}." if key else ""
    for name in table:
        if name not in known:
            hint = _suggest(name, known) or f"; known keys: {', '.join(known)}"
            raise _Refused(f"{prefix}{name}: unknown key{hint}")
    for name, field in known.items():
        if name not in table and field.default is MISSING and field.default_factory is MISSING:
            raise _Refused(f"{prefix}{name}: missing key, expected {_name(hints[name])}")
    values = {name: _convert(v, hints[name], prefix + name) for name, v in table.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise _Refused(f"{key}: {error}" if key else str(error)) from error


def _union(value: Any, kinds: tuple[Any, ...], union: Any, key: str) -> Any:
    """The first of `kinds` that takes `value`; with one real candidate, its own complaint."""
    refusals = []
    for kind in kinds:
        try:
            return _convert(value, kind, key)
        except _Refused as error:
            if kind is not types.NoneType:
                refusals.append(error)
    if len(refusals) == 1:
        raise refusals[0]
    raise _Refused(f"{key}: expected {_name(union)}, got {_shown(value)}")


def _name(kind: Any) -> str:
    if kind is types.NoneType:
        return "nothing"
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, args))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_name(a) for a in args if a is not types.NoneType)
    if is_dataclass(kind):
        return f"a table of {', '.join(f.name for f in fields(kind) if f.init)}"
    if (get_origin(kind) or kind) is tuple:
        return f"a list ({', '.join('...' if a is Ellipsis else _name(a) for a in args)})"
    return kind.__name__


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def _suggest(word: Any, known: Any) -> str:
    close = get_close_matches(str(word), [str(k) for k in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

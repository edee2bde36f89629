"""Files as nobody wrote them: mutations of good ones, and a guard over what reading them does."""

import functools
import json
import operator
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

ODD_BYTES = [
    b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"PK\x03\x04", b"\x1f\x8b",
    b"\x93NUMPY", b"\x80\x04", b"\xef\xbb\xbf", b"\xff\xfe", b"NaN", b"1e999", b"'|O'", b"\"", b"[",
]  # fmt: skip
ODD_VALUES = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 10**400, 0.5, -0.5, 1e-300, 1e300, float("nan"),
    float("inf"), "", "x", "nan", "../../x", "\0", [], [[]], {}, [1, "x", None], {"x": 1},
]  # fmt: skip
ODD_TOML = [
    "true", "-1", "0", "9" * 25, "9" * 400, "1e400", "nan", "inf", '""', '"x"', '"../x"', "[]",
    "[[]]", "[1, 'x']", "{}", "{x = 1}", "1979-05-27", "0x7f", "[" * 3000, "'''",
]  # fmt: skip


class Change(NamedTuple):
    """One mutation: how, where (a share of the content), and with what."""

    how: str
    where: float
    what: int


CHANGES = st.lists(
    st.builds(
        Change,
        st.sampled_from(["flip", "cut", "drop", "double", "put", "digit", "value", "value", "key"]),
        st.floats(0, 1, exclude_max=True, width=32),
        st.integers(0, 2**16 - 1),
    ),
    min_size=1,
    max_size=4,
)


def changed(name: str, content: bytes, changes: list[Change]) -> bytes:
    """A file's content after some mutations, those of values where it is JSON or TOML."""
    for how, where, what in changes:
        if how in ("value", "key") and name.endswith(("json", ".zarray", ".zgroup")):
            content = _other_json(content, how, where, what)
        elif how in ("value", "key") and name.endswith(".toml"):
            content = _other_toml(content, how, where, what)
        elif content:
            content = _other_bytes(content, how, where, what)
    return content


def _other_bytes(content: bytes, how: str, where: float, what: int) -> bytes:
    place, size = int(where * len(content)), 1 + what % 64
    digits = [i for i, byte in enumerate(content[:400]) if chr(byte).isdigit()]
    if how == "cut":
        return content[:place]
    if how == "drop":
        return content[:place] + content[place + size :]
    if how == "double":
        return content[: place + size] + content[place:]
    if how == "flip":
        return content[:place] + bytes([content[place] ^ (1 + what % 255)]) + content[place + 1 :]
    if how == "digit" and digits:
        place = digits[int(where * len(digits))]
        return content[:place] + str(what % 10).encode() + content[place + 1 :]
    odd = ODD_BYTES[what % len(ODD_BYTES)]
    return content[:place] + odd + content[place + len(odd) :]


def _other_json(content: bytes, how: str, where: float, what: int) -> bytes:
    """With another value at one place, or without it."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return content
    places, odd = list(_places(tree, ())), ODD_VALUES[what % len(ODD_VALUES)]
    path = places[int(where * len(places))]
    if not path:
        return json.dumps(odd).encode()
    inside = functools.reduce(operator.getitem, path[:-1], tree)
    if how == "value":
        inside[path[-1]] = odd
    else:
        del inside[path[-1]]
    return json.dumps(tree).encode()


def _places(tree: Any, path: tuple) -> Iterator[tuple]:
    """The way to each value of a tree, that to itself first."""
    yield path
    if isinstance(tree, dict | list):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _places(value, (*path, name))


def _other_toml(content: bytes, how: str, where: float, what: int) -> bytes:
    """With another value on one line, or without the line."""
    lines = content.split(b"\n")
    place = int(where * len(lines))
    name, equals, _ = lines[place].partition(b"=")
    if how == "value" and equals:
        lines[place] = name + b"= " + ODD_TOML[what % len(ODD_TOML)].encode()
    else:
        del lines[place]
    return b"\n".join(lines)


# ------------------------------------------------------------------ the guard

_armed: dict[str, Any] = {}


class Program:
    """What runs where it is unpickled."""

    def __reduce__(self):
        return os.getenv, ("HOME",)


PICKLED = pickle.dumps(Program())


def _watch(event: str, given: tuple) -> None:
    """Notes what no reader does: unpickle, run, connect, or write outside of a folder."""
    if not _armed:
        return
    inside, seen = _armed["inside"], _armed["seen"]
    if event in ("pickle.find_class", "subprocess.Popen", "os.system", "socket.connect", "os.exec"):
        seen.append((event, given))
    elif event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "shutil.rmtree"):
        if not str(given[0]).startswith(inside):
            seen.append((event, given))
    elif event == "open":
        path, _, flags = given
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and isinstance(path, str | bytes) and not os.fsdecode(path).startswith(inside):
            seen.append((event, given))


sys.addaudithook(_watch)


@contextmanager
def guarded(inside: Path) -> Iterator[list]:
    """Yields a list of what is done in here that no reader does; files may be written inside."""
    seen: list = []
    _armed.update(inside=str(inside), seen=seen)
    try:
        yield seen
    finally:
        _armed.clear()


def escape(read: Callable[[Path], Any], path: Path, names: tuple[str, ...]) -> str | None:
    """How reading a file goes wrong, if it does: what it raises neither names the file nor is a
    ValueError or an OSError, or it does what no reader does."""
    with guarded(path if path.is_dir() else path.parent) as seen:
        try:
            read(path)
        except (ValueError, OSError) as error:
            if not any(name in str(error) for name in names):
                return f"{type(error).__name__} without the file's name: {error}"
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
    return f"does {seen}" if seen else None

"""Other people's files: what they hold, or a ValueError that names the file and says what it is.

Nothing is unpickled. What is packed may hold a GiB, or a hundred times as much as it takes on disk:
more is a bomb.
"""

import gzip
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

GIB = 2**30
RATIO = 100
NPY, ZIP, GZIP = b"\x93NUMPY", b"PK", b"\x1f\x8b"  # how files begin
POINTER = b"version https://git-lfs.github.com/spec/"  # what stands for a file


def read_text(path: Path) -> str:
    """A text in UTF-8, with or without a byte order mark.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is in another encoding, or is a pointer of Git LFS.
    """
    refuse_pointer(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: save it so ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises as `read_text`, and a ValueError for what is none."""
    text = read_text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} should hold a JSON object, got a {type(found).__name__}")
    return found


def read_arrays(path: Path, alone: str = "") -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name, or that of a .npy file.

    Args:
        path: the file.
        alone: what the array of a .npy file is called.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such file, is damaged, holds objects, or is a bomb.
    """
    start = _numpy_start(path)
    if start == NPY:
        with _damaged(path), path.open("rb") as file:
            return {alone: np.load(file, allow_pickle=False)}
    with _damaged(path), zipfile.ZipFile(path) as members:
        size = sum(member.file_size for member in members.infolist())
    check_unpacked(path, size)
    with _damaged(path), path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        arrays = dict(found)
    others = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if others:
        raise ValueError(f"{path} is damaged, or holds more than plain arrays: {others}")
    return arrays


def map_array(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped into memory. Raises as `read_arrays`."""
    if _numpy_start(path) != NPY:
        raise ValueError(
            f"{path} is an archive (.npz), which cannot be read by rows: save its images with "
            "numpy.save, in a .npy file"
        )
    with _damaged(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if gzip packed it.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged, a bomb, or a pointer of Git LFS.
    """
    refuse_pointer(path)
    if start_of(path, len(GZIP)) != GZIP:
        return path.read_bytes()
    with _damaged(path, "truncated or damaged"), gzip.open(path) as file:
        content = file.read(_most(path) + 1)
    check_unpacked(path, len(content))
    return content


def check_unpacked(path: Path, size: int, packed: int | None = None) -> None:
    """Refuse what would unpack to more bytes than a file of this size may hold."""
    most = _most(path, packed)
    if size > most:
        raise ValueError(
            f"{path} would unpack to more than {most / GIB:.3g} GiB, which is more than a GiB and "
            f"more than {RATIO} times its size: unpack it yourself if it is right"
        )


def start_of(path: Path, count: int) -> bytes:
    """The first bytes of a file, which tell what it is."""
    with path.open("rb") as file:
        return file.read(count)


def refuse_pointer(path: Path) -> None:
    """Refuse what Git LFS leaves in place of a file that it has not fetched."""
    if path.is_file() and start_of(path, len(POINTER)) == POINTER:
        raise ValueError(
            f"{path} is a Git LFS pointer, which stands for the file: run `git lfs pull` where it "
            "is from"
        )


def refuse_pickles(path: Path, array: Any) -> None:
    """Refuse a Zarr array whose chunks are pickles, before one is read."""
    try:
        about = array.metadata.to_dict()
        codecs = [about.get(part) for part in ("filters", "compressor", "codecs")]
    except Exception as error:  # of codecs that cannot say what they are
        raise ValueError(f"{path} is damaged: {error}") from error
    if "pickle" in str(codecs).lower():
        raise ValueError(
            f"{path} keeps its chunks as pickles, which run their author's code when they are "
            "read: write it again without"
        )


def _numpy_start(path: Path) -> bytes:
    """How a file of NumPy's begins: as a .npy file, or as an archive of them."""
    refuse_pointer(path)
    start = start_of(path, len(NPY))
    if start == NPY or start[: len(ZIP)] == ZIP:
        return start
    raise ValueError(
        f"{path} is no .npy or .npz file: it begins with {start!r}; write it with numpy.save, or "
        "numpy.savez"
    )


def _most(path: Path, packed: int | None = None) -> int:
    return max(GIB, RATIO * (path.stat().st_size if packed is None else packed))


@contextmanager
def _damaged(path: Path, words: str = "damaged, or holds more than plain arrays") -> Iterator[None]:
    """What goes wrong in here is the file's fault; NumPy's advice to unpickle it is left out."""
    try:
        yield
    except Exception as error:  # archives and arrays may fail in any way
        why = "" if "pickle" in str(error) else f": {error}"
        raise ValueError(f"{path} is {words}{why}") from error

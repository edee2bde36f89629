"""Files that are written whole, or not at all, folders that belong to one study, and files that are
not what their names say."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

POINTER = b"version https://git-lfs.github.com/spec/"  # how what stands for a file begins


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write to, and moves what was written there to `path` at the end, if nothing
    went wrong."""
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def refuse_another(folder: Path, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuses a folder that is kept for another study, naming the settings that differ."""
    differing = [name for name in {**asked, **kept} if kept.get(name) != asked.get(name)]
    if differing:
        raise ValueError(
            f"{folder} holds a study with other settings of {', '.join(differing)}: choose another "
            "--out, or remove that folder"
        )


def refuse_pointer(path: Path) -> None:
    """Refuses what Git LFS leaves in place of a file that it has not fetched."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise ValueError(
                    f"{path} is a Git LFS pointer, which stands for the file: run `git lfs pull` "
                    "where it is from"
                )

"""Files that are written whole, or not at all, and folders that belong to one study."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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

"""The folder of a study, in which a run that was stopped goes on where it was.

    FOLDER/study.json            what the results hang on; another study is refused
    FOLDER/.../NAME.ending       one result, written whole or not at all

A result that is there is read; one that is not there, or is damaged, is found and written. Several
processes may share a folder: each takes what is left in an order of its own.
"""

import json
import os
import random
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from scoresens._files import refuse_another, replacing, write_text
from scoresens._reading import read_arrays, read_json
from scoresens.datasets.images import DataSettings
from scoresens.models import ModelSettings

Result = TypeVar("Result")
LATER = {  # settings that older studies have not: told where they are not these
    DataSettings: {"label": None, "window": None, "stride": 1},
    ModelSettings: {"degrees_of_freedom": None},
}
DAMAGED = (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Form(Generic[Result]):
    """How a kind of result is kept in a file; `read` raises one of `DAMAGED` for another's."""

    ending: str
    read: Callable[[Path], Result]
    write: Callable[[Path, Result], None]


class Store(Generic[Result]):
    """Results of one kind by name, each in a file of a folder.

    Args:
        folder: made where it is missing.
        form: of the files.
    """

    def __init__(self, folder: Path, form: Form[Result]):
        self.folder, self.form = folder, form

    def file(self, name: str) -> Path:
        """Where a result is kept."""
        return self.folder / f"{name}{self.form.ending}"

    def find(self, name: str) -> Result | None:
        """A result, or None where there is none, or a damaged one."""
        try:
            return self.form.read(self.file(name))
        except DAMAGED:
            return None

    def result(self, name: str, make: Callable[[], Result]) -> Result:
        """A result, made and written where there is none."""
        found = self.find(name)
        if found is None:
            found = make()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.form.write(self.file(name), found)
        return found

    def results(
        self,
        names: Iterable[str],
        make: Callable[[str], Result],
        shown: Callable[[list[str]], Iterator[str]] = iter,
    ) -> dict[str, Result]:
        """The results of all names, in their order.

        Args:
            names: of the results.
            make: what finds the result of a name.
            shown: what shows progress over the names that are left.
        """
        found = {name: self.find(name) for name in names}
        left = [name for name, result in found.items() if result is None]
        random.Random(os.getpid()).shuffle(left)
        for name in shown(left):  # another process may have been there
            found[name] = self.result(name, lambda name=name: make(name))
        return {name: result for name, result in found.items() if result is not None}


def of_study(folder: Path, settings: Any, names: Iterable[str], **also: str) -> None:
    """Makes a folder that of a study, which its `study.json` tells; refuses that of another.

    Args:
        folder: of the study.
        settings: of the run.
        names: of the settings that results hang on.
        also: what else they hang on, such as the `fingerprint` of a model.

    Raises:
        ValueError: if the folder is another study's, naming what differs.
    """
    study = {name: getattr(settings, name) for name in names} | also
    text = json.dumps(study, indent=2, default=_plain) + "\n"
    file = folder / "study.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    refuse_another(folder, read_json(file), json.loads(text))


def arrays(*fields: str, of: str | None = None) -> Form[dict[str, np.ndarray]]:
    """The form of arrays by name: an npz file.

    Args:
        fields: what is read; what is written may hold more.
        of: the `fingerprint` of what they are found from; a file of another is as good as none.
    """

    def read(file: Path) -> dict[str, np.ndarray]:
        kept = read_arrays(file)
        if of is not None and str(kept.get("asked")) != of:
            raise ValueError(f"{file} holds what was found from something else")
        if missing := sorted(set(fields) - kept.keys()):
            raise ValueError(f"{file} lacks the arrays {missing}: it is not what its name says")
        return {name: kept[name] for name in fields}

    def write(file: Path, result: dict[str, np.ndarray]) -> None:
        everything: dict[str, Any] = result | ({} if of is None else {"asked": np.array(of)})
        with replacing(file) as beside, beside.open("wb") as stream:
            np.savez_compressed(stream, **everything)

    return Form(".npz", read, write)


def _write_array(file: Path, result: np.ndarray) -> None:
    with replacing(file) as beside, beside.open("wb") as stream:
        np.save(stream, result)


def _plain(value: Any) -> Any:
    if not is_dataclass(value) or isinstance(value, type):
        return str(value)
    told = asdict(value)
    later = LATER.get(type(value), {})
    return {name: told[name] for name in told if told[name] != later.get(name, MISSING)}


ARRAY: Form[np.ndarray] = Form(".npy", lambda file: read_arrays(file)[""], _write_array)

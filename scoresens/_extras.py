"""Packages that an extra installs, for those who ask for them: imported where they are used."""

import importlib
from typing import Any


def needed(module: str, what: str, extra: str) -> Any:
    """The module of this name, or an error that says how to get it.

    Args:
        module: its full name.
        what: what is being done with it, the error's subject.
        extra: of this package, which installs it.

    Raises:
        ImportError: if it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{what} needs the extra {extra}: pip install 'scoresens[{extra}]' ({error})"
        ) from error

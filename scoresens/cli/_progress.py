"""What is being done, for how long, and whose it is to mend: on standard error."""

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from scoresens.cli._config import ConfigError

WIDTH = 62  # columns before the seconds


class Stages:
    """Says what is being done and how long it took; remembers the seconds by name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.began = time.monotonic()

    @contextmanager
    def __call__(self, name: str, what: str, *, bars: bool = False) -> Iterator[None]:
        """One stage, on one line; or on two, around the progress bars that it shows itself."""
        began = time.monotonic()
        tell(f"{what + ' …':<{WIDTH}}", end="\n" if bars else "")
        try:
            yield
        except BaseException:
            tell(" stopped")
            raise
        self.seconds[name] = round(time.monotonic() - began, 2)
        again = f"{'… done':<{WIDTH}}" if bars else ""
        tell(f"{again}{self.seconds[name]:7.1f} s")

    @property
    def total(self) -> float:
        """Seconds since the run began."""
        return round(time.monotonic() - self.began, 2)


def tell(words: str, end: str = "\n") -> None:
    """Write to standard error, at once."""
    print(words, end=end, file=sys.stderr, flush=True)


def shown(names: list[str]) -> Iterator[str]:
    """The names of models, with a progress bar."""
    yield from tqdm(names, desc="models", unit="model")


@contextmanager
def noting() -> Iterator[None]:
    """What in here warns its user says so in a note, a line each."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message, category, *place, **more):
            if category is UserWarning:
                tell(f"\nnote: {message}")
            else:
                others(message, category, *place, **more)

        warnings.showwarning = show
        yield


@contextmanager
def blaming(setting: str) -> Iterator[None]:
    """What goes wrong in here is for the reader of that setting to mend."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:  # the last of an extra that is not there
        raise ConfigError(f"{setting}: {error}") from error

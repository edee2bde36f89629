"""What a method costs: the processor's seconds, memory beyond what was there, bytes on disk."""

import contextlib
import ctypes
import gc
import re
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median


class Meter:
    """Collects what a run costs; rows are read off it."""

    def __init__(self):
        self.spent: dict[str, list[float]] = {}
        self.before_each: dict[str, float] = {}
        self.noted: dict[str, object] = {}
        self.start_memory()

    def start_memory(self) -> None:
        """Gives back what was freed, and forgets the peak of memory so far: what a compiler or a
        library's import took."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.before = _memory("VmRSS")

    @contextlib.contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Adds the processor's seconds that its block takes, whoever else is busy."""
        start = time.process_time()
        yield
        self.spent.setdefault(name, []).append(time.process_time() - start)

    def seconds(self, name: str) -> float:
        """The median of the blocks of a name, 0 where there was none, and what each had to wait for
        that another run has done."""
        return median(self.spent.get(name, [0.0])) + self.before_each.get(name, 0.0)

    def beyond(self) -> float:
        """MB of memory at its peak, more than there was at the start."""
        return round(_memory("VmHWM") - self.before, 1)

    def row(self, queries: int, name: str = "query") -> dict[str, object]:
        """Seconds of preparation and a query, memory in MB, and what was noted; the blocks of a
        name answer all queries."""
        return {
            "preparation": round(self.seconds("prepare"), 4),
            "seconds a query": float(f"{self.seconds(name) / queries:.4g}"),
            "peak MB": round(_memory("VmHWM"), 1),
            "beyond start MB": self.beyond(),
            "queries": queries,
            **self.noted,
        }


def stored(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _memory(which: str) -> float:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{which}:\s*(\d+)", status)
    assert found, f"no {which} in /proc/self/status"
    return int(found.group(1)) / 1e3

"""Attribution of 16 samples to a million points of 784 numbers, and to ten, left in their file.

What counts: seconds (compiled before, on 4,096 of the points), over those of as many operations in
a large matrix product on the same cores; and memory, the process's own (anonymous) at its highest,
and with the pages of the file that happen to be in memory. The points are Fashion-MNIST's images
with noise; the network is small and random, for only the tables grow with the points.

    operations of the tables: 2 M S N d (3 + P), with M samples, S = 2 steps stages, P = 1, as of
    points that stay in files

A million in floats (3.1 GB) with the default steps; ten million in bytes (7.8 GB) with a tenth of
them, which is as much work. Checking a million floats for NaN reads them once more; bytes have
none. The files are made in --folder and removed; results land in results/million.json.
"""

import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rows import measure, options, read, table
from timing import matrix_rate

import scoresens as ss
from scoresens import datasets
from scoresens.datasets.streams import Stream, stream
from scoresens.models import ModelSettings, build
from scoresens.sensitivity.functionals import inner_product

SAMPLES, SHAPE = 16, (28, 28, 1)
PROCESS = ss.EDM()
ROWS = {
    "a million, floats": (1_000_000, np.float32, 40),
    "ten million, bytes": (10**7, np.uint8, 4),
}


def points_in_file(path: Path, count: int, dtype: type) -> Stream:
    """So many images with noise, written block by block."""
    images = datasets.load("fashion-mnist").images
    kept = np.lib.format.open_memmap(path, "w+", dtype, (count, *SHAPE))
    rng = np.random.default_rng(0)
    for start in range(0, count, 10_000):
        chosen = images[rng.integers(len(images), size=min(10_000, count - start))]
        noisy = chosen + rng.normal(0, 0.1, chosen.shape)
        if dtype == np.uint8:
            noisy = np.round(127.5 * (np.clip(noisy, -1, 1) + 1))
        kept[start : start + len(chosen)] = noisy
    kept.flush()
    del kept
    return stream(path)


class Peak:
    """The highest memory of the process while it is open, in GB, looked at ten times a second."""

    def __enter__(self):
        self.own = self.all = 0.0
        self.open = True
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.open = False
        self.thread.join()

    def _look(self):
        while self.open:
            lines = Path("/proc/self/status").read_text().splitlines()
            told = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
            self.own = max(self.own, int(told["RssAnon"]) / 1e6)
            self.all = max(self.all, sum(map(int, told.values())) / 1e6)
            time.sleep(0.1)


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--folder", type=Path, default=Path())
    given = parser.parse_args()

    def row(name):
        count, dtype, steps = ROWS[name]
        file = given.folder / "points.npy"
        try:
            return measured(points_in_file(file, count, dtype), steps)
        finally:
            file.unlink(missing_ok=True)

    if not given.table:
        rows = {name: lambda name=name: row(name) for name in ROWS}
        measure("million", rows, given.only, given.fresh)
    done = read("million")
    kinds = next(iter(done.values()))
    print(
        table(["", *done], [[kind, *(str(row[kind]) for row in done.values())] for kind in kinds])
    )


def measured(points: Stream, steps: int) -> dict:
    model = build(ModelSettings("mlp", 64, 1), SHAPE, 0.5, key=jax.random.key(0))
    score = ss.from_denoiser(PROCESS, model)
    noise = PROCESS.sample_prior((SAMPLES, *SHAPE), key=jax.random.key(1))
    ask = inner_product(jnp.ones(SHAPE))

    def attributed(points):
        data = ss.Points.on_host(points, bandwidth=4.0)
        solve = ss.Solve(steps=steps)
        return ss.attribute(PROCESS, score, data, ask, noise, base=data, top=10, solve=solve)

    attributed(Stream(points.rows[:4096]))
    before = matrix_rate()
    with Peak() as peak:
        start, worked = time.perf_counter(), time.process_time()
        found = attributed(points)
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
    rate = (before + matrix_rate()) / 2
    operations = 2 * SAMPLES * 2 * steps * len(points) * 784 * 4
    return {
        "points": len(points),
        "samples": SAMPLES,
        "attribution_seconds": round(seconds, 1),
        "processor_seconds": round(worked, 1),
        "gflop_per_second": round(operations / seconds / 1e9, 1),
        "matrix_product_gflop_per_second": round(rate / 1e9, 1),
        "rate_over_matrix_product": round(operations / seconds / rate, 3),
        "peak_own_memory_gb": round(peak.own, 2),
        "peak_with_pages_of_the_file_gb": round(peak.all, 2),
        "finite": bool(np.isfinite(found.top_values).all()),
    }


if __name__ == "__main__":
    main()

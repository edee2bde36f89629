"""Rivals in data attribution: what they say of a study's losses, and what they and ours cost.

Each method runs on each of the study's models of all images in a process of its own. A rival's
scores go to STUDY/rivals/METHOD-SEED.npz as they come, and those of all seeds together to
STUDY/rivals/METHOD.npz, `scores [R, D, Q, N]`, `dampings [D]`, `seeds [R]`; costs to
benchmarks/results/rivals.json.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from rows import Row, measure, options, read, table

RIVALS = ("dot", "trak", "dtrak", "ekfac")
OURS = ("loss_sensitivity", "attribute")


def main() -> None:
    args = parsed()
    if args.job:
        work(args)
    elif args.table:
        print(costs(args.results))
    else:
        make(args)


def parsed() -> argparse.Namespace:
    parser = options(__doc__ or "")
    parser.add_argument("study", type=Path, help="folder of `scoresens validate`, of halves")
    parser.add_argument("--out", type=Path, help="folder of scores, by default STUDY/rivals")
    parser.add_argument("--results", default="rivals", help="name of the file of rows")
    parser.add_argument("--queries", type=int, help="only so many, to try it")
    parser.add_argument("--dampings", type=int, help="only so many, to try it")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out or args.study / "rivals"
    return args


# ------------------------------------------------------------------ the parent: jobs, rows, files


def make(args: argparse.Namespace) -> None:
    """Run the jobs whose row or scores are missing."""
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = _seeds(args.study)
    rows, files = {}, {}
    for seed in seeds:
        for method in (*OURS, *RIVALS):
            row = f"{args.study.resolve().name}: {method}, seed {seed}"
            rows[row] = functools.partial(run, args, method, seed)
            files[row] = None if method in OURS else args.out / f"{method}-{seed}.npz"
    for row, file in files.items():
        if args.only in row:
            measure(args.results, rows, row, args.fresh or not (file is None or file.exists()))
    for method in RIVALS:
        join(args.out, method, seeds)


def run(args: argparse.Namespace, method: str, seed: int) -> Row:
    """One job in a process of its own; its row."""
    command = [sys.executable, __file__, str(args.study), "--out", str(args.out)]
    for name in ("queries", "dampings"):
        if (value := getattr(args, name)) is not None:
            command += [f"--{name}", str(value)]
    command += ["--job", f"{method}-{seed}"]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | threads)
    file = args.out / f"{method}-{seed}.json"
    row = json.loads(file.read_text())
    file.unlink()
    return row


def join(out: Path, method: str, seeds: list[int]) -> None:
    """One file of the seeds that are there."""
    files = {seed: out / f"{method}-{seed}.npz" for seed in seeds}
    there = {seed: dict(np.load(file)) for seed, file in files.items() if file.exists()}
    if there:
        scores = np.stack([part["scores"] for part in there.values()])
        dampings = next(iter(there.values()))["dampings"]
        _write(out / f"{method}.npz", scores=scores, dampings=dampings, seeds=np.array([*there]))


def costs(results: str) -> str:
    """Markdown: what each method costs, a line a row."""
    header = ["", "preparation", "a query", "beyond start", "bytes"]
    lines = [
        [name, f"{row['preparation']} s", f"{row['seconds a query']} s",
         f"{row['beyond start MB']} MB", f"{row['bytes']}"]
        for name, row in read(results).items()
    ]  # fmt: skip
    return table(header, lines)


def _seeds(study: Path) -> list[int]:
    found = sorted(int(file.stem[4:]) for file in study.glob("all-*.safetensors"))
    if not found or not (study / "questions.npz").exists():
        raise SystemExit(f"{study} holds no models all-0.safetensors ... or no questions.npz")
    return found


# ------------------------------------------------------------------ the child: one method and model


def work(args: argparse.Namespace) -> None:
    """Write the row of a job, and its scores."""
    import study
    from meter import Meter

    method, _, seed = args.job.rpartition("-")
    case = study.read(args.study, int(seed), args.queries)
    if method in OURS:
        import ours

        row = ours.METHODS[method](case, Meter())
    else:
        import kept
        import methods

        meter = Meter()
        dampings = methods.DAMPINGS[: args.dampings]
        if methods.is_unet(case):
            folder = args.out / f"gradients-{seed}"
            folder.mkdir(exist_ok=True)
            found = kept.METHODS[method](case, dampings, meter, folder)
        else:
            found = methods.METHODS[method](case, dampings, meter)
        row = meter.row(len(case.queries.x)) | {"levels": case.training.levels.shape[1]}
        row |= {"dampings": len(found.dampings)}
        scores = found.scores.astype(np.float32)
        if not np.isfinite(scores).all():
            raise FloatingPointError(f"{args.job}: scores that are not finite")
        _write(args.out / f"{args.job}.npz", scores=scores, dampings=found.dampings)
    (args.out / f"{args.job}.json").write_text(json.dumps(row))


def _write(file: Path, **arrays: np.ndarray) -> None:
    """The whole file or nothing of it."""
    beside = file.with_name(f"{file.stem}.{os.getpid()}.part.npz")
    np.savez(beside, allow_pickle=False, **arrays)
    os.replace(beside, file)


if __name__ == "__main__":
    main()

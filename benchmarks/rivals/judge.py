"""What a study's rivals say, judged as `scoresens validate` judges it, and put beside the rest.

    python benchmarks/rivals/judge.py STUDY

The command itself would make the predictions of all other methods again. This reads the scores of
`rivals.py`, STUDY/rivals/METHOD.npz, and the losses of the models that are kept, and adds to
STUDY/result.json a row a rival: the damping that is best on the halves for choosing, judged on the
others. In scoresens' own environment; a few seconds.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from scoresens._files import write_text
from scoresens.cli._config import read as settings
from scoresens.cli.halves import HalvesRun, chosen, of_queries, rival
from scoresens.studies import halves as lds
from scoresens.studies.retraining import Outputs

CONFIGS = Path(__file__).parents[2] / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("study", type=Path, help="folder of `scoresens validate`, of halves")
    folder: Path = parser.parse_args().study
    run = settings(CONFIGS / f"{folder.resolve().name}-halves.toml", HalvesRun)
    file = folder / "result.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    for scores in sorted((folder / "rivals").glob("*.npz")):
        if not scores.stem[-1].isdigit():  # METHOD-SEED.npz are its parts
            row, apart = judged(run, folder, scores)
            result["loss"]["methods"][scores.stem] = row
            result["generated"][scores.stem] = apart
            print(scores.stem, json.dumps(row["chosen"]), f"damping {row['setting']}")
    write_text(file, json.dumps(result, indent=2, allow_nan=False) + "\n")


def judged(run: HalvesRun, folder: Path, scores: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A rival's row, and its LDS at samples and at held-out images, for the seeds that it has."""
    with np.load(folder / "questions.npz", allow_pickle=False) as asked:
        count = len(asked["kept"])
    with np.load(scores, allow_pickle=False) as kept:
        seeds = kept["seeds"]
    report = run.halves.subsets
    halves = lds.halves(count, report + run.halves.choosing, run.halves.seed)
    true = losses(run, folder, halves)[seeds]
    found = {s: p.astype(float) for s, p in rival(scores, halves).items()}
    judge = lds.Judge(true[:, :report], None, run.resamples, run.halves.seed)
    row = chosen(found, judge, lds.Judge(true[:, report:], None, 0, 0))
    best = found[row["setting"]][:, :report]
    return row | {"seeds": seeds.tolist()}, of_queries(run, true[:, :report], best)


def losses(run: HalvesRun, folder: Path, halves: np.ndarray) -> np.ndarray:
    """The true changes of the losses, `[R, S + C, Q]`."""
    found = {}
    for name in lds.plan(halves, run.halves.seeds):
        with np.load(folder / "models" / f"{name}.npz", allow_pickle=False) as kept:
            found[name] = Outputs(kept["samples"], kept["losses"])
    return lds.truth(found, len(halves), run.halves.seeds).losses


if __name__ == "__main__":
    main()

"""The tables of docs/validation.md, from the committed results of `scoresens validate`.

scoresens validate configs/digits-finetune.toml --out out      (about a minute on two idle cores)
cp out/result.json benchmarks/results/validation/digits-finetune.json
python benchmarks/validation.py
"""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "validation"
MEASURES = (
    "median_cosine",
    "pooled_pearson",
    "relative_l2",
    "magnitude_ratio",
    "magnitude_spearman",
)


METHODS = (
    *(f"counterfactual_{base}" for base in ("data", "steps", "model", "sharp")),
    *(f"first_order_{base}" for base in ("data", "model", "sharp")),
    "class_mean",
    "wiener",
    "another_finetuning",
)


def cell(found: dict) -> str:
    if found["value"] is None:
        return "–"  # the baseline moves all samples alike
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def table(result: dict) -> str:
    """One change: a row a method."""
    head = f"| method | {' | '.join(name.replace('_', ' ') for name in MEASURES)} |"
    rows = [
        f"| `{method}` | {' | '.join(cell(result[method][name]) for name in MEASURES)} |"
        for method in METHODS
        if method in result
    ]
    return "\n".join([head, "|---|" + "---|" * len(MEASURES), *rows])


def reached(results: dict[str, dict]) -> str:
    """What a perfect prediction would reach, and what ours does."""
    lines = [
        "| change | pairs | pooled Pearson | of the effect itself | share |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        if result.get("reach"):
            found = result["counterfactual_data"]["pooled_pearson"]
            share = found["value"] / result["reach"]
            pairs = result["settings"]["repeats"]
            cells = f"{cell(found)} | {result['reach']:.2f} | {share:.0%}"
            lines.append(f"| `{name}` | {pairs} | {cells} |")
    return "\n".join(lines)


def by_steps(results: dict[str, dict]) -> str:
    """Pooled Pearson of the finite prediction after so many steps of fine-tuning."""
    lines = ["| change | method | 1 step | 10 | 100 | all |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        for method in ("counterfactual_data", "counterfactual_steps", "another_finetuning"):
            if method not in next(iter(result["after"].values())):
                continue  # of a model that is added nothing is said step by step
            cells = [cell(rows[method]["pooled_pearson"]) for rows in result["after"].values()]
            lines.append(f"| `{name}` | `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    print(by_steps(results), "\n")
    print(reached(results))
    for name, result in results.items():
        sizes = result["mean_norm"]
        print(f"\n### {result['change']} (`configs/{name}.toml`)\n")
        print(
            f"{result['count']} samples, which really moved by {sizes['real']:.2f} on average; "
            f"the control drifted by {sizes['control_drift']:.2f}.\n"
        )
        print(table(result))


if __name__ == "__main__":
    main()

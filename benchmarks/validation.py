"""The page docs/validation-tables.md, from the committed results of `scoresens validate`.

scoresens validate configs/digits-finetune.toml --out out      (about a minute on two idle cores)
cp out/result.json benchmarks/results/validation/digits-finetune.json
python benchmarks/validation.py > docs/validation-tables.md
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


def headline(results: dict[str, dict]) -> str:
    """The finite prediction of each change, and what a perfect one would reach."""
    lines = [
        "| change | configuration | cosine | Pearson | relative L2 | reach | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        found = result["counterfactual_data"]
        cells = [cell(found[measure]) for measure in MEASURES[:3]]
        reach = result.get("reach")
        share = f"{found['pooled_pearson']['value'] / reach:.0%}" if reach else "–"
        cells += [f"{reach:.2f}" if reach else "–", share]
        lines.append(f"| {result['change']} | `{name}` | {' | '.join(cells)} |")
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
    print("# Every method on every change\n")
    print("Printed by `python benchmarks/validation.py`; docs/validation.md says what it means.\n")
    print("## In short\n")
    print("`counterfactual_data`. Reach: what the effect itself would have against these pairs.\n")
    print(headline(results))
    print("\n## After a few steps\n")
    print("Pooled Pearson after 1, 10, 100 and all steps of the same fine-tunings.\n")
    print(by_steps(results))
    for name, result in results.items():
        sizes = result["mean_norm"]
        print(f"\n## {result['change']} (`configs/{name}.toml`)\n")
        print(
            f"{result['count']} samples, which really moved by {sizes['real']:.2f} on average; "
            f"the control drifted by {sizes['control_drift']:.2f}.\n"
        )
        print(table(result))


if __name__ == "__main__":
    main()

"""A file imports only from the floors below it, and the package imports lightly."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "scoresens"

FLOORS = (
    {"_checks", "_files", "_pytrees", "_products", "datasets"},
    {"laws", "statistics"},
    {"flow", "models"},
    {"fokker_planck", "sensitivity"},
    {"importers", "training", "sweeps"},
    {"studies"},
    {"report"},
    {"cli"},
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}

SOLVER = "flow/solve.py"  # the only file that imports diffrax
HEAVY = {
    "matplotlib",
    "ot",
    "PIL",
    "torch",
    "sklearn",
    "safetensors",
    "tqdm",
    "xarray",
    "zarr",
    "traceax",
    "scoresens.models",
}


def imports(file: Path, package: Path) -> Iterator[tuple[str, bool]]:
    """Every name a file imports, in full, and whether the import hides inside a function."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    here = file.relative_to(package.parent).parent.parts
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    hidden = {node for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            origin: tuple[str, ...] = ()
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) + 1 - node.level] if node.level else ()
            origin = (*above, node.module) if node.module else above
        else:
            continue
        for alias in node.names:
            yield ".".join((*origin, alias.name)), node in hidden


def complaints(package: Path) -> list[str]:
    """What is wrong with the imports of a package, a line each."""
    found = []
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package)
        place = path.with_suffix("").parts[0]
        if place != "__init__" and place not in FLOOR:
            found.append(f"{path} has no floor")
            continue
        for name, hidden in imports(file, package):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if top == "diffrax" and place != SOLVER:
                found.append(f"{path} imports diffrax; only {SOLVER}.py does")
            if top != package.name:
                continue
            if hidden:
                found.append(f"{path} hides {name} in a function")
            if target not in FLOOR:
                found.append(f"{path} imports {name}; no floor")
            elif place not in ("__init__", target) and FLOOR[target] >= FLOOR[place]:
                found.append(f"{path} imports {name}; not below")
    return found


def test_every_file_imports_only_from_below():
    assert complaints(PACKAGE) == []


CLEAN = {
    "__init__.py": "from .scores import from_noise\n",
    "processes.py": "import math\nimport jax\n",
    "scores.py": "from scoresens import processes\nfrom scoresens.laws.processes import VP\n",
    f"{SOLVER}.py": "import diffrax\nfrom .processes import VP\n",
    "models/__init__.py": "from .unet import UNet\n",
    "models/unet.py": "from .blocks import Block\nfrom ..scores import from_noise\n",
    "models/blocks.py": "def block():\n    import math\n    return math.pi\n",
    "cli.py": "import scoresens.models.unet as unet\n",
}


def plant(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "scoresens"
    for name, text in files.items():
        file = package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return package


def test_checker_passes_a_clean_tree(tmp_path):
    assert complaints(plant(tmp_path, CLEAN)) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("managers.py", "", "managers.py has no floor"),
        ("managers/base.py", "", "managers/base.py has no floor"),
        (
            "processes.py",
            "from .scores import x",
            "processes.py imports scoresens.scores.x; not below",
        ),
        ("processes.py", "import scoresens.cli", "processes.py imports scoresens.cli; not below"),
        (
            "processes.py",
            "from . import traces",
            "processes.py imports scoresens.traces; not below",
        ),
        (
            "models/unet.py",
            "from .. import datasets",
            "models/unet.py imports scoresens.datasets; not below",
        ),
        (
            "importers/edm.py",
            "from ..training import f",
            "importers/edm.py imports scoresens.training.f; not below",
        ),
        ("scores.py", "from scoresens import VP", "scores.py imports scoresens.VP; no floor"),
        ("scores.py", "import scoresens", "scores.py imports scoresens; no floor"),
        (
            "cli.py",
            "def f():\n    from .scores import x",
            "cli.py hides scoresens.scores.x in a function",
        ),
        (
            "cli.py",
            "async def f():\n    import scoresens.laws.scores",
            "cli.py hides scoresens.scores in a function",
        ),
        (
            "sweeps.py",
            "def f():\n    import diffrax",
            f"sweeps.py imports diffrax; only {SOLVER}.py does",
        ),
        (
            "sweeps.py",
            "from diffrax import Heun",
            f"sweeps.py imports diffrax; only {SOLVER}.py does",
        ),
    ],
)
def test_checker_finds_a_planted_violation(tmp_path, file, line, complaint):
    assert complaints(plant(tmp_path, CLEAN | {file: line})) == [complaint]


def test_importing_scoresens_is_light():
    code = f"import sys, scoresens; print(*sorted({HEAVY} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []

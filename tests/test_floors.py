"""A package imports only from the floors below it, its private files stay its own, and importing
scoresens is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "scoresens"

FLOORS = (
    {"_checks", "_extras", "_files", "_products", "_pytrees", "_reading", "_types"},
    {"datasets"},
    {"laws", "statistics"},
    {"flow", "models"},
    {"discrete", "fokker_planck", "sensitivity"},
    {"importers", "sweeps", "training"},
    {"studies"},
    {"report"},
    {"cli"},
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}

SOLVER = "flow/solve.py"  # the only file that imports diffrax
HEAVY = {
    "flax",
    "matplotlib",
    "optax",
    "ot",
    "PIL",
    "pyarrow",
    "torch",
    "sklearn",
    "safetensors",
    "tqdm",
    "xarray",
    "zarr",
    "traceax",
    "scoresens.models",
}


class Import(NamedTuple):
    file: Path  # within the package
    name: str  # in full
    hidden: bool  # inside a function

    @property
    def place(self) -> str:
        """The package, or the file at the top, that imports."""
        return self.file.with_suffix("").parts[0]


def imports(package: Path) -> Iterator[Import]:
    """Every name that a file of the package imports."""
    for file in sorted(package.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        here = file.relative_to(package.parent).parent.parts
        functions = (
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )
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
                name = ".".join((*origin, alias.name))
                yield Import(file.relative_to(package), name, node in hidden)


def complaints(package: Path) -> list[str]:
    """What is wrong with the imports of a package, a line each."""
    found = []
    places = {file.relative_to(package).with_suffix("").parts[0] for file in package.rglob("*.py")}
    found += [f"{place} has no floor" for place in sorted(places - FLOOR.keys() - {"__init__"})]
    for own in imports(package):
        top, _, rest = own.name.partition(".")
        if top == "diffrax" and own.file.as_posix() != SOLVER:
            found.append(f"{own.file} imports diffrax; only {SOLVER} does")
        if top != package.name or own.place not in FLOOR | {"__init__": 0}:
            continue
        target, *inside = rest.split(".")
        if own.hidden:
            found.append(f"{own.file} hides {own.name} in a function")
        if target not in FLOOR:
            found.append(f"{own.file} imports {own.name}; no floor")
        elif own.place not in ("__init__", target):
            if FLOOR[target] >= FLOOR[own.place]:
                found.append(f"{own.file} imports {own.name}; not below")
            if any(part.startswith("_") for part in inside):
                found.append(f"{own.file} imports {own.name}; private to {target}")
    return found


def public_without_reader(package: Path) -> list[str]:
    """Files that only their own package uses and that it does not export, yet without the `_`."""
    read = set()
    for own in imports(package):
        top, *parts = own.name.split(".")
        if top != package.name:
            continue
        if own.file.name == "__init__.py" or own.place not in parts[:1]:
            read |= {"/".join(parts[: length + 1]) for length in range(len(parts))}
    files = (file.relative_to(package).with_suffix("") for file in package.rglob("*.py"))
    return sorted(
        file.as_posix()
        for file in files
        if len(file.parts) > 1 and not file.name.startswith("_") and file.as_posix() not in read
    )


def test_every_package_imports_only_from_below():
    assert complaints(PACKAGE) == []


def test_files_that_only_their_package_uses_are_private():
    assert public_without_reader(PACKAGE) == []


CLEAN = {
    "__init__.py": "from .laws import from_noise\n",
    "_checks.py": "import math\nimport jax\n",
    "laws/__init__.py": "from .scores import from_noise\n",
    "laws/scores.py": "from scoresens import _checks\nfrom scoresens.laws._frame import VP\n",
    "laws/_frame.py": "from scoresens._checks import finite\n",
    SOLVER: "import diffrax\nfrom ..laws.scores import VP\n",
    "sweeps/__init__.py": "from scoresens.flow.solve import Solve\n",
    "models/__init__.py": "from .unet import UNet\n",
    "models/unet.py": "from .blocks import Block\nfrom ..laws.scores import from_noise\n",
    "models/blocks.py": "def block():\n    import math\n    return math.pi\n",
    "training/__init__.py": "from scoresens.models.blocks import block\n",
    "cli/__init__.py": "import scoresens.models.unet as unet\n",
}


def plant(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "scoresens"
    for name, text in files.items():
        file = package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return package


def test_checker_passes_a_clean_tree(tmp_path):
    package = plant(tmp_path, CLEAN)
    assert complaints(package) == [] and public_without_reader(package) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("managers.py", "", "managers has no floor"),
        ("managers/base.py", "", "managers has no floor"),
        (
            "laws/scores.py",
            "from ..flow.solve import x",
            "laws/scores.py imports scoresens.flow.solve.x; not below",
        ),
        ("_checks.py", "import scoresens.cli", "_checks.py imports scoresens.cli; not below"),
        (
            "laws/scores.py",
            "from .. import statistics",
            "laws/scores.py imports scoresens.statistics; not below",
        ),
        (
            "importers/edm.py",
            "from ..training import f",
            "importers/edm.py imports scoresens.training.f; not below",
        ),
        (
            "flow/solve.py",
            "from scoresens.laws._frame import x",
            "flow/solve.py imports scoresens.laws._frame.x; private to laws",
        ),
        (
            "laws/scores.py",
            "from scoresens import VP",
            "laws/scores.py imports scoresens.VP; no floor",
        ),
        ("laws/scores.py", "import scoresens", "laws/scores.py imports scoresens; no floor"),
        (
            "cli/__init__.py",
            "def f():\n    from ..laws.scores import x",
            "cli/__init__.py hides scoresens.laws.scores.x in a function",
        ),
        (
            "cli/__init__.py",
            "async def f():\n    import scoresens.laws",
            "cli/__init__.py hides scoresens.laws in a function",
        ),
        (
            "sweeps/__init__.py",
            "def f():\n    import diffrax",
            f"sweeps/__init__.py imports diffrax; only {SOLVER} does",
        ),
        (
            "flow/__init__.py",
            "from diffrax import Heun",
            f"flow/__init__.py imports diffrax; only {SOLVER} does",
        ),
    ],
)
def test_checker_finds_a_planted_violation(tmp_path, file, line, complaint):
    assert complaints(plant(tmp_path, CLEAN | {file: line})) == [complaint]


def test_checker_finds_a_public_file_that_nobody_reads(tmp_path):
    package = plant(tmp_path, CLEAN | {"laws/secret.py": ""})
    assert public_without_reader(package) == ["laws/secret"]


def test_importing_scoresens_is_light():
    code = f"import sys, scoresens; print(*sorted({HEAVY} & sys.modules.keys()))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (finished.returncode, finished.stdout.strip()) == (0, ""), finished.stderr

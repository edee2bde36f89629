"""What another file calls has annotated parameters: functions, and the methods of classes."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "scoresens"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def trees(package: Path) -> dict[str, ast.Module]:
    """The files of a package by the names of their modules, in full."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def read(modules: dict[str, ast.Module]) -> set[str]:
    """The full names that a file takes from another, by import or as a module's attribute."""
    found = set()
    for tree in modules.values():
        held = {}  # modules by the names that they have in this file
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    found.add(name)
                    if name in modules:
                        held[alias.asname or alias.name] = name
        found |= {
            f"{held[node.value.id]}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if node.value.id in held
        }
    return found


def methods(node: ast.ClassDef) -> dict[str, Function]:
    """What a class lets others call, by name."""
    every = {method.name: method for method in node.body if isinstance(method, Function)}
    return {n: m for n, m in every.items() if n in ("__init__", "__call__") or n[0] != "_"}


def inherited(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """The methods of a class's bases, and of theirs."""
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)} & classes.keys()
    every = (methods(classes[base]).keys() | inherited(classes[base], classes) for base in bases)
    return set().union(*every)


def functions(
    tree: ast.Module, classes: dict[str, ast.ClassDef]
) -> Iterator[tuple[str, str, Function]]:
    """Functions and methods of a file: what a reader imports, what it calls, and its definition.
    A method that stands in for a base class's takes its parameters from there."""
    for node in tree.body:
        if isinstance(node, Function):
            yield node.name, node.name, node
        elif isinstance(node, ast.ClassDef):
            above = inherited(node, classes)
            for name, method in methods(node).items():
                if name == "__init__" or name not in above:
                    yield node.name, f"{node.name}.{name}", method


def bare(function: Function) -> list[str]:
    """The parameters without annotation, but for the object or the class itself."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    every = [*named, *(extra for extra in (given.vararg, given.kwarg) if extra)]
    return [a.arg for a in every if not a.annotation and a.arg not in ("self", "cls")]


def complaints(package: Path) -> list[str]:
    """Parameters that other files fill, yet without annotation, a line a function."""
    modules = trees(package)
    names = read(modules)
    nodes = [node for tree in modules.values() for node in tree.body]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    return [
        f"{module}.{called}: {', '.join(missing)}"
        for module, tree in modules.items()
        for imported, called, function in functions(tree, classes)
        if f"{module}.{imported}" in names and (missing := bare(function))
    ]


def test_parameters_that_other_files_fill_are_annotated():
    assert complaints(PACKAGE) == []


def test_bare_parameters_are_found(tmp_path):
    package = tmp_path / "scoresens"
    package.mkdir()
    (package / "__init__.py").write_text("from scoresens.a import f, C, D\n")
    (package / "a.py").write_text(
        "def f(x, *, key: int): ...\ndef g(x): ...\ndef h(x, *rest): ...\n"
        "class C:\n    def __init__(self, y): ...\n    def _k(self, z): ...\n"
        "    def m(self, z): ...\nclass D(C):\n    def m(self, z): ...\n"
    )
    (package / "b.py").write_text("from scoresens import a\na.h(1)\n")
    assert complaints(package) == [
        "scoresens.a.f: x",
        "scoresens.a.h: x, rest",
        "scoresens.a.C.__init__: y",
        "scoresens.a.C.m: z",
    ]

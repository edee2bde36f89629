"""docs/equations.md lists every numbered equation that the code cites, with the files that do."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "scoresens"
PAGE = ROOT / "docs" / "equations.md"

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

NUMBER = r"[1-9]\d?\.\d+[a-z]?"
DECIMAL = re.compile(r"-?\d*\.?\d+[a-z]?")
GROUP = re.compile(rf"(?<![\w)])\(([^()\n]*\b{NUMBER}\b[^()\n]*)\)")
ENTRY = re.compile(rf"^- \*\*\(({NUMBER})\)\*\*", re.MULTILINE)


def numbers_in(prose: str) -> set[str]:
    """The equations that prose cites: (3.2), (6.1, 6.3), (6.5, `Smoothed`), not N(1.3, 0.2^2)."""
    found = set()
    for group in GROUP.findall(prose):
        numbers = {part for part in map(str.strip, group.split(",")) if DECIMAL.fullmatch(part)}
        if all(re.fullmatch(NUMBER, number) for number in numbers):  # else an interval, a pair
            found |= numbers
    return found


def prose_of(source: str) -> str:
    """The docstrings and comments of a file, a line each."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, Documented))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = (token.string for token in tokens if token.type == tokenize.COMMENT)
    return "\n".join([*(ast.get_docstring(node) or "" for node in nodes), *comments])


def cited(package: Path) -> dict[str, set[str]]:
    """For each equation, the files of the package that cite it."""
    found: dict[str, set[str]] = {}
    for file in sorted(package.rglob("*.py")):
        for number in numbers_in(prose_of(file.read_text(encoding="utf-8"))):
            found.setdefault(number, set()).add(file.relative_to(package).as_posix())
    return found


def listed(page: str) -> dict[str, set[str]]:
    """For each equation of the page, the files that its entry names."""
    _, *parts = ENTRY.split(page)
    entries = zip(parts[::2], parts[1::2], strict=True)
    return {number: set(re.findall(r"`([\w/]+\.py)`", text)) for number, text in entries}


def test_every_equation_is_listed_with_the_files_that_cite_it():
    expected, page = cited(PACKAGE), listed(PAGE.read_text(encoding="utf-8"))
    wrong = {n for n in expected.keys() | page.keys() if expected.get(n) != page.get(n)}
    lines = [
        f"({number}) Files: " + ", ".join(f"`{file}`" for file in sorted(expected.get(number, ())))
        for number in sorted(wrong)
    ]
    assert not lines, "docs/equations.md should say\n" + "\n".join(lines)


def test_no_equation_stands_twice_and_all_are_in_order():
    numbers = ENTRY.findall(PAGE.read_text(encoding="utf-8"))
    split = [re.fullmatch(r"(\d+)\.(\d+)([a-z]?)", number) for number in numbers]
    keys = [(int(part[1]), int(part[2]), part[3]) for part in split if part]
    assert keys == sorted(set(keys))


@pytest.mark.parametrize(
    ("prose", "expected"),
    [
        ("the flow (3.1) and, smoothed, (6.5, `learned`)", {"3.1", "6.5"}),
        ("mass (6.1, 6.3). R^2 (7.1s).", {"6.1", "6.3", "7.1s"}),
        ("radius N(1.3, 0.2^2), in (0.5, 32), from (0.0, 1.0) or (1.5, -1.5)", set()),
        ("1.3, section 5.1, f(2.1)", set()),
    ],
)
def test_citations_are_told_from_other_numbers(prose, expected):
    assert numbers_in(prose) == expected


def test_citations_stand_in_docstrings_and_comments_alone():
    source = '"""(1.1)"""\nx = Page(6.5, "(3.1)")  # (4.1)\ndef f():\n    "(5.1)"\n    return 2.2\n'
    assert numbers_in(prose_of(source)) == {"1.1", "4.1", "5.1"}

"""Settings files and result files: what is read, what is written, what is refused and how."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest

from scoresens.cli._config import ConfigError, read, read_one_of
from scoresens.cli._results import versions, write_result


@dataclass(frozen=True)
class Grid:
    steps: int
    rho: float = 7.0
    span: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}")


@dataclass(frozen=True)
class Settings:
    process: Literal["vp", "ve", "edm"]
    grid: Grid
    out: Path = Path("out")
    blocks: tuple[int, ...] = ()
    seed: int | None = None
    size: int | tuple[int, int] = 8
    names: tuple[str, ...] = field(default_factory=tuple)
    exact: bool = False


def settings(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "run.toml"
    file.write_text(text)
    return read(file, Settings)


def test_defaults_fill_what_is_left_out(tmp_path):
    assert settings(tmp_path, "process = 'vp'\ngrid.steps = 4") == Settings("vp", Grid(4))


def test_every_type_is_read(tmp_path):
    text = """
    process = "edm"
    out = "runs/a"
    blocks = [1, 2, 3]
    seed = 5
    size = [8, 16]
    names = ["a"]
    exact = true
    [grid]
    steps = 10
    rho = 3
    span = [0.5, 2]
    """
    got = settings(tmp_path, text)
    grid = Grid(10, 3.0, (0.5, 2.0))
    assert got == Settings("edm", grid, Path("runs/a"), (1, 2, 3), 5, (8, 16), ("a",), True)
    assert isinstance(got.grid.rho, float)


OK = "process = 'vp'\ngrid.steps = 4\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OK + "proces = 1", "proces: unknown key; did you mean 'process'?"),
        (OK + "grid.step = 1", "grid.step: unknown key; did you mean 'steps'?"),
        (OK + "grid.x = 1", "grid.x: unknown key; known keys: steps, rho, span"),
        ("grid.steps = 4", "process: missing key, expected 'vp' or 've' or 'edm'"),
        ("process = 'vp'", "grid: missing key, expected a table of steps, rho, span"),
        ("process = 'vp'\n[grid]", "grid.steps: missing key, expected int"),
        ("process = 'vp'\ngrid = 3", "grid: expected a table of steps, rho, span, got 3 (int)"),
        ("process = 'vp'\ngrid.steps = 'x'", "grid.steps: expected int, got 'x' (str)"),
        ("process = 'vp'\ngrid.steps = 4.0", "grid.steps: expected int, got 4.0 (float)"),
        ("process = 'vp'\ngrid.steps = true", "grid.steps: expected int, got True (bool)"),
        ("process = 'vp'\ngrid.steps = 0", "grid: steps: expected at least 1, got 0"),
        (OK + "grid.rho = false", "grid.rho: expected float, got False (bool)"),
        (OK + "grid.span = [1]", "grid.span: expected a list (float, float), got [1] (list)"),
        (OK + "grid.span = [1, 'x']", "grid.span[1]: expected float, got 'x' (str)"),
        (OK + "blocks = [1, 2.5]", "blocks[1]: expected int, got 2.5 (float)"),
        (OK + "blocks = 1", "blocks: expected a list (int, ...), got 1 (int)"),
        (OK + "seed = 'x'", "seed: expected int, got 'x' (str)"),
        (OK + "size = 'x'", "size: expected int or a list (int, int), got 'x' (str)"),
        (OK + "exact = 1", "exact: expected bool, got 1 (int)"),
        (OK + "out = 1", "out: expected Path, got 1 (int)"),
        (
            "process = 'vpp'\ngrid.steps = 4",
            "process: expected 'vp' or 've' or 'edm', got 'vpp' (str); did you mean 'vp'?",
        ),
    ],
)
def test_refusal_names_file_key_and_remedy(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        settings(tmp_path, text)
    assert str(error.value) == f"{tmp_path / 'run.toml'}: {message}"


@dataclass(frozen=True)
class Walk:
    kind: Literal["walk"] = "walk"
    steps: int = 1


@dataclass(frozen=True)
class Jump:
    kind: Literal["jump"] = "jump"
    height: float = 2.0


@pytest.mark.parametrize(
    ("text", "found"),
    [("steps = 3", Walk(steps=3)), ("kind = 'walk'", Walk()), ("kind = 'jump'", Jump())],
)
def test_one_of_several_kinds_of_settings(tmp_path, text, found):
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert read_one_of(file, "kind", {"walk": Walk, "jump": Jump}) == found


def test_a_kind_that_is_not_known(tmp_path):
    file = tmp_path / "run.toml"
    for kind, got in (("'swim'", "'swim'"), ("['walk']", r"\['walk'\]")):
        file.write_text(f"kind = {kind}")
        with pytest.raises(
            ConfigError, match=rf"run.toml: kind must be one of 'walk', 'jump', got {got}"
        ):
            read_one_of(file, "kind", {"walk": Walk, "jump": Jump})


def test_refusal_of_what_is_not_toml(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.toml: not TOML: Invalid value"):
        settings(tmp_path, "process = ")


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["unix", "windows"])
def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path, start, end):
    file = tmp_path / "run.toml"
    file.write_bytes(start + OK.encode().replace(b"\n", end))
    assert read(file, Settings) == Settings("vp", Grid(4))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_refusal_of_another_encoding(tmp_path, encoding):
    file = tmp_path / "run.toml"
    file.write_bytes(f"{OK}# é".encode(encoding))
    with pytest.raises(ConfigError, match=r"run\.toml is not in UTF-8: save it so"):
        read(file, Settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OK + "size = " + 9000 * "[", r"run\.toml: not TOML"),
        (OK + "seed = " + 5000 * "9", r"run\.toml: not TOML: Exceeds the limit"),
        (OK + "seed = " + 30 * "9", r"run\.toml: seed: expected at most 64 bits, got 101"),
        (OK + "grid.rho = " + 400 * "9", r"run\.toml: grid\.rho: expected at most 64 bits"),
    ],
)
def test_refusal_of_what_is_too_deep_or_too_long(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, text)


def test_refusal_of_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        read(tmp_path / "none.toml", Settings)


def test_result_is_written_whole(tmp_path):
    result: dict[str, Any] = {
        "w2": np.float32(0.5),
        "curve": jnp.arange(3.0),
        "table": {"a": (1, None)},
    }
    chosen = Settings("vp", Grid(4))
    path = write_result(tmp_path / "new", result, settings=chosen, seconds=1.5)
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]
    got = json.loads(path.read_text())
    assert got["w2"] == 0.5
    assert got["curve"] == [0.0, 1.0, 2.0]
    assert got["table"] == {"a": [1, None]}
    assert got["settings"]["grid"] == {"steps": 4, "rho": 7.0, "span": [0.0, 1.0]}
    assert got["settings"]["out"] == "out"
    assert got["seconds"] == 1.5
    assert got["versions"] == versions()
    assert got["versions"].keys() >= {"scoresens", "jax", "jaxlib", "flax", "python"}


@pytest.mark.parametrize(
    ("result", "kind", "message"),
    [
        ({"a": {"b": [1.0, float("nan")]}}, ValueError, r"^a\.b\[1\]: nan is not a number"),
        ({"a": jnp.inf}, ValueError, "^a: inf is not a number"),
        ({"a": object()}, TypeError, "^a: object cannot be written"),
        ({"seconds": 1.0}, ValueError, "^result: seconds is written beside the result"),
    ],
)
def test_refused_result_leaves_the_old_one(tmp_path, result, kind, message):
    path = write_result(tmp_path, {"a": 1}, settings={}, seconds=0.0)
    before = path.read_text()
    with pytest.raises(kind, match=message):
        write_result(tmp_path, result, settings={}, seconds=0.0)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]

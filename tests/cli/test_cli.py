"""The command line: its settings files, what it refuses and how, and its words."""

import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest
from command_line import CHANGE, DATA, refused, scoresens, settings_file

from scoresens import cli
from scoresens.cli._command import from_options
from scoresens.cli._config import read
from scoresens.cli.finetune import FinetuneRun

CONFIGS = Path(__file__).parents[2] / "configs"
SENSITIVITY = DATA + CHANGE
MODEL = "[model]\nkind = 'mlp'\nwidth = 8\ndepth = 1\n"


# ------------------------------------------------------------------ settings that come along


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda file: file.stem)
def test_every_settings_file_is_read_by_its_command(file):
    (name,) = re.findall(
        rf"^# .*scoresens (\w+) configs/{re.escape(file.name)}", file.read_text(), re.M
    )
    assert file.stem.startswith(name) or name in ("train", "validate")
    given = cli._parser().parse_args([name, str(file)])
    run, where = cli.COMMANDS[name].read(given, cli.COMMANDS[name].settings)
    assert where == str(file) and replace(run) == run
    if name == "validate":
        (experiment,) = [name for name in cli.EXPERIMENTS if name in file.stem]
        assert type(run) is cli.EXPERIMENTS[experiment].settings
    if type(run) is FinetuneRun and file.stem.startswith("digits") and "quick" not in file.stem:
        assert run.finetune == read(CONFIGS / "digits-finetune.toml", FinetuneRun).finetune


# ------------------------------------------------------------------ what is refused, and how


@pytest.mark.parametrize(
    ("command", "text", "complaint"),
    [
        ("sample", "count = 'x'", "count: expected int, got 'x'"),
        ("sample", "cuont = 3", "cuont: unknown key; did you mean 'count'"),
        ("sample", "count = 0", "count must be at least 1, got 0"),
        ("sample", "sampler = 'pde'", "sampler: expected 'ode' or 'sde'"),
        ("sample", "checkpoint = 'no.safetensors'", "checkpoint: no checkpoint at no.safetensors"),
        ("sample", "count = ", "not TOML"),
        ("sample", "trace = 0", 'trace must be "exact" or at least 1 random probe, got 0'),
        ("sample", "trace = true", "trace: expected 'exact' or int, got True (bool)"),
        ("sample", "trace = 'hutchinson'", "trace: expected 'exact' or int, got 'hutchinson'"),
        ("sensitivity", DATA, "change: missing key"),
        ("sensitivity", DATA + "[change]\nclasses = ['x']", "change: class 'x' is not in digits"),
        ("sensitivity", DATA + "[change]\nimages = [60]", "change: image 60 lies outside"),
        ("sensitivity", DATA + "[change]", "change: kind = 'add' needs either classes, or images"),
        ("sensitivity", "[data]\nname = 'x'" + CHANGE, "data: unknown data set 'x'"),
        ("sensitivity", "[data]\nname = 'x.npy'" + CHANGE, "data: no file x.npy"),
        ("sensitivity", DATA + "size = 4" + CHANGE, "data: images of shape (4, 4, 1), where"),
        ("sensitivity", "bandwidth = -1.0" + SENSITIVITY, "bandwidth must be positive"),
        ("sensitivity", DATA.replace("60", "2000") + CHANGE, "data: a subset of digits has 1 to"),
        ("counterfactual", "masses = [0.0, 0.5]" + SENSITIVITY, "masses must lie in (0, 1]"),
        ("counterfactual", "masses = [0.5, 0.1]" + SENSITIVITY, "masses must rise"),
        ("attribute", "", "data: missing key"),
        ("attribute", "top = 0" + DATA, "top must be at least 1, got 0"),
        ("attribute", "top = 61" + DATA, "top is 61, and there are 60 images"),
        ("attribute", DATA + "[functional]\nkind='x'", "functional.kind: expected 'itself' or"),
        ("attribute", DATA + "[functional]\nkind='closeness'", "functional: kind = 'closeness'"),
        ("attribute", DATA + "[functional]\nkind='pixel'", "functional: kind = 'pixel' needs"),
        ("attribute", DATA + "[functional]\ncomponents=0", "components must be at least 1"),
        (
            "attribute",
            DATA + "[functional]\nkind='closeness'\nimage=60",
            "functional: image 60 lies outside the data's 60 images",
        ),
        (
            "attribute",
            DATA + "[functional]\nkind='pixel'\npixel=[8, 0]",
            "functional: pixel [8, 0] lies outside images of shape (8, 8, 1)",
        ),
        (
            "attribute",
            DATA + "[functional]\nkind='pixel'\npixel=[1, 1, 0, 0]",
            "functional: pixel [1, 1, 0, 0] lies outside",
        ),
        (
            "attribute",
            DATA + "[functional]\nkind='class'\nclass_name='x'",
            "functional: class 'x' has no image in digits: choose among 0, 1",
        ),
        (
            "attribute",
            DATA + "classes=['3']\n[functional]\nkind='class'".replace("60", "20"),
            "functional: kind = 'class' needs data of two classes at least",
        ),
        (
            "attribute",
            DATA + "[functional]\nkind='components'\ncomponents=61",
            "functional: the data have 60 components, not 61",
        ),
        ("validate", SENSITIVITY, "finetune: missing key"),
        ("validate", "count = 7" + SENSITIVITY + "[finetune]", "count must be at least 8, got 7"),
        ("train", DATA + "[model]\nkind='cnn'\nwidth=1\ndepth=1\n[train]", "model.kind: expected"),
        ("train", DATA + "[model]\nkind='unet'\nwidth=8\ndepth=6\n[train]", "model: a U-Net of"),
        ("train", DATA + MODEL + "[train]\nsteps = 0", "train: steps must be positive"),
    ],
)
def test_wrong_settings_name_the_file_and_the_key(tmp_path, command, text, complaint):
    config = settings_file(tmp_path, text)
    line = refused(scoresens(command, config, out=tmp_path / "out"))
    assert str(config) in line and complaint in line


def test_a_missing_settings_file_is_named(tmp_path):
    line = refused(scoresens("train", tmp_path / "no.toml", out=tmp_path / "out"))
    assert "no.toml: No such file" in line


def test_a_folder_that_cannot_be_made_is_refused_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    ran = scoresens("sample", out=tmp_path / "file" / "out")
    assert ran.code == 2 and "error: --out:" in ran.told


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (FloatingPointError("3 of 4 results\nhold NaN"), 1, "error: 3 of 4 results hold NaN"),
        (ValueError("the loss became nan"), 1, "error: the loss became nan"),
        (OSError(28, "No space left"), 1, "No space left"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_run_that_fails_says_so_in_one_line(tmp_path, monkeypatch, error, code, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("scoresens.cli.sample.sample_ode", fail)
    ran = scoresens("sample", out=tmp_path / "out")
    assert ran.code == code
    assert words in ran.told.splitlines()[-1]
    assert "Traceback" not in ran.told
    assert not list((tmp_path / "out").iterdir())


PICTURES = [
    file
    for file in sorted(Path(cli.__file__).parent.glob("[a-z]*.py"))
    if 'stages("pictures"' in file.read_text()
]


@pytest.mark.parametrize("file", PICTURES, ids=lambda file: file.stem)
def test_numbers_are_written_before_pictures(file):
    """And every picture by `picture`, which outlives an error of drawing."""
    text = file.read_text()
    (pictures,) = re.finditer(r'stages\("pictures"', text)
    writings = list(re.finditer(r"\bwrite(?:_arrays)?\((?:out|path)\b", text))
    assert writings and all(writing.end() < pictures.start() for writing in writings)
    drawn = re.findall(r"(?<!def )(?<!picture\()\bdraw_\w+\(", text)
    assert drawn == (["draw_influence("] if file.stem == "attribute" else [])


def test_every_command_with_pictures_is_looked_at():
    named = {name for name, command in cli.COMMANDS.items() if "report.png" in command.writes}
    assert len(PICTURES) == len(
        named - {"validate"} | {"sample", "train", "gap"} | {*cli.EXPERIMENTS}
    )


# ------------------------------------------------------------------ words


def helped(capsys, *arguments: str) -> str:
    assert cli.main([*arguments, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_says_what_a_command_answers_reads_and_writes(capsys, command):
    text = helped(capsys, command)
    assert "?" in text.split("\n\n")[1]  # the question
    assert f"scoresens {command}" in text
    if cli.COMMANDS[command].writes:
        assert f"scoresens-out/{command}" in text
        assert "result.json" in text
    for file in cli.COMMANDS[command].writes:
        assert re.search(rf"^  {re.escape(file)} +\w", text, re.M)


def listed(about: str) -> set[str]:
    """The settings that a help text lists, `table.name` in a table; those "as for" another command
    are listed there."""
    (paragraph,) = re.findall(
        r"Settings(?:, all optional \(.*?\))?: (.*?)\.(?:\n\n|$)", about, re.S
    )
    found = set()
    for group in re.sub(r"\s*\([^()]*\)", "", paragraph).split(";"):
        names, _, source = " ".join(group.split()).partition(" as ")
        if source:
            table, other = re.fullmatch(r"(?:\[(\w+)\] )?for (\w+)", source).groups()
            there = listed(cli.COMMANDS[other].about)
            for name in names.split(", "):
                if name.startswith("["):
                    parts = [n.partition(".") for n in there]
                    found |= {
                        f"{name[1:-1]}.{n}" for t, _, n in parts if n and t == (table or name[1:-1])
                    }
                else:
                    assert name in there
                    found.add(name)
        else:
            table, names = re.fullmatch(r"(?:\[(\w+)\] )?(.*)", names).groups()
            found |= {f"{table}.{name}" if table else name for name in names.split(", ")}
    return found


def named(settings: type) -> set[str]:
    """The settings of a dataclass, `table.name` in one that it holds."""
    found = set()
    for name, kind in get_type_hints(settings).items():
        found |= {f"{name}.{inner}" for inner in named(kind)} if is_dataclass(kind) else {name}
    return found


FILES = [
    (name, command.about, command.settings)
    for name, command in cli.COMMANDS.items()
    if command.read is not from_options and name != "validate"
] + [(name, experiment.about, experiment.settings) for name, experiment in cli.EXPERIMENTS.items()]


@pytest.mark.parametrize(("name", "about", "settings"), FILES, ids=[file[0] for file in FILES])
def test_help_lists_every_setting_and_nothing_else(capsys, name, about, settings):
    assert about in helped(capsys, name if name in cli.COMMANDS else "validate")
    unlisted = {"train.residual_weight"} if name == "gap" else set()  # refused: it is in weights
    if name in cli.EXPERIMENTS:
        assert about.startswith(f'experiment = "{name}"')
        unlisted = {"experiment"}
    assert listed(about) == named(settings) - unlisted


def test_a_setting_that_is_not_listed_or_not_there_is_noticed():
    assert listed("Settings: stop (top, at the top; or not); [a] b, c.") == {"stop", "a.b", "a.c"}
    assert "data.size" in listed("Settings: x; [data] as for train.")
    assert "x.p_std" in listed("Settings: [x] as [train] for train.")


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("demo", ()),
        ("config", ("sample",)),
        ("status", ("DIR",)),
        ("convert", ("torch", "module:function")),
    ],
)
def test_every_option_has_an_argument(command, needed):
    given = vars(cli._parser().parse_args([command, *needed]))
    assert cli.COMMANDS[command].read is from_options
    options = {field.name for field in fields(cli.COMMANDS[command].settings)}
    assert given.keys() - {"command", "out"} == options


def test_help_names_every_command(capsys):
    text = helped(capsys)
    for command in cli.COMMANDS:
        assert re.search(rf"^  scoresens {command} .*  \S", text, re.M)
        assert re.search(rf"^    {command}\s+\w", text, re.M)
    assert "Exit codes" in text


@pytest.mark.slow
@pytest.mark.parametrize("own, kept", [(None, True), ("elsewhere", False)])
def test_compiled_programs_are_kept(tmp_path, own, kept):
    """In a process of its own, for it sets what all of JAX shares."""
    program = (
        "import sys, jax; from scoresens.cli import command; sys.argv = ['scoresens', '--version'];"
        "command(); jax.jit(lambda x: x + 1)(1.0); print(jax.config.jax_compilation_cache_dir)"
    )
    named = {} if own is None else {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / own)}
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | named
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    where = tmp_path / "scoresens" if own is None else tmp_path / own
    assert ran.stdout.splitlines()[-1] == str(where)
    assert (tmp_path / "scoresens").is_dir() == kept


def test_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"scoresens \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_command_is_needed(capsys):
    assert cli.main([]) == 2
    assert "COMMAND" in capsys.readouterr().err

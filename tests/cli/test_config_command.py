"""`scoresens config`: every command's settings, also where there is no checkout."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scoresens import cli
from scoresens.cli._command import from_options
from scoresens.cli.config import examples

ROOT = Path(__file__).parents[2]
WITH_SETTINGS = [name for name, each in cli.COMMANDS.items() if each.read is not from_options]


def printed(capsys, *arguments):
    code = cli.main(["config", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("name", WITH_SETTINGS)
def test_what_is_printed_is_what_the_command_reads(tmp_path, capsys, name):
    code, text, _ = printed(capsys, name)
    assert code == 0 and re.search(rf"^#.*\bscoresens {name} [\w-]+\.toml", text, re.M)
    file = tmp_path / "run.toml"
    file.write_text(text)
    given = cli._parser().parse_args([name, str(file)])
    cli.COMMANDS[name].read(given, cli.COMMANDS[name].settings)


def test_every_file_is_printed_by_its_name(capsys):
    assert set(examples()) == {file.stem for file in (ROOT / "configs").glob("*.toml")}
    code, text, _ = printed(capsys, "digits-halves-quick")
    assert code == 0 and 'experiment = "halves"' in text and "configs/" not in text


def test_a_name_without_settings_is_answered_with_all(capsys):
    code, _, told = printed(capsys, "demo")
    assert code == 2 and "demo has no settings file" in told and "sensitivity" in told
    assert "did you mean 'sensitivity'?" in printed(capsys, "sensitivty")[2]


PROGRAM = """
import sys
from pathlib import Path
from scoresens import cli
assert Path(cli.__file__).is_relative_to(sys.argv[1]), cli.__file__
for name in sys.argv[3:]:
    sys.stdout = Path(name + ".toml").open("w")
    assert cli.main(["config", name]) == 0
    sys.stdout.close()
    given = cli._parser().parse_args([name, name + ".toml"])
    cli.COMMANDS[name].read(given, cli.COMMANDS[name].settings)
sys.stdout = sys.__stdout__
assert len(cli.config.examples()) == int(sys.argv[2])
print(cli.main(["demo", "--help"]))
"""


@pytest.mark.slow
def test_a_wheel_has_every_example(tmp_path):
    """In an empty folder, from the files of a wheel alone."""
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    site, count = str(tmp_path / "site"), str(len(list((ROOT / "configs").glob("*.toml"))))
    program = f"import sys; sys.path[0] = {site!r}\n{PROGRAM}"
    ran = subprocess.run(
        [sys.executable, "-c", program, site, count, *WITH_SETTINGS],
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and ran.stdout.splitlines()[-1] == "0", ran.stderr

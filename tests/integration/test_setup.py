"""The set-up on a fresh machine: it names what is missing, with the line that installs it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.command import Commands

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "dirname", "env", "rm", "uname")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder of programs to be the whole PATH, with only the most basic ones in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(str(shutil.which(tool)))
    return folder


def program(folder: Path, name: str, text: str = "exit 0") -> None:
    (folder / name).write_text(f"#!{shutil.which('bash')}\n{text}\n")
    (folder / name).chmod(0o755)


def set_up(command: Commands, machine: Path, python: str = "python3") -> tuple[int, str]:
    # env -i also keeps our interpreter's folder, which the fixture puts first, out of the way
    line = ["env", "-i", f"PATH={machine}", "bash", str(ROOT / "setup.sh"), python, str(machine / "venv")]
    done = command.run(*line)
    return done.returncode, done.stderr


def python_that_answers(folder: Path, *, version: bool = True, venv: bool = True, headers: bool = True) -> None:
    program(
        folder,
        "python3",
        f"""case "$*" in
  --version) echo "Python 3.x" ;;
  *version_info*) exit {0 if version else 1} ;;
  *ensurepip*) exit {0 if venv else 1} ;;
  *Python.h*) exit {0 if headers else 1} ;;
esac""",
    )


@pytest.mark.parametrize(
    ("python", "programs", "expected"),
    [
        (None, ["g++", "make"], "sudo apt-get install -y python3 python3-venv python3-dev\n"),
        ({}, [], "sudo apt-get install -y g++ make\n"),
        ({"venv": False}, ["g++", "make"], "sudo apt-get install -y python3-venv\n"),
        ({"headers": False}, ["make"], "sudo apt-get install -y python3-dev g++\n"),
        ({"version": False}, ["g++", "make"], "Python 3.x is too old: Python 3.10 or newer is needed"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(
    command: Commands, machine: Path, python: dict[str, bool] | None, programs: list[str], expected: str
) -> None:
    if python is not None:
        python_that_answers(machine, **python)
    for name in programs:
        program(machine, name)
    code, errors = set_up(command, machine)
    assert code == 1 and expected in errors
    assert not (machine / "venv").exists()


def test_a_complete_machine_gets_past_the_checks(command: Commands, machine: Path) -> None:
    python_that_answers(machine)
    program(machine, "g++")
    program(machine, "make")
    venv = machine / "venv" / "bin"
    venv.mkdir(parents=True)
    program(venv, "python", f'echo "$@" >>{machine}/calls')
    code, errors = set_up(command, machine)
    assert (code, errors) == (0, "")
    assert "-m pip install" in (machine / "calls").read_text() and ".[dev]" in (machine / "calls").read_text()


def test_this_interpreter_passes_the_checks_itself(command: Commands, machine: Path) -> None:
    """The very expressions that the set-up asks are true of a Python that can build and run this suite."""
    code = "import venv, ensurepip, sys; sys.exit(sys.version_info < (3, 10))"
    command.run(sys.executable, "-c", code, check=True)

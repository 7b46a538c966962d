"""The parser of every command line; --out is looked at before any work, and nothing is replaced that is not a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pretrain.command_line import Parser, check_output_file, check_output_folder
from pretrain.errors import ConfigError, SetupError
from pretrain.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]


def parser() -> Parser:
    made = Parser(prog="prog")
    made.add_argument("--format", choices=("table", "csv"))
    return made


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["\x1b[31mred"], r"unrecognized arguments: \x1b[31mred"),
        (["--format", "\x1b[31mred"], r"invalid choice: '\x1b[31mred'"),
        (["caf\udce9"], r"unrecognized arguments: caf\xe9"),  # a byte that is not UTF-8
        (["https://me:secret@host/x"], "unrecognized arguments: https://***@host/x"),
    ],
)
def test_an_error_shows_what_was_typed_as_plain_text(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parser().parse_args(argv)
    shown = capsys.readouterr().err
    assert left.value.code == 2
    assert shown.startswith("usage: prog")
    assert f"prog: error: {expected}" in shown or f"prog: error: argument --format: {expected}" in shown
    assert shown.replace("\n", "").isprintable()


def test_options_are_not_abbreviated_in_commands_either() -> None:
    made = Parser(prog="prog")
    made.add_subparsers().add_parser("go").add_argument("--format")
    assert made.parse_args(["go", "--format", "csv"]).format == "csv"
    for refused, argv in ((parser(), ["--form", "csv"]), (made, ["go", "--form", "csv"])):
        with pytest.raises(SystemExit):
            refused.parse_args(argv)


def test_every_command_line_has_this_parser() -> None:
    folders = [ROOT / name for name in ("pretrain", "pipelines", "benchmarks")]
    files = {file for folder in folders for file in folder.rglob("*.py")} - {ROOT / "pretrain/command_line.py"}
    assert len(files) > 200
    assert [file for file in files if "argparse.ArgumentParser(" in file.read_text()] == []


def prepared(root: Path) -> Path:
    (root / "file").write_text("mine")
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    os.symlink("/nowhere/at/all", root / "dangling")
    os.symlink("loop", root / "loop")
    return root


REFUSED = [
    ("file", None, "is a file, but a folder is written"),
    ("file/below", None, "is below .*/file, which is a file"),
    ("file/far/below", "f", "is below .*/file, which is a file"),
    ("folder", "f", "is a folder, but a file is written"),
    ("pipe", None, "is a device or pipe"),
    ("pipe", "f", "is a device or pipe, which a file cannot replace"),
    ("dangling", None, "is a link that leads nowhere"),
    ("loop", None, "cannot be used: Too many levels of symbolic links"),
    ("x" * 300, None, "cannot be used: File name too long"),
]


@pytest.mark.parametrize(("name", "kind", "message"), REFUSED)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, kind: str | None, message: str) -> None:
    make = check_output_file if kind else check_output_folder
    with pytest.raises((ConfigError, SetupError), match=message) as raised:
        make(prepared(tmp_path) / name, "--out")
    assert str(raised.value).startswith(f"--out {tmp_path}/{name}")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_can_be_written_passes_and_nothing_is_made(tmp_path: Path) -> None:
    root = prepared(tmp_path)
    before = sorted(root.rglob("*"))
    for path in (root / "a" / "b", root / "folder"):
        assert check_output_folder(path) == path
    for path in (root / "c" / "d.csv", root / "file", root / "dangling"):
        assert check_output_file(path) == path
    assert sorted(root.rglob("*")) == before


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(SetupError, match=f"--masks {tmp_path}/x/y cannot be written: {tmp_path} is not yours"):
        check_output_folder(tmp_path / "x" / "y", "--masks")


def test_a_device_is_never_replaced(tmp_path: Path) -> None:
    """As root, renaming a file to /dev/null would make everybody's output a file that grows."""
    root = prepared(tmp_path)
    with pytest.raises(OSError, match="not a regular file"):
        write_atomic(root / "pipe", "x")
    assert (root / "pipe").is_fifo() and not list(root.glob("*.tmp"))


STAGES = [
    ["pack", "digits", "--classes", "0-1"],
    ["dedup", "IN", "--against", "IN"],
    ["verify", "http://localhost:1/train-{0..1}.tar"],
    ["predict", "IN", "--from", "IN"],
    ["evaluate", "IN", "--from", "IN"],
    ["probe", "--train", "IN", "--test", "IN", "--from", "IN"],
    ["sweep", "--config", "IN"],
    ["collect", "IN"],
    ["average", "IN", "IN"],
    ["export", "IN", "--format", "timm"],
    ["figures", "IN"],
    ["report", "IN"],
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage[0])
def test_every_stage_looks_at_out_first(tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: list[str]) -> None:
    root = prepared(tmp_path)
    suffix = {"average": ".safetensors", "collect": ".csv"}.get(stage[0], "")
    given = [str(root / "folder") if word == "IN" else word for word in stage]
    assert main([*given, "--out", str(root / "file" / f"below{suffix}")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --out {root}/file/below{suffix}") and "which is a file" in error
    assert (root / "file").read_text() == "mine"

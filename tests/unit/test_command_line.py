"""The parser of every command line."""

from __future__ import annotations

import pytest

from pretrain.command_line import Parser


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

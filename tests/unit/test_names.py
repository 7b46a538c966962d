"""Names of any bytes, and what leaves the process in their place."""

from __future__ import annotations

import io
import json
import os
import random
import sys
from pathlib import Path

import pytest

from pretrain import names

# (bytes of a name, as it is shown); what is shown is written by hand
SHOWN = [
    (b"plain name.jpg", "plain name.jpg"),
    ("고양이 貓 é 👩‍🔬.jpg".encode(), "고양이 貓 é 👩‍🔬.jpg"),
    (b"caf\xe9.jpg", "caf\\xe9.jpg"),
    ("고양이".encode("euc-kr"), "\\xb0\\xed\\xbe\\xe7\\xc0\\xcc"),
    (b"two\nlines\tand\rmore", "two\\x0alines\\x09and\\x0dmore"),
    (b"\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
    ("\x9b31m".encode(), "\\u009b31m"),
    ("a\u202egpj.exe".encode(), "a\\u202egpj.exe"),
    (rb"C:\dir\name", r"C:\dir\name"),
    (rb"a\x41b", r"a\x5cx41b"),
    (rb"a\u0041b\X41", r"a\x5cu0041b\X41"),
    (b"\\\x1b", "\\\\x1b"),
]


@pytest.mark.parametrize(("data", "shown"), SHOWN)
def test_a_name_is_shown_readably_and_can_be_read_back(data: bytes, shown: str) -> None:
    name = names.from_bytes(data)
    assert name == os.fsdecode(data)  # as Python's own file functions give it
    assert names.to_bytes(name) == data
    assert names.shown(name) == shown
    assert names.parsed(shown) == name


def test_every_name_of_bytes_comes_back() -> None:
    generator = random.Random(0)
    pieces = [bytes([code]) for code in range(256)] + [b"\\x", b"\\u", b"0041", b"5c", "é".encode(), "\u2028".encode()]
    for _ in range(3000):
        data = b"".join(generator.choices(pieces, k=generator.randrange(12)))
        shown = names.shown(names.from_bytes(data))
        assert names.to_bytes(names.parsed(shown)) == data
        assert json.loads(json.dumps(shown, ensure_ascii=False).encode()) == shown
        assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in shown)


def test_names_that_differ_are_shown_differently() -> None:
    shown = {names.shown(names.from_bytes(data)) for data in (b"\xe9", b"\\xe9", "é".encode(), b"\\x5cxe9")}
    assert len(shown) == 4


def test_surrogates_that_stand_for_no_byte_are_written_too() -> None:
    lone = json.loads('"a\\ud83dz"')  # half an emoji, as broken JSON has it
    assert names.parsed(names.shown(lone)) == lone
    assert names.to_bytes(lone) == b"a\xed\xa0\xbdz"


def test_printable_text_keeps_its_lines_and_may_be_printed_twice() -> None:
    text = "error: \x1b]0;owned\x07 caf\udce9 \\x41\n\tnext line"
    once = names.printable(text)
    assert once == "error: \\x1b]0;owned\\x07 caf\\xe9 \\x41\n\tnext line"
    assert names.printable(once) == once


def test_what_is_said_reaches_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, wanted in (("utf-8", "고 caf\\xe9 \\x1b[2J"), ("ascii", "\\uace0 caf\\xe9 \\x1b[2J")):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        names.tell("고", Path(os.fsdecode(b"caf\xe9")), "\x1b[2J", flush=True)
        assert written.getvalue().decode() == f"{wanted}\n"

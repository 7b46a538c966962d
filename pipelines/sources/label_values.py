"""Reads one label as it is in a source: a member of a tar, a cell of a table, a value of JSON or parquet.

A value is a class number, a text, true or false, a list of those, or nothing; all else is refused with its place. What
the values of a source mean together is decided in ``label_classes``.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, NamedTuple

from pretrain.errors import DataError
from pretrain.text_files import UTF8, decode_text

Kind = Literal["number", "digits", "text", "truth"]
LONGEST_NAME = 300  # characters; the longest name of WordNet's nouns has fewer
LARGEST_NUMBER = 2**31 - 1  # labels are int32
WHOLE = re.compile(r"[+-]?[0-9]+(?:\.0*)?")  # also the 3.0 that a table of floats makes of 3
_SHOWN = 60


class Atom(NamedTuple):
    """One label.

    ``number``: an integer by type. ``digits``: a whole number in text that has no type, such as a cell of a CSV.
    ``text``: anything else that is written, and all text with a type. ``truth``: true or false.
    """

    kind: Kind
    value: int | str | bool


class Reading(NamedTuple):
    """The labels of one image, none where it has none; ``is_list``: they were written as a list."""

    atoms: tuple[Atom, ...]
    is_list: bool = False


def read_label(raw: Any, where: str, *, typed: bool) -> Reading:
    """What a value says.

    Args:
        raw: None, a number, a text, bytes, true, false, or a list of those.
        where: its place, for messages.
        typed: a text is a text by its type, as in JSON or parquet, so that "3" is not the number 3.

    Raises:
        DataError: it is something else, or a text that cannot be a label.
    """
    if isinstance(raw, (list, tuple)):
        found = [_atom(value, where, typed=typed, is_inner=True) for value in raw]
        return Reading(tuple(atom for atom in found if atom is not None), is_list=True)
    atom = _atom(raw, where, typed=typed, is_inner=False)
    return Reading(() if atom is None else (atom,))


def decode_label(data: bytes, where: str, encoding: str = UTF8) -> str:
    """The text of a small member, such as KEY.cls.

    Raises:
        DataError: it is a pickle, or is not text.
    """
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise DataError(f"{where}: a pickled Python object, which is never read; write the label as text or JSON")
    return decode_text(data, where, encoding, "write it as UTF-8, or name its encoding with --encoding, such as cp949")


def number_of(atom: Atom) -> int:
    """The number of a label of digits, of a text of the form ``WHOLE``, or of one that is a number."""
    return int(str(atom.value).partition(".")[0]) if atom.kind in ("digits", "text") else int(atom.value)


def looks_like_number(text: str) -> bool:
    """Python reads it as a number, whole or not."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _atom(raw: Any, where: str, *, typed: bool, is_inner: bool) -> Atom | None:
    if raw is None or (isinstance(raw, float) and math.isnan(raw)):
        if is_inner:
            raise DataError(f"{where}: a list of labels holds {raw!r}; leave it out of the list, or name a class")
        return None
    if isinstance(raw, bool):
        return Atom("truth", raw)
    if isinstance(raw, float) and not raw.is_integer():
        raise DataError(
            f"{where}: the label {raw!r} is neither a class number nor a name; numbers to be predicted are targets "
            "(target, --target-column)"
        )
    if isinstance(raw, (int, float)):
        return Atom("number", _checked(int(raw), where))
    if isinstance(raw, bytes):
        raw = decode_label(raw, where)
    if isinstance(raw, str):
        return _text(raw.strip(), where, typed=typed)
    raise DataError(
        f"{where}: the label {short(raw)} is a {_name_of_type(raw)}; a label is a class number, a class name, or a "
        "list of either"
    )


def _text(text: str, where: str, *, typed: bool) -> Atom | None:
    if not text:
        return None
    if len(text) > LONGEST_NAME or "\n" in text or "\0" in text:
        what = f"{len(text):,} characters" if len(text) > LONGEST_NAME else "several lines"
        raise DataError(f"{where}: a label of {what} ({short(text)}): a caption or a file, not the name of a class")
    if not typed and WHOLE.fullmatch(text):
        _checked(number_of(Atom("digits", text)), where)
        return Atom("digits", text)
    return Atom("text", text)


def _checked(number: int, where: str) -> int:
    if abs(number) > LARGEST_NUMBER:
        raise DataError(f"{where}: the label {short(number)} is too large for a class number, which is at most 2³¹ − 1")
    return number


def short(value: Any) -> str:
    """A value as it is shown in a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _name_of_type(value: Any) -> str:
    return {"dict": "mapping", "list": "list inside a list"}.get(type(value).__name__, type(value).__name__)

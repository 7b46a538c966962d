"""Reads one label as it is in a source: a member of a tar, a cell of a table, a value of JSON or parquet.

A value is a class number, a text, true or false, a list of those, or nothing; anything else is rejected with its
location. Multi-hot lists (a 0 or 1 for every class) are distinguished from lists of class numbers. ``label_classes``
determines what all values of a source mean together.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, NamedTuple

from pretrain.errors import DataError
from pretrain.text_files import UTF8, decode_text

Kind = Literal["number", "digits", "text", "truth"]
LONGEST_NAME = 300  # characters; the longest name of a WordNet noun is shorter
LARGEST_NUMBER = 2**31 - 1  # labels are int32
WHOLE = re.compile(r"[+-]?[0-9]+(?:\.0*)?")  # also 3.0, as a table of floats writes 3
_SHOWN = 60
Form = Literal["", "numbers", "names", "multi-hot"]
SAY_WHICH = "say which: --labels-are numbers or multi-hot"


class Atom(NamedTuple):
    """One label.

    ``number``: an integer by type. ``digits``: a whole number in text that has no type, such as a cell of a CSV.
    ``text``: any other text, and all typed text. ``truth``: true or false.
    """

    kind: Kind
    value: int | str | bool


class Reading(NamedTuple):
    """The labels of one image, possibly none; ``is_list``: they were written as a list."""

    atoms: tuple[Atom, ...]
    is_list: bool = False


def read_label(raw: Any, where: str, *, typed: bool) -> Reading:
    """Reads a value.

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
    """The number of a label that consists of digits, is a text of the form ``WHOLE``, or is a number."""
    return int(str(atom.value).partition(".")[0]) if atom.kind in ("digits", "text") else int(atom.value)


def looks_like_number(text: str) -> bool:
    """Whether Python can parse it as a number, integral or not."""
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


class MultiHot:
    """Examines every list of a source.

    A list of class numbers names no class twice, so a list of 0 and 1 with a repetition is multi-hot. Two numbers
    without one, 0 and 1, are ambiguous.

    Attributes:
        length: of the lists; 0: none is multi-hot.
    """

    def __init__(self) -> None:
        self.length = 0
        self._where = self._other = self._either = ""

    def places(self, reading: Reading, where: str, form: Form, width: int) -> list[int] | None:
        """The positions of the ones; None: the list is of class numbers or names.

        Args:
            reading: the list.
            where: its place, for messages.
            form: as declared by the user.
            width: the number of classes; 0: not known.

        Raises:
            DataError: it is not multi-hot although the user declared it, or has a different length.
        """
        bits = [_bit(atom) for atom in reading.atoms]
        if not bits:
            return [] if form else None
        if not self._is_hot(bits, reading, where, form):
            return None
        wanted = self.length or width or len(bits)
        if len(bits) != wanted:
            why = f"as at {self._where}" if self.length else "as there are classes"
            raise DataError(
                f"{where}: a list of {len(bits)} numbers 0 and 1 in place of {wanted}, {why}; multi-hot has one for "
                "every class; class numbers are --labels-are numbers"
            )
        self.length, self._where = len(bits), self._where or where
        return [place for place, bit in enumerate(bits) if bit]

    def _is_hot(self, bits: list[int | None], reading: Reading, where: str, form: Form) -> bool:
        if None in bits:
            if form:
                raise DataError(f"{where}: --labels-are multi-hot needs lists of 0 and 1")
            self._other = self._other or where
            return False
        if form or len(bits) > len(set(bits)) or all(atom.kind == "truth" for atom in reading.atoms):
            return True
        if len(bits) == 2:
            self._either = self._either or where
        else:
            self._other = self._other or where
        return False

    def saw_one_label(self, where: str) -> None:
        """Records a label that is not in a list."""
        self._other = self._other or where

    def check(self) -> None:
        """Rejects ambiguous lists, and a mixture of both kinds.

        Raises:
            DataError: there are some.
        """
        if self.length and (self._other or self._either):
            raise DataError(
                f"the list at {self._where} is one number 0 or 1 for each of {self.length} classes, but that at "
                f"{self._other or self._either} need not be; {SAY_WHICH}"
            )
        if self._either and not self._other:
            raise DataError(
                f"{self._either}: a list of one 0 and one 1 means the classes 0 and 1, or one of two classes; "
                f"{SAY_WHICH}"
            )


def _bit(atom: Atom) -> int | None:
    if atom.kind == "text":
        return None
    number = number_of(atom)
    return number if number in (0, 1) else None

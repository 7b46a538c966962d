"""Reads one label, or the vector in its place, as it is in a source: a member of a tar, a cell of a table, JSON.

A label is a class number, a text, true or false, a list of those, or nothing; anything else is rejected with its
location. ``label_classes`` determines what all values of a source mean together. A vector, such as the target of a
regression, is a list of finite numbers.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import DataError
from pretrain.text_files import UTF8, decode_text

Kind = Literal["number", "digits", "text", "truth"]
LONGEST_NAME = 300  # characters; the longest name of a WordNet noun is shorter
LARGEST_NUMBER = 2**31 - 1  # labels are int32
WHOLE = re.compile(r"[+-]?[0-9]+(?:\.0*)?")  # also 3.0, as a table of floats writes 3
_SHOWN = 60
Form = Literal["", "numbers", "names", "multi-hot"]
TARGET_KEY = "target"  # in KEY.json of a tar


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


def to_vector(value: Any, where: str) -> tuple[float, ...]:
    """A number or a list of numbers as a vector.

    Raises:
        DataError: it is neither, is empty, or a number is not finite.
    """
    try:
        values = value if isinstance(value, (list, tuple)) else [value]
        numbers = tuple(float(number) for number in values if not isinstance(number, bool))
        numbers = numbers if len(numbers) == len(values) else ()
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise DataError(
            f"{where}: the target {short(value)} is not a list of finite numbers, at least one; correct or remove it"
        )
    return numbers


class VectorLength:
    """Checks that all vectors of a source have the same length."""

    def __init__(self) -> None:
        self._length: int | None = None

    @property
    def length(self) -> int:
        """The length of each; 0 if no sample has a vector."""
        return self._length or 0

    def check(self, vector: tuple[float, ...], where: str) -> tuple[float, ...]:
        """The vector itself.

        Raises:
            DataError: it is longer or shorter than the first.
        """
        if self._length is None:
            self._length = len(vector)
        if len(vector) != self._length:
            raise DataError(
                f"{where}: a target of {len(vector)} numbers, those before it have {self._length}; a set has targets "
                "of one length, or labels in all their places"
            )
        return vector

    @property
    def classes(self) -> list[tuple[str, str]]:
        """(id, name) of the numbers if they have no names."""
        return [(str(index), str(index)) for index in range(self.length)]


class Moments:
    """Mean and population standard deviation of numbers that come in parts; float64 (D,), or empty without any.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self) -> None:
        self._count, self.mean, self._squares = 0, np.zeros(0), np.zeros(0)

    @property
    def std(self) -> NDArray[np.float64]:
        """Over all rows so far."""
        return np.sqrt(self._squares / max(self._count, 1))

    def merge(self, other: Moments) -> None:
        """Adds the rows of another instance."""
        self._take(other._count, other.mean, other._squares)

    def add(self, rows: NDArray[np.float64]) -> None:
        """Adds rows (n, D)."""
        mean = rows.mean(axis=0)
        self._take(len(rows), mean, ((rows - mean) ** 2).sum(axis=0))

    def _take(self, count: int, mean: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
        if not count:
            return
        if not self._count:
            self._count, self.mean, self._squares = count, mean, squares
            return
        total, shift = self._count + count, mean - self.mean
        self.mean = self.mean + shift * (count / total)
        self._squares = self._squares + squares + shift**2 * (self._count * count / total)
        self._count = total

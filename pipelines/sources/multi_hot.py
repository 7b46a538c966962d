"""Lists of one number 0 or 1 for every class, told from lists of class numbers."""

from __future__ import annotations

from typing import Literal

from pipelines.sources.label_values import Atom, Reading, number_of
from pretrain.errors import DataError

Form = Literal["", "numbers", "names", "multi-hot"]
SAY_WHICH = "say which: --labels-are numbers or multi-hot"


class MultiHot:
    """Looks at every list of a source.

    A list of class numbers names no class twice, so a list of 0 and 1 with a repetition is multi-hot. Two numbers
    without one, 0 and 1, could be either.

    Attributes:
        length: of the lists; 0: none is multi-hot.
    """

    def __init__(self) -> None:
        self.length = 0
        self._where = self._other = self._either = ""

    def places(self, reading: Reading, where: str, form: Form, width: int) -> list[int] | None:
        """Places of the ones; None: the list is of class numbers or names.

        Args:
            reading: the list.
            where: its place, for messages.
            form: what the user says.
            width: how many classes there are; 0: not known.

        Raises:
            DataError: it is not multi-hot although the user says so, or has another length.
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
        """Notes a label that is not in a list."""
        self._other = self._other or where

    def check(self) -> None:
        """Refuses lists that could be either, and lists of both kinds.

        Raises:
            DataError: there are such.
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

"""Ambiguities in the labels of a source: rejected, or noted, with the option that resolves them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pipelines.sources.label_values import Atom, Form, Kind, Reading, looks_like_number, number_of
from pretrain.data.storage.classes import WHOLE_NUMBER
from pretrain.errors import DataError

Where = Callable[[Atom], str]
FEWEST_FOR_CAPTIONS = 20  # images
WORDS_OF_A_CAPTION = 3
MOST_NEAR_NAMES = 3
_BROKEN_NUMBER = re.compile(r"[+-]([+-]+|\s+)[0-9.]+")
_LIST_IN_TEXT = re.compile(  # [0, 3] · [] · {'a': 1} · 0 1 0
    r"""[\[({]\s*[\])}]|[\[({].*[,:0-9'"].*[\])}]|[0-9.]+([ ,;|]+[0-9.]+)+"""
)
SAY_WHICH = "say which: --labels-are numbers or multi-hot"
_SHOWN = 5


def refuse_mixture(atoms: Sequence[Atom], where: Where) -> None:
    """Untyped digits may be mixed with numbers or with names; no other kinds may be mixed.

    Raises:
        DataError: labels of two kinds.
    """
    kinds: set[Kind] = {atom.kind for atom in atoms}
    if len(kinds - {"digits"}) > 1 or kinds == {"digits", "truth"}:
        one, other = [next(atom for atom in atoms if atom.kind == kind) for kind in sorted(kinds, reverse=True)][:2]
        raise DataError(
            f"labels of two kinds: {one.value!r} at {where(one)}, {other.value!r} at {where(other)}; --labels-are "
            "names makes each value a class"
        )


def refuse_two_spellings(atoms: Sequence[Atom], numbers: Sequence[int], where: Where) -> None:
    """Rejects 7 and 007 in one source.

    Raises:
        DataError: one number is written in two ways.
    """
    spelt: dict[int, Atom] = {}
    for atom, number in zip(atoms, numbers, strict=True):
        other = spelt.setdefault(number, atom)
        if _spelling(other) != _spelling(atom):
            raise DataError(
                f"the labels {other.value!r} ({where(other)}) and {atom.value!r} ({where(atom)}) are one class as "
                "numbers (--labels-are numbers) and two as names (--labels-are names)"
            )


def refuse_odd_names(atoms: Sequence[Atom], where: Where) -> None:
    """Rejects texts that are unlikely to be names: fractions, damaged numbers, placeholders for missing values.

    Raises:
        DataError: there is one.
    """
    texts = [str(atom.value) for atom in atoms]
    if all(map(looks_like_number, texts)) and not all(map(WHOLE_NUMBER.fullmatch, texts)):
        odd = next(atom for atom in atoms if not WHOLE_NUMBER.fullmatch(str(atom.value)))
        raise DataError(
            f"{where(odd)}: the label {odd.value!r} is a number, but not a class number; numbers to be predicted are "
            "targets (target, --target-column); --labels-are names makes each value a class"
        )
    for atom in atoms:
        if _BROKEN_NUMBER.fullmatch(str(atom.value)):
            raise DataError(
                f"{where(atom)}: the label {atom.value!r} looks like a damaged number; correct it, or say that it is a "
                "name: --labels-are names"
            )
        if _LIST_IN_TEXT.fullmatch(str(atom.value)):
            raise DataError(
                f"{where(atom)}: the label {atom.value!r} looks like a list written as text; write its parts with | "
                "between them in a column labels, or as a list in JSON; --labels-are names makes each text a class"
            )
        if str(atom.value).lower() in ("nan", "null") or atom.value == "None":
            raise DataError(
                f"{where(atom)}: the label {atom.value!r} is what programs write for no label; leave it empty, or say "
                "that it is a class: --labels-are names"
            )


def refuse_captions(own: Sequence[Atom], num_labelled: int, where: Where, *, are_lists: bool) -> None:
    """Rejects texts that differ for every image, such as captions; ``own`` are those that only one image has.

    Raises:
        DataError: most images have a unique text.
    """
    sentences = [atom for atom in own if len(str(atom.value).split()) >= WORDS_OF_A_CAPTION]
    are_keys = 2 * len(own) > num_labelled >= FEWEST_FOR_CAPTIONS and not are_lists
    if are_keys or 2 * len(sentences) > num_labelled:
        raise DataError(
            f"{len(own):,} of {num_labelled:,} images have a text that no other image has, such as {own[0].value!r} at "
            f"{where(own[0])}: captions or keys rather than classes. Name another column or member with "
            "--label-column; if they are classes: --labels-are names"
        )


def near_names(names: Sequence[str]) -> list[str]:
    """Notes names that differ only in case or blanks."""
    folded: dict[str, str] = {}
    pairs = []
    for name in names:
        other = folded.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            pairs.append((other, name))
    notes = [
        f"the classes {one!r} and {other!r} differ only in case or blanks; --label-map makes them one"
        for one, other in pairs[:MOST_NEAR_NAMES]
    ]
    more = len(pairs) - len(notes)
    return [*notes, f"and {more:,} more classes that differ only in case or blanks"] if more else notes


def numbers_among_names(names: Sequence[str], *, is_said: bool) -> list[str]:
    """Notes names that are whole numbers; ``is_said``: the user declared them to be names."""
    whole = [name for name in names if WHOLE_NUMBER.fullmatch(name)]
    if whole and len(whole) == len(names):
        return [
            f"the labels are texts that are whole numbers: {len(names)} classes in the order of the numbers "
            f"({some(names)}); --labels-are numbers makes each the class of its own number"
        ]
    if whole and not is_said:
        return [
            f"the labels are names, {len(names)} classes, though {len(whole)} of them look like numbers ({some(whole)})"
        ]
    return []


def gaps_in_words(numbers: set[int], count: int, *, invented: bool) -> list[str]:
    """A note if some of ``count`` class numbers have no image, and nothing else declares them (``invented``)."""
    missing = sorted(set(range(count)) - numbers) if invented else []
    if not missing:
        return []
    return [
        f"labels are class numbers 0-{count - 1}, of which {len(missing):,} have no image: {_ranges(missing)}; nothing "
        "says that these classes exist: --labels-are names makes classes of the values that occur, --num-classes or "
        "--class-names gives their number"
    ]


def some(values: Sequence[str]) -> str:
    """The first few, in words."""
    return ", ".join(values[:_SHOWN]) + (", …" if len(values) > _SHOWN else "")


def _spelling(atom: Atom) -> str:
    return str(atom.value).partition(".")[0].removeprefix("+")


def _ranges(numbers: list[int]) -> str:
    """0, 1, 4-7, … of ascending numbers."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return some([str(first) if first == last else f"{first}-{last}" for first, last in spans])


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

"""Determines what the labels of a source mean: class numbers, names, or multi-hot vectors.

``LabelCollector`` gives each label a provisional code while a source is listed; when all are known, ``resolve`` gives
the classes of the codes. Ambiguous labels are rejected, or noted with the option that resolves them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from pipelines.sources.class_names import ClassList, InList, union_of
from pipelines.sources.label_doubts import (
    MultiHot,
    gaps_in_words,
    near_names,
    numbers_among_names,
    refuse_captions,
    refuse_mixture,
    refuse_odd_names,
    refuse_two_spellings,
)
from pipelines.sources.label_values import Atom, Form, Kind, Reading, number_of, read_label
from pipelines.sources.table import Relabelling
from pretrain.data.storage.classes import WHOLE_NUMBER
from pretrain.errors import ConfigError, DataError

FORMS: tuple[Form, ...] = ("numbers", "names", "multi-hot")
NONE = "none of the classes"  # the provisional label of an image whose list of labels is empty
MOST_CLASSES = 100_000  # of numbers without --num-classes; a table of more is likelier a list of ids


@dataclass(frozen=True)
class LabelOptions:
    """The user's options about labels.

    Attributes:
        form: what they are; "": determined by their values, with a note.
        num_classes: of labels that are numbers; 0: the largest number + 1.
    """

    form: Form = ""
    num_classes: int = 0


class LabelCollector:
    """Reads the labels of one source; see the module.

    Attributes:
        is_multi: an image may have several labels; complete after ``resolve``, like the others.
        are_names: labels are class names, without a separate list of classes.
        notes: how ambiguous labels were read.
        gaps: describes the class numbers without an image.
    """

    def __init__(self, options: LabelOptions | None = None) -> None:
        self.options = options or LabelOptions()
        self.is_multi = self.are_names = False
        self.notes: list[str] = []
        self.gaps: list[str] = []
        self.num_images = self.num_unlabelled = self.num_minus_one = self.num_negative = 0
        self._codes: dict[Hashable, int] = {}
        self._first: list[str] = []
        self._counts: list[int] = []
        self._lists: list[ClassList] = []
        self._list: int | None = None
        self._hot = MultiHot()
        self._num_repeated = 0
        self._first_unlabelled = self._first_minus_one = self._first_negative = ""

    def begin(self, classes: ClassList | None) -> None:
        """The following labels are numbers and names of this list; None: they have no list."""
        if classes is None:
            self._list = None
            return
        if classes not in self._lists:
            self._lists.append(classes)
        self._list = self._lists.index(classes)

    def add(self, raw: Any, where: str, *, typed: bool) -> tuple[int, ...]:
        """The provisional codes of an image's labels; empty if it has no label.

        A list without a class means that the image has none of them; its code is that of ``NONE``.

        Raises:
            DataError: see ``read_label``; or the label is not in the list of classes.
        """
        reading = read_label(raw, where, typed=typed)
        self.num_images += 1
        minus_ones = self.num_minus_one
        keys = self._keys(reading, where)
        if reading.is_list and not keys and self.num_minus_one == minus_ones:
            self.num_negative += 1
            self._first_negative = self._first_negative or where
            keys = [NONE]
        distinct = list(dict.fromkeys(keys))
        self._num_repeated += len(distinct) < len(keys)
        if not distinct:
            self.num_unlabelled += 1
            self._first_unlabelled = self._first_unlabelled or where
        return tuple(self._code(key, where) for key in distinct)

    def resolve(self) -> Relabelling:
        """The classes, and those of each code; the codes of ``add`` are the old labels of the relabelling.

        Raises:
            DataError: no image has a label, or the labels are not of one consistent kind.
        """
        only_unlabelled = self.num_unlabelled == self.num_images
        if self.num_images and (only_unlabelled or (self._num_without == self.num_images and not self._lists)):
            first = self._first_unlabelled or self._first_negative
            raise DataError(f"none of the {self.num_images:,} images has a label, such as {first}")
        self._hot.check()
        self._note_unlabelled()
        others = [key for key in self._codes if not isinstance(key, InList) and key != NONE]
        change = self._of_lists(others) if self._lists else self._of_values(others)
        if NONE not in self._codes:
            return change
        place = self._codes[NONE]
        targets = (*change.targets[:place], (), *change.targets[place:])
        return replace(change, targets=targets, negative=place if self.is_multi else None)

    @property
    def _num_without(self) -> int:
        """Images without a label, and those with none of the classes."""
        return self.num_unlabelled + self.num_negative

    # Values → codes

    def _keys(self, reading: Reading, where: str) -> list[Hashable]:
        classes = None if self._list is None else self._lists[self._list]
        if reading.is_list:
            width = self.options.num_classes if classes is None else len(classes.classes)
            surely_numbers = self.options.form in ("numbers", "names") or (classes is not None and classes.of_numbers)
            places = None if surely_numbers else self._hot.places(reading, where, self.options.form, width)
            if places is not None:
                self.is_multi = self.is_multi or len(places) != 1
                return [self._hot_key(place) for place in places]
            self.is_multi = True
        elif self.options.form == "multi-hot" and reading.atoms:
            raise DataError(f"{where}: --labels-are multi-hot needs a list of 0 and 1, not {reading.atoms[0].value!r}")
        elif reading.atoms:
            self._hot.saw_one_label(where)
        atoms = [atom for atom in reading.atoms if not self._is_minus_one(atom, where)]
        if classes is None:
            return [self._unnamed(atom, where) for atom in atoms]
        return [InList(self._list or 0, self._place(atom, classes, where)) for atom in atoms]

    def _hot_key(self, place: int) -> Hashable:
        return Atom("number", place) if self._list is None else InList(self._list, place)

    def _is_minus_one(self, atom: Atom, where: str) -> bool:
        """−1 is how Hugging Face marks an image without a label."""
        if self.options.form == "names" or atom.kind not in ("number", "digits") or number_of(atom) != -1:
            return False
        self.num_minus_one += 1
        self._first_minus_one = self._first_minus_one or where
        return True

    def _unnamed(self, atom: Atom, where: str) -> Atom:
        if self.options.form == "names":
            return Atom("text", str(atom.value).lower() if atom.kind == "truth" else str(atom.value))
        if self.options.form == "numbers":
            if atom.kind == "truth" or (atom.kind == "text" and not WHOLE_NUMBER.fullmatch(str(atom.value))):
                raise DataError(f"{where}: --labels-are numbers, but the label is {atom.value!r}")
            return Atom("number", self._checked(number_of(atom), where))
        if atom.kind == "number":
            self._checked(number_of(atom), where)
        return atom

    def _checked(self, number: int, where: str) -> int:
        if number < 0:
            raise DataError(
                f"{where}: the label {number} is not a class number, which count from 0; --labels-are names makes "
                "every value a class of its own"
            )
        if self.options.num_classes and number >= self.options.num_classes:
            raise DataError(
                f"{where}: the label {number} is outside --num-classes {self.options.num_classes}, whose numbers are "
                f"0-{self.options.num_classes - 1}"
            )
        return number

    def _place(self, atom: Atom, classes: ClassList, where: str) -> int:
        if atom.kind == "truth":
            raise DataError(f"{where}: the label is {str(atom.value).lower()}, not a class of {classes.where}")
        if self.options.form != "names" and atom.kind in ("number", "digits"):
            return classes.place_of_number(number_of(atom), where)
        return classes.place_of_text(str(atom.value), where)

    def _code(self, key: Hashable, where: str) -> int:
        code = self._codes.setdefault(key, len(self._codes))
        if code == len(self._first):
            self._first.append(where)
            self._counts.append(0)
        self._counts[code] += 1
        return code

    # Codes → classes

    def _of_lists(self, others: list[Hashable]) -> Relabelling:
        if self.options.num_classes:
            raise ConfigError(f"--num-classes would be ignored: {self._lists[0].where} defines the classes")
        union = union_of(self._lists)
        self.notes += union.notes
        place: dict[Hashable, int] = {**union.places}
        if others:
            place |= self._beside_lists(others, union.classes)
        return Relabelling(union.classes, tuple((place[key],) for key in self._codes if key != NONE))

    def _beside_lists(self, others: Iterable[Hashable], classes: tuple[tuple[str, str], ...]) -> dict[Hashable, int]:
        """Numbers from a part without a list, which refer to classes of other parts with these numbers as ids."""
        index = {identifier: number for number, (identifier, name) in enumerate(classes) if identifier == name}
        found: dict[Hashable, int] = {}
        for key in others:
            assert isinstance(key, Atom)
            text = str(number_of(key)) if key.kind in ("number", "digits") else str(key.value)
            if text not in index:
                raise DataError(
                    f"{self._where(key)}: the label {text!r} has no list of classes, and is not one of those of "
                    f"{self._lists[0].where}; give --class-names FILE, or pack the sets apart"
                )
            found[key] = index[text]
        return found

    def _of_values(self, keys: list[Hashable]) -> Relabelling:
        atoms = [key for key in keys if isinstance(key, Atom)]
        kinds: set[Kind] = {atom.kind for atom in atoms}
        if self._hot.length:
            return self._of_numbers(atoms, self._hot.length, invented=False)
        if kinds == {"truth"}:
            self.notes.append("labels are true and false: class 0 is false, class 1 is true")
            return Relabelling((("false", "false"), ("true", "true")), tuple((int(atom.value),) for atom in atoms))
        refuse_mixture(atoms, self._where)
        if kinds <= {"number", "digits"}:
            return self._of_numbers(atoms, self.options.num_classes, invented=not self.options.num_classes)
        if self.options.num_classes:
            raise ConfigError("--num-classes counts labels that are numbers; those of this source are names")
        return self._of_names(atoms)

    def _of_numbers(self, atoms: list[Atom], num_classes: int, *, invented: bool) -> Relabelling:
        numbers = [self._checked(number_of(atom), self._where(atom)) for atom in atoms]
        refuse_two_spellings(atoms, numbers, self._where)
        if self.num_minus_one and set(numbers) == {1}:
            raise DataError(
                f"the labels are -1 ({self._first_minus_one}) and 1 ({self._where(atoms[0])}): two classes, or no "
                "label and class 1? --labels-are names makes two classes of them"
            )
        highest = max(numbers, default=-1)
        count = num_classes or highest + 1
        seen = len(set(numbers))
        if count > MOST_CLASSES and invented:
            place = self._where(atoms[numbers.index(highest)])
            raise DataError(
                f"{place}: the label {highest} would make {count:,} classes, of which {seen:,} have images; if that is "
                f"right: --num-classes {count}; if each value that occurs is a class: --labels-are names"
            )
        self.gaps = gaps_in_words(set(numbers), count, invented=invented)
        classes = tuple((str(number), str(number)) for number in range(count))
        return Relabelling(classes, tuple((number,) for number in numbers))

    def _of_names(self, atoms: list[Atom]) -> Relabelling:
        self.are_names = True
        if not self.options.form:
            refuse_odd_names(atoms, self._where)
            own = [atom for atom in atoms if self._counts[self._codes[atom]] == 1]
            labelled = self.num_images - self._num_without
            refuse_captions(own, labelled, self._where, are_lists=self.is_multi)
        texts = [str(atom.value) for atom in atoms]
        names = in_order(dict.fromkeys(texts))
        self.notes += numbers_among_names(names, is_said=bool(self.options.form)) + near_names(names)
        index = {name: number for number, name in enumerate(names)}
        return Relabelling(tuple((name, name) for name in names), tuple((index[text],) for text in texts))

    # Notes

    def _note_unlabelled(self) -> None:
        if self.num_unlabelled > self.num_minus_one:
            self.notes.append(
                f"{self.num_unlabelled:,} of {self.num_images:,} images have no label, such as {self._first_unlabelled}"
            )
        if self.num_negative and self.is_multi:
            self.notes.append(
                f"{self.num_negative:,} of {self.num_images:,} images have none of the classes, such as "
                f"{self._first_negative}: they are kept, as negatives of every class"
            )
        if self.num_minus_one:
            self.notes.append(
                f"{self.num_minus_one:,} labels are -1, which is read as no label, such as {self._first_minus_one}; "
                "--labels-are names makes it a class"
            )
        if self._num_repeated:
            self.notes.append(f"{self._num_repeated:,} images name a class twice; it counts once")
        if self._hot.length and not self.options.form:
            self.notes.append(
                f"labels are multi-hot: lists of {self._hot.length} numbers, 1 where the image has the class; "
                "--labels-are numbers reads them as class numbers"
            )

    def _where(self, key: Hashable) -> str:
        return self._first[self._codes[key]]


def in_order(names: Iterable[str]) -> list[str]:
    """Classes by name, sorted as text, or as numbers if all are whole numbers."""
    found = list(names)
    if all(WHOLE_NUMBER.fullmatch(name) for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)

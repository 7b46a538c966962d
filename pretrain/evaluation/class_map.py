"""Scores a head on a set of other classes: which outputs of the head stand for each class of the set.

An ImageNet-21k head is so scored on ImageNet-1k without training: of its outputs only those that mean one of the 1,000
classes compete.

Legend: B images · K outputs of the head · C classes of the set · M most outputs of a class.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pretrain.config.schema.evaluation import NUMBERS
from pretrain.data.storage.classes import WHOLE_NUMBER, Classes, ClassLookup, repeated
from pretrain.errors import DataError
from pretrain.text_files import read_text

HEADER = ["class", "output"]


class ClassMap:
    """Logits of the head → scores of the set's classes: the highest of the outputs that stand for a class.

    A class that no output stands for is never predicted; its images count as wrong.

    Args:
        outputs: for each class of the set the outputs that stand for it.
        class_ids: ids of the set's classes, to name them.
    """

    def __init__(self, outputs: Sequence[Sequence[int]], class_ids: Sequence[str]) -> None:
        self._without = [class_ids[index] for index, own in enumerate(outputs) if not own]
        self._num_classes = len(outputs)
        most = max(len(own) for own in outputs)
        rows = [[*own, *[own[0]] * (most - len(own))] if own else [0] * most for own in outputs]
        self._index = torch.tensor(rows)
        self._has_none = torch.tensor([not own for own in outputs])

    @classmethod
    def load(cls, path: str | None, classes: Classes, outputs: Classes) -> ClassMap:
        """Reads a CSV with the columns ``class`` and ``output``, each an id, a name or a number; see ``ClassLookup``.

        Args:
            path: the file; None: classes and outputs of equal id belong together; ``numbers``: the classes' ids are the
                numbers of their outputs, as the folders of ImageNet-V2 are called.
            classes: of the set.
            outputs: of the head: the classes of the training set.

        Raises:
            DataError: not such a file, a class or output that there is none of, an output of two classes, or no pair.
        """
        where = f"class_map: {path}" if path == NUMBERS else path or "classes.csv of both sets"
        if path is None:
            pairs = _pairs_by_id(classes, outputs, where)
        elif path == NUMBERS:
            pairs = [(number, int(key)) for number, (key, _) in enumerate(classes) if _is_output(key, outputs)]
        else:
            pairs = _read_pairs(Path(path), classes, outputs)
        found: list[list[int]] = [[] for _ in classes]
        owner: dict[int, int] = {}
        for number, output in pairs:
            if owner.setdefault(output, number) != number:
                both = f"{classes[owner[output]][0]} and {classes[number][0]}"
                raise DataError(f"{where}: output {outputs[output][0]} stands for two classes, {both}; remove one row")
            if output not in found[number]:
                found[number].append(output)
        if not owner:
            raise DataError(
                f"{where}: no class of the set has an output of the head; ids such as {classes[0][0]!r} and "
                f"{outputs[0][0]!r} do not meet: name the pairs in a file, class_map: FILE"
            )
        return cls(found, [identifier for identifier, _ in classes])

    @property
    def missing(self) -> list[str]:
        """Ids of the classes that no output stands for."""
        return list(self._without)

    def to(self, device: torch.device) -> ClassMap:
        """The same with its tables on ``device``."""
        self._index, self._has_none = self._index.to(device), self._has_none.to(device)
        return self

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (B, C) from logits (B, K)."""
        scores = logits[:, self._index].amax(2)
        return scores.masked_fill(self._has_none, float("-inf"))

    def summary(self) -> str:
        """How many classes the head can name, and which it cannot."""
        text = f"{self._num_classes - len(self._without):,} of {self._num_classes:,} classes have an output of the head"
        if not self._without:
            return text
        shown = ", ".join(self._without[:5]) + (", …" if len(self._without) > 5 else "")
        return f"{text}; images of the others count as wrong: {shown}"


def _pairs_by_id(classes: Classes, outputs: Classes, where: str) -> list[tuple[int, int]]:
    own, known = [key for key, _ in classes], [key for key, _ in outputs]
    if own == known:
        return [(number, number) for number in range(len(own))]
    shared = set(own) & set(known)
    for keys, whose in ((own, "classes of the set"), (known, "outputs of the head")):
        if twice := [key for key in repeated(keys) if key in shared]:
            places = [str(number) for number, key in enumerate(keys) if key == twice[0]]
            raise DataError(
                f"{where}: several {whose} are called {twice[0]!r}, the numbers {', '.join(places[:4])}; name the "
                "pairs by their numbers or ids in a file, class_map: FILE"
            )
    numbers = {key: number for number, key in enumerate(known)}
    return [(number, numbers[key]) for number, key in enumerate(own) if key in numbers]


def _is_output(key: str, outputs: Classes) -> bool:
    return WHOLE_NUMBER.fullmatch(key) is not None and int(key) < len(outputs)


def _read_pairs(path: Path, classes: Classes, outputs: Classes) -> list[tuple[int, int]]:
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: the class map cannot be read ({error})") from error
    if not rows or [cell.strip() for cell in rows[0]] != HEADER:
        raise DataError(f"{path}:1: a class map begins with the line {','.join(HEADER)}")
    lookups = (ClassLookup(classes, "class"), ClassLookup(outputs, "output"))
    pairs = []
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != 2:
            raise DataError(f"{path}:{line}: {len(row)} values instead of a class and an output")
        try:
            number, output = (lookup.find(cell.strip()) for lookup, cell in zip(lookups, row, strict=True))
        except DataError as error:
            raise DataError(f"{path}:{line}: {error}") from error
        pairs.append((number, output))
    return pairs

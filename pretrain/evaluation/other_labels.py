"""Evaluates a set by labels or classes other than its own: labels from a file, and a head of other classes.

Legend: B images · K outputs of the head · C classes of the set · M most labels of an image, or outputs of a class.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.config.schema.evaluation import IMAGENET_REAL, NUMBERS
from pretrain.data.storage.classes import WHOLE_NUMBER, Classes, ClassLookup, repeated
from pretrain.data.storage.index import ShardTable, read_labels, read_sources
from pretrain.data.storage.records import PADDING_LABEL
from pretrain.errors import DataError
from pretrain.text_files import read_text

# ── a head of other classes ──

HEADER = ["class", "output"]


class ClassMap:
    """Logits of the head → scores of the set's classes: the highest of the outputs that stand for a class.

    An ImageNet-21k head is so scored on ImageNet-1k without training: of its outputs only those that mean one of the
    1,000 classes compete.

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


# ── labels from a file ──

LEAST_AGREEMENT = 0.5
ENOUGH_TO_JUDGE = 1_000  # images


def load_targets(path: str | Path, table: ShardTable) -> NDArray[np.int64]:
    """Labels of every sample of the set in canonical order, int64 (N, M), padded with −1.

    Args:
        path: JSON: a list with one list of class numbers per image, in the order of the packed files' names; or an
            object from file name to list (where files share a name, from the path as it was packed). An empty list: the
            image does not count. ``imagenet_real``: ReaL's own list.
        table: the set.

    Raises:
        DataError: not such a file, another number of images, an image that is missing, a number that is not a class, or
            a list that seems to be in another order.

    Source: ReaL: Beyer et al., "Are we done with ImageNet?" (2006.07159), section 4: a prediction is right if it is
    among an image's labels, and images without any are left out. Its ``real.json`` is a list in the order of the file
    names ``ILSVRC2012_val_00000001.JPEG`` …, which this reads as it is.
    """
    path = _imagenet_real() if str(path) == IMAGENET_REAL else path
    content = _read_json(Path(path))
    is_list = isinstance(content, list)
    sources = read_sources(table)
    names = [PurePosixPath(source).name for source in sources]
    if isinstance(content, list):
        if len(content) != len(names):
            raise DataError(f"{path}: labels of {len(content):,} images, but {table.folder} has {len(names):,}")
        content = dict(zip(_ordered(names, table), content, strict=True))
    else:
        names = _keys(names, sources, content, path)
    missing = [name for name in names if name not in content]
    if missing:
        raise DataError(f"{path}: no labels of {missing[0]} and {len(missing) - 1:,} more images of {table.folder}")
    rows = [_numbers(content[name], name, path, table.num_classes) for name in names]
    targets = np.full((len(rows), max(1, *map(len, rows)) if rows else 1), PADDING_LABEL, dtype=np.int64)
    for index, row in enumerate(rows):
        targets[index, : len(row)] = row
    if is_list:
        _check_order(targets, table, path)
    return targets


def _imagenet_real() -> Path:
    """The file in timm's package, which is not imported for it."""
    found = importlib.util.find_spec("timm")
    places = [] if found is None else list(found.submodule_search_locations or [])
    path = Path(places[0], "data", "_info", "imagenet_real_labels.json") if places else None
    if path is None or not path.is_file():
        raise DataError(f"targets: {IMAGENET_REAL} is a file of timm's, which is not installed; name real.json instead")
    return path


def _check_order(targets: NDArray[np.int64], table: ShardTable, path: str | Path) -> None:
    """A list in another order looks valid, except that it agrees with the labels only as often as chance does.

    ReaL's lists hold the original label of about nine images in ten.
    """
    own = read_labels(table)
    labelled = (targets >= 0).any(1) & (own >= 0).any(1)
    agreeing = (targets[:, :, None] == np.where(own >= 0, own, -2)[:, None, :]).any((1, 2))
    share = float(agreeing[labelled].mean()) if labelled.any() else 1.0
    if share < LEAST_AGREEMENT and len(targets) >= ENOUGH_TO_JUDGE:
        raise DataError(
            f"{path}: only {share:.0%} of its lists hold the image's own label in {table.folder}, so the packed files "
            "are probably not those that it lists in the order of their names; give an object from file name to list"
        )


def _read_json(path: Path) -> list[Any] | dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the targets cannot be read ({error})") from error
    if not isinstance(content, (list, dict)):
        raise DataError(f"{path}: a JSON list of lists, or an object from file name to list, is expected")
    return content


def _keys(names: list[str], sources: list[str], content: dict[str, Any], path: str | Path) -> list[str]:
    """The key of each image in an object: its name as packed, or its file name, which must then be unique."""
    keys = [source if source in content else name for source, name in zip(sources, names, strict=True)]
    if twice := [key for key in repeated(keys) if key in content]:
        raise DataError(f"{path}: {twice[0]!r} is the name of several images of the set; name each as it was packed")
    return keys


def _ordered(names: list[str], table: ShardTable) -> list[str]:
    ordered = sorted(names)
    twice = [name for name, after in itertools.pairwise(ordered) if name == after]
    if twice:
        raise DataError(
            f"{table.folder}: two images are called {twice[0]}, so a list of targets has no order; give an object from "
            "file name to list, or pack the set with names that differ"
        )
    return ordered


def _numbers(value: Any, name: str, path: str | Path, num_classes: int) -> list[int]:
    labels = value if isinstance(value, list) else [value]
    for label in labels:
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < num_classes:
            raise DataError(f"{path}: {name}: {label!r} is not a class; the set has the classes 0 to {num_classes - 1}")
    return labels

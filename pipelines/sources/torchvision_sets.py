"""Any classification data set of torchvision: its class does the download and reads the files."""

from __future__ import annotations

import inspect
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.sources.protocol import NOT_STATED, UNKNOWN_NUM_BYTES, Item, Source
from pretrain.errors import ConfigError, DataError, SetupError

# torchvision's split → ours, for classes that take a ``split``.
SPLITS: dict[str, dict[str, str]] = {
    "Country211": {"train": "train", "valid": "val", "test": "test"},
    "DTD": {"train": "train", "val": "val", "test": "test"},
    "EMNIST": {},
    "FER2013": {"train": "train"},
    "FGVCAircraft": {"train": "train", "val": "val", "test": "test"},
    "Flowers102": {"train": "train", "val": "val", "test": "test"},
    "Food101": {"train": "train", "test": "test"},
    "GTSRB": {"train": "train", "test": "test"},
    "ImageNet": {"train": "train", "val": "val"},
    "Imagenette": {"train": "train", "val": "val"},
    "OxfordIIITPet": {"trainval": "train", "test": "test"},
    "PCAM": {"train": "train", "val": "val", "test": "test"},
    "RenderedSST2": {"train": "train", "val": "val", "test": "test"},
    "STL10": {"train": "train", "test": "test"},
    "StanfordCars": {"train": "train", "test": "test"},
    "SVHN": {"train": "train", "test": "test"},
}
KEYS_ARE_FILES = ("ImageNet",)  # other labels, such as ReaL's, are listed by its file names
FILE_LISTS = ("_image_files", "_images", "_samples", "samples")
LABEL_LISTS = ("_labels", "targets", "labels")


class TorchvisionSource(Source):
    """A data set by the name of its class, such as CIFAR10 or OxfordIIITPet.

    Image files are packed unchanged; images that the class keeps as arrays become PNG.

    Args:
        dataset: name of a class of ``torchvision.datasets``.
        root: folder of its files, or to download them to; None: a cache in the home folder.
    """

    def __init__(self, dataset: str, root: Path | None = None) -> None:
        self.dataset, self.root = dataset, root or Path.home() / ".cache" / "pretrain-sources"
        self.name = dataset.lower()
        self.origin = f"torchvision.datasets.{dataset}"
        self.licence = NOT_STATED
        self.homepage = "https://docs.pytorch.org/vision/stable/datasets.html"
        self.classes: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self._parts: dict[str, Any] = {}
        self.arguments = _split_arguments(dataset)

    def items(self) -> Iterator[Item]:
        """See ``Source.items``."""
        for part, (_, ours) in enumerate(self.arguments):
            data = self._part(part, download=True)
            labels = _labels(data)
            self._add_classes(data, labels)
            files = _files(data)
            for row, label in enumerate(labels):
                size = files[row].stat().st_size if files else _pixel_bytes(data)
                named = f"{ours}/{files[row].name}" if self.dataset in KEYS_ARE_FILES else f"{ours}-{row:07d}"
                file = os.path.relpath(files[row], self.root) if files else ""
                yield Item(named, (label,), size, ours, part, row, name=file)

    def _add_classes(self, data: Any, labels: list[int]) -> None:
        """The classes of one part, indexed by their number; a number without a name is its own name."""
        named, numbers = _classes(data), sorted(set(labels))
        highest, places = max(numbers, default=-1), range(len(named))
        is_part = 0 < len(named) <= highest  # such as some of the pets: torchvision names only the classes that occur
        if is_part and len(named) != len(numbers):
            raise DataError(
                f"torchvision.datasets.{self.dataset} names {len(named)} classes, but a label is {highest}: its files "
                "are not complete"
            )
        for number in range(len(self.classes), max(highest + 1, len(named))):
            self.classes.append((str(number), str(number)))
        for place, (identifier, name) in zip(numbers if is_part else places, named, strict=True):
            if self.classes[place][1] not in (str(place), name):
                raise DataError(
                    f"torchvision.datasets.{self.dataset} calls class {place} {self.classes[place][1]!r} in one split "
                    f"and {name!r} in another: its files are of different sets"
                )
            self.classes[place] = (str(place) if is_part else identifier, name)

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        data = self._part(item.part)
        files = _files(data)
        if files:
            return files[item.offset].read_bytes(), files[item.offset].suffix[1:].lower()
        buffer = io.BytesIO()
        data[item.offset][0].save(buffer, format="PNG")
        return buffer.getvalue(), "png"

    def _part(self, part: int, *, download: bool = False) -> Any:
        split = self.arguments[part][0]
        if str(split) not in self._parts:
            self._parts[str(split)] = self._open(split, download=download)
        return self._parts[str(split)]

    def _open(self, arguments: dict[str, Any], *, download: bool) -> Any:
        make = _class(self.dataset)
        errors = []
        for extra in ({}, {"download": True}) if download else ({},):
            try:
                return make(str(self.root), **arguments, **extra)
            except Exception as error:  # every class raises its own for missing files, no network, a bad checksum
                errors.append(error)
        raise SetupError(
            f"torchvision.datasets.{self.dataset} is not (completely) in {self.root} ({errors[0]}), and its download "
            f"failed ({errors[-1]}). Where there is no network, bring its files there and give that folder: "
            f"python -m pipelines pack torchvision {self.dataset} ROOT --out DIR"
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_parts": {}}


def _class(dataset: str) -> Any:
    import torchvision.datasets

    names = [name for name in torchvision.datasets.__all__ if name[0].isupper()]
    if dataset not in names:
        import difflib

        near = difflib.get_close_matches(dataset, names, 3, 0.4) or names[:8]
        raise ConfigError(f"torchvision has no data set {dataset!r}; did you mean {', '.join(near)}?")
    return getattr(torchvision.datasets, dataset)


def _split_arguments(dataset: str) -> list[tuple[dict[str, Any], str]]:
    """(keyword arguments, our split) of each part of the data set."""
    parameters = inspect.signature(_class(dataset).__init__).parameters
    needed = {name for name, one in parameters.items() if one.default is one.empty and one.kind is not one.VAR_KEYWORD}
    if "root" not in parameters or needed - {"self", "root"}:
        raise ConfigError(
            f"torchvision.datasets.{dataset} is not a set of images with one class each; it cannot be packed"
        )
    if "train" in parameters:
        return [({"train": True}, "train"), ({"train": False}, "test")]
    if "split" in parameters:
        splits = SPLITS.get(dataset)
        if not splits:
            raise ConfigError(
                f"torchvision.datasets.{dataset} cannot be packed; those with splits are {', '.join(SPLITS)}"
            )
        return [({"split": theirs}, ours) for theirs, ours in splits.items()]
    return [({}, "train")]


def _classes(data: Any) -> list[tuple[str, str]]:
    """(id, name) in index order; ImageNet's have WordNet ids and several words as names."""
    names = [", ".join(name) if isinstance(name, tuple) else str(name) for name in getattr(data, "classes", [])]
    ids = getattr(data, "wnids", None) or range(len(names))
    return [(str(identifier), name) for identifier, name in zip(ids, names, strict=True)]


def _labels(data: Any) -> list[int]:
    for name in LABEL_LISTS:
        values = getattr(data, name, None)
        if values is not None and len(values) == len(data):
            return [int(value) for value in values]
    pairs = getattr(data, "_samples", None) or getattr(data, "samples", None)
    if pairs is not None and len(pairs) == len(data) and len(pairs[0]) == 2:
        return [int(label) for _, label in pairs]
    labels = [data[index][1] for index in range(len(data))]
    if labels and not isinstance(labels[0], int):
        raise DataError(f"{type(data).__name__} is not a set of images with one class each; it cannot be packed")
    return labels


def _files(data: Any) -> list[Path]:
    """The image files, where the class keeps their paths."""
    for name in FILE_LISTS:
        values = getattr(data, name, None)
        if isinstance(values, Sequence) and len(values) == len(data) and len(values):
            first = values[0][0] if isinstance(values[0], tuple) else values[0]
            if isinstance(first, (str, Path)):
                return [Path(value[0] if isinstance(value, tuple) else value) for value in values]
    return []


def _pixel_bytes(data: Any) -> int:
    """An upper bound of the size of one image's PNG, if all images are kept in one array."""
    shape = getattr(getattr(data, "data", None), "shape", None)
    return math.prod(shape[1:]) if shape is not None else UNKNOWN_NUM_BYTES

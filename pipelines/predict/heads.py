"""The results of each kind of head: the most probable classes, numbers, or a mask, which is written to a file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.predict.answers import Head
from pipelines.sources.array_sets import encode_grey
from pipelines.sources.given_images import GivenImage
from pipelines.terminal.arguments import model_options
from pipelines.weights.heads import (
    Classifier,
    Prediction,
    Regressor,
    Segmenter,
    load_classifier,
    load_regressor,
    load_segmenter,
)
from pipelines.weights.network import stack
from pretrain.data.images.colour import Pixels
from pretrain.data.storage.location import is_web_address, path_in
from pretrain.errors import ConfigError, DataError
from pretrain.files import write_atomic
from pretrain.models.metadata import Task
from pretrain.names import shown

TOP = 5
Say = Callable[[str], None]


@dataclass(frozen=True)
class Classes:
    """The ``top`` most probable classes, the best first."""

    classifier: Classifier
    top: int
    columns = ("rank", "index", "id", "name", "score")
    one_by_one = False

    @classmethod
    def load(cls, args: argparse.Namespace, say: Say) -> Classes:
        options = {**model_options(args), "activation": args.activation}
        return cls(load_classifier(args.source, **options, say=say), args.top or TOP)

    def prepare(self, source: GivenImage) -> Pixels:
        return self.classifier.transform(source.read())

    def results(self, prepared: Sequence[Pixels]) -> list[list[Prediction]]:
        return self.classifier.best(self.classifier.probabilities(stack(prepared)), self.top)

    def line(self, name: str, result: Sequence[Prediction]) -> str:
        keys = self.classifier.keys
        return f"{name}  " + "  ".join(f"{keys[one.index]} {one.score:.1%}" for one in result)

    def content(self, result: Sequence[Prediction]) -> dict[str, object]:
        return {"predictions": [vars(one) for one in result]}

    def rows(self, result: Sequence[Prediction]) -> Iterator[Sequence[object]]:
        for rank, one in enumerate(result, 1):
            yield rank, one.index, one.id, one.name, f"{one.score:.6g}"


@dataclass(frozen=True)
class Numbers:
    """The numbers of a regression."""

    regressor: Regressor
    columns: Sequence[str]
    one_by_one = False

    @classmethod
    def load(cls, args: argparse.Namespace, say: Say) -> Numbers:
        regressor = load_regressor(args.source, **model_options(args), say=say)
        return cls(regressor, regressor.keys)

    def prepare(self, source: GivenImage) -> Pixels:
        return self.regressor.transform(source.read())

    def results(self, prepared: Sequence[Pixels]) -> list[list[float]]:
        return self.regressor.values(stack(prepared)).tolist()

    def line(self, name: str, result: Sequence[float]) -> str:
        pairs = zip(self.columns, result, strict=True)
        return f"{name}  " + "  ".join(f"{key} {value:.6g}" for key, value in pairs)

    def content(self, result: Sequence[float]) -> dict[str, object]:
        return {"values": dict(zip(self.columns, result, strict=True))}

    def rows(self, result: Sequence[float]) -> Iterator[Sequence[object]]:
        yield [f"{value:.9g}" for value in result]


class Mask(NamedTuple):
    """Where the mask of an image was written, and the share of its pixels that each class covers."""

    place: Path
    shares: dict[str, float]


@dataclass(frozen=True)
class Masks:
    """A PNG for each image; it is written before the image's line is printed.

    Images differ in size and their logits are interpolated to it, so they are processed one at a time.

    Attributes:
        segmenter: the network.
        folder: where the masks go.
        given: the paths on the command line, below which an image's mask keeps its relative path.
        columns: ``mask``, then the classes.
    """

    segmenter: Segmenter
    folder: Path
    given: Sequence[Path]
    columns: Sequence[str]
    one_by_one = True
    _written: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def load(cls, args: argparse.Namespace, say: Say) -> Masks:
        """Raises ConfigError if no folder for the masks was given."""
        if args.masks is None:
            raise ConfigError(f"--masks FOLDER is missing: {args.source} gives a mask for each image, which goes there")
        segmenter = load_segmenter(args.source, **model_options(args), say=say)
        args.masks.mkdir(parents=True, exist_ok=True)
        return cls(segmenter, args.masks, args.images, ["mask", *segmenter.keys])

    def prepare(self, source: GivenImage) -> tuple[Path, NDArray[np.uint8]]:
        """Also runs the network, since the decoded image is needed in two sizes.

        Raises:
            DataError: two images would have the same mask.
        """
        place = self.folder / f"{_stem(source.name, self.given)}.png"
        if place in self._written:
            raise DataError(
                f"{self._written[place]} and {source.name} would both have the mask {place}; ask for them apart"
            )
        self._written[place] = source.name
        return place, self.segmenter.predict(source.read())

    def results(self, prepared: Sequence[tuple[Path, NDArray[np.uint8]]]) -> list[Mask]:
        found = []
        for place, mask in prepared:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(place, encode_grey(mask))
            counts = np.bincount(mask.ravel(), minlength=len(self.segmenter.keys))
            shares = (int(count) / mask.size for count in counts)
            found.append(Mask(place, dict(zip(self.segmenter.keys, shares, strict=True))))
        return found

    def line(self, name: str, result: Mask) -> str:
        largest = sorted(((share, key) for key, share in result.shares.items() if share), reverse=True)
        return f"{name} → {shown(result.place)}  " + "  ".join(f"{key} {share:.1%}" for share, key in largest)

    def content(self, result: Mask) -> dict[str, object]:
        return {"mask": shown(result.place), "shares": {key: share for key, share in result.shares.items() if share}}

    def rows(self, result: Mask) -> Iterator[Sequence[object]]:
        yield [shown(result.place), *(f"{share:.6g}" for share in result.shares.values())]


def _stem(name: str, given: Sequence[Path]) -> PurePosixPath:
    """The mask's path below the folder, without its extension: that of the image below the path that was given."""
    name = path_in(name).lstrip("/") if is_web_address(name) else name  # of a packed list of URLs
    for path in given:
        if path.is_dir() and Path(name).is_relative_to(path):
            return PurePosixPath(Path(name).relative_to(path).with_suffix("").as_posix())
    path = PurePosixPath(name).with_suffix("")
    return PurePosixPath(path.name) if path.is_absolute() or ".." in path.parts else path


HEADS: dict[Task, Callable[[argparse.Namespace, Say], Head]] = {
    "classification": Classes.load,
    "regression": Numbers.load,
    "segmentation": Masks.load,
}

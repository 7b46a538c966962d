"""Masks that a dense head gives for images: a PNG for each, and how much of it each class covers, as lines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pipelines.predict.cli import Answer, Say, as_csv, as_json, images_of
from pipelines.sources.array_sets import encode_grey
from pipelines.weights.segmenter import Segmenter, load_segmenter
from pretrain.data.ledger import Ledger
from pretrain.errors import BadSample, ConfigError, DataError
from pretrain.files import write_atomic
from pretrain.names import shown


def predict_masks(args: argparse.Namespace, say: Say, ledger: Ledger) -> Iterator[Answer]:
    """The lines for each image, a header first in CSV; the mask is written before its line is given.

    Raises:
        ConfigError: no folder for the masks. DataError: two images would have one mask.
    """
    if args.masks is None:
        raise ConfigError(f"--masks FOLDER is missing: {args.source} gives a mask for each image, which goes there")
    segmenter = load_segmenter(args.source, weights=args.weights, img_size=args.img_size, device=args.device, say=say)
    args.masks.mkdir(parents=True, exist_ok=True)
    if args.format == "csv":
        yield Answer("", as_csv(["image", "mask", *segmenter.keys]))
    write = {"table": _table, "jsonl": _jsonl, "csv": _csv}[args.format]
    written: dict[Path, str] = {}
    for source in images_of(args.images, ledger):
        place = args.masks / f"{_stem(source.name, args.images)}.png"
        if place in written:
            raise DataError(f"{written[place]} and {source.name} would both have the mask {place}; ask for them apart")
        written[place] = source.name
        try:
            mask = segmenter.predict(source.read())
        except (BadSample, OSError) as error:
            yield Answer(source.name, "", str(error), error.kind if isinstance(error, BadSample) else "read")
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, encode_grey(mask))
        yield Answer(source.name, write(source.name, place, _shares(mask, segmenter)))


def _stem(name: str, given: list[Path]) -> PurePosixPath:
    """Where the mask lies below the folder: as the image below what was given."""
    for path in given:
        if path.is_dir() and Path(name).is_relative_to(path):
            return PurePosixPath(Path(name).relative_to(path).with_suffix("").as_posix())
    path = PurePosixPath(name).with_suffix("")
    return PurePosixPath(path.name) if path.is_absolute() or ".." in path.parts else path


def _shares(mask: NDArray[np.uint8], segmenter: Segmenter) -> dict[str, float]:
    """Class → share of the pixels, in the order of the classes."""
    counts = np.bincount(mask.ravel(), minlength=len(segmenter.keys))
    return {name: int(count) / mask.size for name, count in zip(segmenter.keys, counts, strict=True)}


def _table(name: str, place: Path, shares: Mapping[str, float]) -> str:
    largest = sorted(((share, what) for what, share in shares.items() if share), reverse=True)
    return f"{shown(name)} → {shown(place)}  " + "  ".join(f"{what} {share:.1%}" for share, what in largest)


def _jsonl(name: str, place: Path, shares: Mapping[str, float]) -> str:
    shares = {what: share for what, share in shares.items() if share}
    return as_json({"image": shown(name), "mask": shown(place), "shares": shares})


def _csv(name: str, place: Path, shares: Mapping[str, float]) -> str:
    return as_csv([shown(name), shown(place), *(f"{share:.6g}" for share in shares.values())])

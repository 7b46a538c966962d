"""The kinds of source that ``pack`` knows, and the arguments that each takes; a new kind is a row of ``SOURCES``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.pack.masks import OPTIONS as OF_MASKS
from pipelines.pack.options import DROP_LIST
from pipelines.sources import parquet, remote
from pipelines.sources.array_sets import DigitCanvasSource, DigitsSource, FashionMnistSource
from pipelines.sources.folder import NESTED_LABELS
from pipelines.sources.image_pairs import ImagePairSource
from pipelines.sources.imagenet21k import ImageNet21kSource
from pipelines.sources.manifest import ROOT, ManifestSource
from pipelines.sources.metadata_files import open_folder
from pipelines.sources.options import (
    CLASS_NAMES,
    ENCODING,
    OF_LABELS,
    SPLIT_FROM_OPTION,
    STATED,
    Option,
    SourceOptions,
)
from pipelines.sources.parquet import ParquetSource
from pipelines.sources.protocol import Source
from pipelines.sources.remote import RemoteFiles
from pipelines.sources.torchvision_sets import TorchvisionSource
from pipelines.sources.vtab import VtabSource
from pipelines.sources.webdataset_shards import WebDatasetSource

Make = Callable[[argparse.Namespace, SourceOptions], Source]


@dataclass(frozen=True)
class SourceKind:
    """One kind of source on the command line.

    Attributes:
        make: builds the source from the arguments, and from those that several sources share.
        paths: describes the positional arguments after it; "": it takes none.
        options: that only this kind understands.
        least: how many positional arguments it needs.
        most: how many it takes; None: any number.
        one_of: allowed values of the first one; (): anything.
    """

    make: Make
    paths: str = ""
    options: tuple[Option, ...] = ()
    least: int = 0
    most: int | None = 1
    one_of: tuple[str, ...] = ()


SOURCES: dict[str, SourceKind] = {
    "digits": SourceKind(lambda args, how: DigitsSource(), most=0),
    "digit-canvases": SourceKind(
        lambda args, how: DigitCanvasSource(args.paths[0]),
        "what is asked: position or mask",
        least=1,
        one_of=("position", "mask"),
    ),
    "fashion-mnist": SourceKind(
        lambda args, how: FashionMnistSource(Path(args.paths[0]) if args.paths else None), "[where its IDX files are]"
    ),
    "folder": SourceKind(
        lambda args, how: open_folder(Path(args.paths[0]), how, nested_labels=args.nested_labels),
        "the root: a folder per class, train/CLASS and val/CLASS, or images with a metadata.csv or .jsonl",
        (NESTED_LABELS, SPLIT_FROM_OPTION, *OF_LABELS, *STATED),
        least=1,
    ),
    "imagenet21k": SourceKind(
        lambda args, how: ImageNet21kSource(Path(args.paths[0]), how),
        "the tar of per-synset tars, or a folder of them",
        (SPLIT_FROM_OPTION, *STATED),
        least=1,
    ),
    "manifest": SourceKind(
        lambda args, how: ManifestSource(Path(args.paths[0]), how, root=args.root),
        "a .csv, .tsv or .jsonl with path or url, label, labels, target or mask, and perhaps split",
        (ROOT, SPLIT_FROM_OPTION, *OF_LABELS, *OF_MASKS, *STATED),
        least=1,
    ),
    "masks": SourceKind(
        lambda args, how: ImagePairSource(Path(args.paths[0]), Path(args.paths[1]), how),
        "the folder of the images, and that of their masks (PNGs of the same names)",
        (CLASS_NAMES, ENCODING, SPLIT_FROM_OPTION, *OF_MASKS, *STATED),
        least=2,
        most=2,
    ),
    "parquet": SourceKind(
        lambda args, how: ParquetSource(
            args.paths, how, image_column=args.image_column, target_column=args.target_column
        ),
        "files, folders or patterns",
        (*parquet.OPTIONS, SPLIT_FROM_OPTION, *OF_LABELS, *STATED),
        least=1,
        most=None,
    ),
    "torchvision": SourceKind(
        lambda args, how: TorchvisionSource(args.paths[0], Path(args.paths[1]) if len(args.paths) > 1 else None),
        "the class, such as CIFAR10 or OxfordIIITPet, [and the folder of its files]",
        STATED,
        least=1,
        most=2,
    ),
    "vtab": SourceKind(
        lambda args, how: VtabSource(Path(args.paths[0]), name=how.name),
        "the folder of a VTAB-1k task, with train800.txt, val200.txt, train800val200.txt and test.txt",
        STATED,
        least=1,
    ),
    "webdataset": SourceKind(
        lambda args, how: WebDatasetSource(args.paths, how, remote=RemoteFiles.of(args)),
        "tars, folders, URLs (http, s3, pipe:COMMAND), or patterns such as shard-{000..127}.tar",
        (DROP_LIST, SPLIT_FROM_OPTION, *OF_LABELS, *OF_MASKS, *remote.OPTIONS, *STATED),
        least=1,
        most=None,
    ),
}


def options_of_sources() -> dict[Option, list[str]]:
    """Every option that only some sources understand → their names."""
    found: dict[Option, list[str]] = {}
    for name, kind in sorted(SOURCES.items()):
        for option in kind.options:
            found.setdefault(option, []).append(name)
    return found

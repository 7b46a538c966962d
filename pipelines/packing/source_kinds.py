"""The kinds of source that ``pack`` knows, and what the command line gives each; a new kind is a row of ``SOURCES``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.sources.digit_canvases import DigitCanvasSource
from pipelines.sources.digits import DigitsSource
from pipelines.sources.fashion_mnist import FashionMnistSource
from pipelines.sources.folder import FolderSource
from pipelines.sources.image_pairs import ImagePairSource
from pipelines.sources.imagenet21k import ImageNet21kSource
from pipelines.sources.manifest import ManifestSource
from pipelines.sources.parquet import ParquetSource
from pipelines.sources.protocol import Source
from pipelines.sources.remote import OPTIONS as REMOTE_OPTIONS
from pipelines.sources.remote import RemoteFiles
from pipelines.sources.torchvision_sets import TorchvisionSource
from pipelines.sources.vtab import VtabSource
from pipelines.sources.webdataset_shards import WebDatasetSource, read_class_names
from pretrain.errors import ConfigError

# Options that decide what a source lists.
OF_SOURCE = ("image_column", "label_column", "target_column", "class_names", "root")


@dataclass(frozen=True)
class SourceKind:
    """One kind of source on the command line.

    Attributes:
        make: from the arguments.
        paths: what the positional arguments behind it are, in words; "": it takes none.
        options: those of ``SOURCE_OPTIONS`` that it understands.
        least: how many positional arguments it needs.
        most: how many it takes; None: any number.
        one_of: what the first may be; (): anything.
    """

    make: Callable[[argparse.Namespace], Source]
    paths: str = ""
    options: tuple[str, ...] = ()
    least: int = 0
    most: int | None = 1
    one_of: tuple[str, ...] = ()


SAID = ("licence", "release")  # what a source that the user knows best cannot say itself
SOURCES: dict[str, SourceKind] = {
    "digits": SourceKind(lambda args: DigitsSource(), most=0),
    "digit-canvases": SourceKind(
        lambda args: DigitCanvasSource(args.paths[0]),
        "what is asked: position or mask",
        least=1,
        one_of=("position", "mask"),
    ),
    "fashion-mnist": SourceKind(
        lambda args: FashionMnistSource(Path(args.paths[0]) if args.paths else None), "[where its IDX files are]"
    ),
    "folder": SourceKind(
        lambda args: FolderSource(Path(args.paths[0]), nested_labels=args.nested_labels, name=args.name),
        "the root, one folder per class",
        ("nested_labels", *SAID),
        least=1,
    ),
    "imagenet21k": SourceKind(
        lambda args: ImageNet21kSource(Path(args.paths[0]), name=args.name),
        "the tar of per-synset tars, or a folder of them",
        SAID,
        least=1,
    ),
    "manifest": SourceKind(
        lambda args: ManifestSource(Path(args.paths[0]), root=args.root, name=args.name, classes=_class_names(args)),
        "a .csv, .tsv or .jsonl with path or url, label, labels, target or mask, and perhaps split",
        ("root", "class_names", "reduce_zero_label", *SAID),
        least=1,
    ),
    "masks": SourceKind(
        lambda args: ImagePairSource(
            Path(args.paths[0]), Path(args.paths[1]), _class_names(args, needed=True), name=args.name
        ),
        "the folder of the images, and that of their masks (PNGs of the same names)",
        ("class_names", "reduce_zero_label", *SAID),
        least=2,
        most=2,
    ),
    "parquet": SourceKind(
        lambda args: ParquetSource(
            args.paths,
            image_column=args.image_column,
            label_column=args.label_column,
            target_column=args.target_column,
            name=args.name,
        ),
        "files, folders or patterns",
        ("image_column", "label_column", "target_column", *SAID),
        least=1,
        most=None,
    ),
    "torchvision": SourceKind(
        lambda args: TorchvisionSource(args.paths[0], Path(args.paths[1]) if len(args.paths) > 1 else None),
        "the class, such as CIFAR10 or OxfordIIITPet, [and the folder of its files]",
        SAID,
        least=1,
        most=2,
    ),
    "vtab": SourceKind(
        lambda args: VtabSource(Path(args.paths[0]), name=args.name),
        "the folder of a VTAB-1k task, with train800.txt, val200.txt, train800val200.txt and test.txt",
        SAID,
        least=1,
    ),
    "webdataset": SourceKind(
        lambda args: WebDatasetSource(
            args.paths, class_names=args.class_names, name=args.name, remote=RemoteFiles.of(args)
        ),
        "tars, folders, URLs (http, s3, pipe:COMMAND), or patterns such as shard-{000..127}.tar",
        ("class_names", "drop_list", *REMOTE_OPTIONS, *SAID),
        least=1,
        most=None,
    ),
}
# Option of some sources → its value when it is not given.
SOURCE_OPTIONS: dict[str, Any] = {
    "nested_labels": False,
    "image_column": "",
    "label_column": "",
    "target_column": "",
    "reduce_zero_label": False,
    "class_names": None,
    "root": None,
    "drop_list": None,
    **REMOTE_OPTIONS,
    "licence": "",
    "release": "",
}


def _class_names(args: argparse.Namespace, *, needed: bool = False) -> list[tuple[str, str]]:
    if args.class_names is None and needed:
        raise ConfigError(f"the source {args.source} needs --class-names FILE: a class per line, in the masks' order")
    return [] if args.class_names is None else read_class_names(args.class_names)

"""The kinds of source that ``pack`` knows, and what the command line gives each; a new kind is a row of ``SOURCES``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.sources.array_sets import DigitCanvasSource, DigitsSource, FashionMnistSource
from pipelines.sources.class_names import read_class_names
from pipelines.sources.folder import FolderSource
from pipelines.sources.image_pairs import ImagePairSource
from pipelines.sources.imagenet21k import ImageNet21kSource
from pipelines.sources.label_classes import LabelOptions
from pipelines.sources.manifest import ManifestSource
from pipelines.sources.metadata_files import MetadataSource, find_metadata, has_labels
from pipelines.sources.parquet import ParquetSource
from pipelines.sources.protocol import Source
from pipelines.sources.remote import OPTIONS as REMOTE_OPTIONS
from pipelines.sources.remote import RemoteFiles
from pipelines.sources.samples import LabelPlace
from pipelines.sources.torchvision_sets import TorchvisionSource
from pipelines.sources.vtab import VtabSource
from pipelines.sources.webdataset_shards import WebDatasetSource
from pretrain.errors import ConfigError
from pretrain.text_files import UTF8

# Options that decide what a source lists.
OF_SOURCE = (
    "image_column",
    "label_column",
    "target_column",
    "class_names",
    "labels_are",
    "num_classes",
    "encoding",
    "root",
    "split_from",
)


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


OF_TEXT = ("label_column", "encoding")
OF_MASKS = ("reduce_zero_label", "mask_values", "mask_none", "mask_orientation", "allow_empty_classes")
SAID = ("licence", "release")  # what a source that the user knows best cannot say itself
OF_TABLE = ("class_names", "label_column", "encoding")
LABELS_SAID = ("labels_are", "num_classes")
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
        lambda args: _folder(args),
        "the root: a folder per class, train/CLASS and val/CLASS, or images with a metadata.csv or .jsonl",
        ("nested_labels", "split_from", *OF_TABLE, *LABELS_SAID, *SAID),
        least=1,
    ),
    "imagenet21k": SourceKind(
        lambda args: ImageNet21kSource(Path(args.paths[0]), name=args.name, split_from=args.split_from),
        "the tar of per-synset tars, or a folder of them",
        ("split_from", *SAID),
        least=1,
    ),
    "manifest": SourceKind(
        lambda args: ManifestSource(
            Path(args.paths[0]),
            root=args.root,
            name=args.name,
            classes=read_class_names(args.class_names, args.encoding) if args.class_names else None,
            labels=_labels(args),
            label_column=args.label_column,
            encoding=args.encoding,
            split_from=args.split_from,
        ),
        "a .csv, .tsv or .jsonl with path or url, label, labels, target or mask, and perhaps split",
        ("root", "class_names", "label_column", "encoding", *OF_MASKS, "split_from", *LABELS_SAID, *SAID),
        least=1,
    ),
    "masks": SourceKind(
        lambda args: ImagePairSource(
            Path(args.paths[0]),
            Path(args.paths[1]),
            _class_names(args, needed=True),
            name=args.name,
            split_from=args.split_from,
        ),
        "the folder of the images, and that of their masks (PNGs of the same names)",
        ("class_names", "encoding", *OF_MASKS, "split_from", *SAID),
        least=2,
        most=2,
    ),
    "parquet": SourceKind(
        lambda args: ParquetSource(
            args.paths,
            image_column=args.image_column,
            label_column=args.label_column,
            target_column=args.target_column,
            class_names=args.class_names,
            labels=_labels(args),
            encoding=args.encoding,
            name=args.name,
            split_from=args.split_from,
        ),
        "files, folders or patterns",
        (
            "image_column",
            "label_column",
            "target_column",
            "class_names",
            "encoding",
            "split_from",
            *LABELS_SAID,
            *SAID,
        ),
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
            args.paths,
            class_names=args.class_names,
            labels=_labels(args),
            place=LabelPlace(args.label_column, args.encoding),
            name=args.name,
            remote=RemoteFiles.of(args),
            split_from=args.split_from,
        ),
        "tars, folders, URLs (http, s3, pipe:COMMAND), or patterns such as shard-{000..127}.tar",
        ("class_names", "drop_list", "split_from", *OF_TEXT, *LABELS_SAID, *OF_MASKS, *REMOTE_OPTIONS, *SAID),
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
    "mask_values": "",
    "mask_none": "",
    "mask_orientation": "auto",
    "allow_empty_classes": False,
    "class_names": None,
    "labels_are": "",
    "num_classes": 0,
    "encoding": UTF8,
    "root": None,
    "drop_list": None,
    "split_from": "auto",
    **REMOTE_OPTIONS,
    "licence": "",
    "release": "",
}


def _folder(args: argparse.Namespace) -> Source:
    """A folder whose labels are in tables beside the images, where there are such tables, else a folder of classes."""
    root = Path(args.paths[0])
    tables = find_metadata(root)
    if tables and has_labels(tables, args.label_column, args.encoding):
        if args.nested_labels:
            raise ConfigError(f"--nested-labels would be ignored: the labels are those of {tables[0]}")
        return MetadataSource(
            root,
            tables,
            name=args.name,
            classes=read_class_names(args.class_names, args.encoding) if args.class_names else None,
            labels=_labels(args),
            label_column=args.label_column,
            encoding=args.encoding,
            split_from=args.split_from,
        )
    for name in (*OF_TABLE, *LABELS_SAID):
        if getattr(args, name) != SOURCE_OPTIONS[name]:
            needs = f"{tables[0]} has no labels" if tables else f"{root} holds no metadata.csv or metadata.jsonl"
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is about labels in a table, but {needs}: it would be ignored")
    source = FolderSource(root, nested_labels=args.nested_labels, name=args.name, split_from=args.split_from)
    if tables:
        source.remarks = [f"{tables[0]} has no column of labels (--label-column): the folders are the classes"]
    return source


def _class_names(args: argparse.Namespace, *, needed: bool = False) -> list[tuple[str, str]]:
    if args.class_names is None and needed:
        raise ConfigError(f"the source {args.source} needs --class-names FILE: a class per line, in the masks' order")
    return [] if args.class_names is None else read_class_names(args.class_names, args.encoding).from_zero("masks")


def _labels(args: argparse.Namespace) -> LabelOptions:
    if args.labels_are == "names" and args.num_classes:
        raise ConfigError("--num-classes counts labels that are numbers; with --labels-are names it would be ignored")
    return LabelOptions(args.labels_are, args.num_classes)

"""The command line of ``pack``: arguments → source, options and the contents of the files that they name."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.pack.inputs import Inputs, PlanInputs
from pipelines.pack.masks import ORIENTATIONS
from pipelines.pack.options import PackOptions
from pipelines.pack.source_kinds import OF_SOURCE, SOURCE_OPTIONS, SOURCES, SourceKind
from pipelines.pack.state import Task
from pipelines.pack.wordnet import DEBIAN_FILE
from pipelines.sources.label_classes import FORMS as LABEL_FORMS
from pipelines.sources.label_values import LARGEST_NUMBER
from pipelines.sources.protocol import Source
from pipelines.sources.remote import add_options
from pipelines.sources.splits import SPLIT_FROM
from pretrain.data.images.opening import MAX_PIXELS
from pretrain.errors import ConfigError
from pretrain.files import file_digest
from pretrain.outputs import check_output_folder
from pretrain.text_files import UTF8, known_encoding

DEFAULT_MAX_BAD_RATE = 0.01
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
EXAMPLES = """examples:
  python -m pipelines pack digits --classes 0-4 --holdout 0.2 --out data/digits_upstream
  python -m pipelines pack folder photos/ --out data/photos --holdout 0.1 --workers 8
  python -m pipelines pack folder clipart/ --nested-labels --out data/clipart
Killed at any moment, the same command goes on where it was; finished, it has nothing to do.
On a cluster, task I of N does its share (--task I/N), and then: python -m pipelines pack merge data/photos"""


@dataclass(frozen=True)
class PackRequest:
    """What the command line asks for; ``source`` is None for a merge."""

    source: Source | None
    options: PackOptions
    inputs: Inputs
    out: Path
    num_workers: int | None
    max_bad_rate: float
    task: Task | None
    json: bool
    allow_empty_classes: bool = False

    @property
    def is_merge(self) -> bool:
        """Finish what tasks packed."""
        return self.source is None


def parse(argv: Sequence[str]) -> PackRequest:
    """Reads the command line.

    Raises:
        ConfigError: an argument is wrong, or would be ignored.
    """
    args = _parser().parse_args(argv)
    _check_ranges(args)
    if args.source == "merge":
        return _merge_request(args, argv)
    if args.out is None:
        raise ConfigError("--out DIR is missing: the folder to make")
    check_output_folder(args.out)
    kind = SOURCES[args.source]
    _check_paths(args, kind)
    for name, default in SOURCE_OPTIONS.items():
        if getattr(args, name) != default and name not in kind.options:
            those = ", ".join(sorted(other for other, entry in SOURCES.items() if name in entry.options))
            raise ConfigError(f"--{_dashed(name)} belongs to {those}; with {args.source} it would be ignored")
    inputs = Inputs.load(_input_paths(args))
    source = kind.make(args)
    return PackRequest(
        source=source,
        options=_options(args, source, inputs),
        inputs=inputs,
        out=args.out,
        num_workers=args.workers,
        max_bad_rate=args.max_bad_rate,
        task=Task.parse(args.task) if args.task else None,
        json=args.json,
        allow_empty_classes=args.allow_empty_classes,
    )


def _merge_request(args: argparse.Namespace, argv: Sequence[str]) -> PackRequest:
    taken = {"merge", "--json", "--max-bad-rate", "--allow-empty-classes"}
    ignored = [word for word in argv if word.startswith("-") and word.partition("=")[0] not in taken]
    if len(args.paths) != 1 or ignored:
        more = f"; {ignored[0]} would be ignored" if ignored else ""
        raise ConfigError(f"write: python -m pipelines pack merge DIR, with the --out of the tasks{more}")
    empty = Inputs({}, PlanInputs())
    out, bad, empties = Path(args.paths[0]), args.max_bad_rate, args.allow_empty_classes
    return PackRequest(None, PackOptions(""), empty, out, None, bad, None, args.json, empties)


def _check_paths(args: argparse.Namespace, kind: SourceKind) -> None:
    count = len(args.paths)
    if count < kind.least:
        raise ConfigError(
            f"the source {args.source} needs a PATH ({kind.paths}): python -m pipelines pack {args.source} PATH "
            "--out DIR"
        )
    if kind.one_of and args.paths[0] not in kind.one_of:
        raise ConfigError(f"the source {args.source} knows no {args.paths[0]!r}; choose {' or '.join(kind.one_of)}")
    if kind.most is not None and count > kind.most:
        takes = f"only {kind.most} PATH ({kind.paths})" if kind.most else "no PATH"
        raise ConfigError(f"the source {args.source} takes {takes}; {args.paths[kind.most]} would be ignored")


def _check_ranges(args: argparse.Namespace) -> None:
    limits = {
        "seed": args.seed >= 0,
        "shard-samples": args.shard_samples >= 1,
        "workers": args.workers is None or args.workers >= 1,
        "shard-bytes": args.shard_bytes >= 1,
        "holdout": 0 <= args.holdout < 1,
        "per-class": args.per_class >= 0,
        "max-bad-rate": 0 <= args.max_bad_rate <= 1,
        "quality": args.quality is None or 1 <= args.quality <= 100,
        "short-side": args.short_side >= 0,
        "min-side": args.min_side >= 0,
        "max-pixels": 0 <= args.max_pixels <= MAX_PIXELS,
        "num-classes": 0 <= args.num_classes <= LARGEST_NUMBER,
    }
    for name, is_allowed in limits.items():
        if not is_allowed:
            raise ConfigError(f"--{name} {getattr(args, name.replace('-', '_'))} is out of range; see --help")
    known_encoding(args.encoding)
    if args.wordnet and not args.hierarchy:
        raise ConfigError("--wordnet is the file of --hierarchy wordnet; without that it would be ignored")


def _input_paths(args: argparse.Namespace) -> dict[str, str | list[str]]:
    paths: dict[str, str | list[str]] = {}
    if args.label_map:
        paths["label_map"] = str(args.label_map)
    if args.hierarchy:
        paths["wordnet"] = str(args.wordnet or DEBIAN_FILE)
    if args.drop_list:
        paths["drop_list"] = str(args.drop_list)
    if args.split:
        paths["splits"] = args.split
    return paths


def _options(args: argparse.Namespace, source: Source, inputs: Inputs) -> PackOptions:
    names = set(PackOptions.__dataclass_fields__)
    given = {key: value for key, value in vars(args).items() if key in names}
    given["images"] = args.images or source.images
    rewrites = {"--encode": args.encode, "--short-side": args.short_side, "--quality": args.quality}
    if given["images"] == "keep" and any(rewrites.values()):
        name = next(name for name, value in rewrites.items() if value)
        raise ConfigError(f"{name} changes images; it needs --images rgb")
    given["quality"] = args.quality or PackOptions.quality
    lists = inputs.content.split_lists
    given["label_map"] = file_digest(args.label_map) if args.label_map else ""
    given["drop_list"] = file_digest(args.drop_list) if args.drop_list else ""
    given["of_source"] = {
        name: str(getattr(args, name)) for name in OF_SOURCE if getattr(args, name) != SOURCE_OPTIONS[name]
    }
    given["split_lists"] = {entry.split: entry.digest for entry in lists.lists} if lists else {}
    return PackOptions(**given)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines pack",
        description="Packs labelled images into WebDataset shards with an index and a data set card.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", choices=[*sorted(SOURCES), "merge"], help="kind of source; merge: finish what --task packed")
    add("paths", nargs="*", metavar="PATH", help="; ".join(f"{n}: {k.paths}" for n, k in SOURCES.items() if k.paths))
    add("--out", type=Path, help="folder to make; gets one sub-folder per split")
    add("--seed", type=int, default=0, help="seed of the global shuffle (0)")
    add("--workers", type=int, help="processes (one per core, fewer for a small set)")
    add("--task", default="", metavar="I/N", help="do only the I-th of N shares; then: pack merge DIR")
    add("--shard-bytes", type=_num_bytes, default="256MB", help="largest size of a tar (256MB)")
    add("--shard-samples", type=int, default=10_000, help="most images in a tar (10000)")
    add("--json", action="store_true", help="print the result as one line of JSON")
    add = parser.add_argument_group("which images").add_argument
    add("--holdout", type=float, default=0.0, help="share of the training images that becomes val (0)")
    add("--split", action="append", default=[], metavar="NAME=FILE", help="images of a split, one key or name a line")
    split_from = "what decides the split: folders before file names (auto), only one of them, or nothing: all is train"
    add("--split-from", choices=SPLIT_FROM, default="auto", help=split_from)
    add("--classes", default="", help="only these: ids, names or ranges of indices, such as 0-4,7")
    add("--per-class", type=int, default=0, help="only so many training images of each class")
    add("--max-bad-rate", type=float, default=DEFAULT_MAX_BAD_RATE, help="share that may be bad (0.01)")
    duplicates = "images with equal bytes: keep all, drop all but one, or merge the labels into that one (keep)"
    add("--duplicates", choices=["keep", "drop", "merge"], default="keep", help=duplicates)
    add("--drop-list", type=Path, metavar="FILE", help="webdataset: leave out what dedup found (drop.jsonl)")
    add = parser.add_argument_group("sources").add_argument
    add("--image-column", default="", help="parquet: column of the images")
    add("--label-column", default="", help="column of the labels; webdataset: cls, txt, or a key of KEY.json")
    add("--target-column", default="", help="parquet: column of the numbers of a regression, in the place of labels")
    names = "webdataset, masks, manifest of masks: a name per line, id,name, NUMBER NAME, index,id,name, or JSON"
    add("--class-names", type=Path, metavar="FILE", help=names)
    add("--encoding", default=UTF8, help="of text in tars, tables and class names without a byte-order mark (utf-8)")
    add("--reduce-zero-label", action="store_true", help="masks: 0 is no class, and k + 1 stands for class k (ADE20K)")
    add("--mask-values", default="", metavar="N,…", help="masks: the number of each class (0,1,…), such as 0,255")
    add("--mask-none", default="", metavar="N,…", help="masks: numbers of pixels without a class (255)")
    turned = "masks of images with an EXIF orientation: as the image is stored, or upright (auto: their size tells)"
    add("--mask-orientation", choices=ORIENTATIONS, default="auto", help=turned)
    add("--allow-empty-classes", action="store_true", help="masks: a class may occur in none of them")
    add_options(add)
    add("--root", type=Path, help="manifest: where relative paths count from (its folder)")
    add = parser.add_argument_group("labels").add_argument
    forms = "what labels are where they could be several things: class numbers, names, or lists of 0 and 1"
    add("--labels-are", choices=LABEL_FORMS, default="", help=forms)
    add("--num-classes", type=int, default=0, help="of labels that are numbers (the largest + 1)")
    add("--nested-labels", action="store_true", help="folder: every folder above a file is a label")
    add("--label-map", type=Path, metavar="FILE", help="CSV from,to[,name]: classes that become others")
    add("--hierarchy", choices=["wordnet"], default="", help="a synset becomes itself and all that it is a kind of")
    add("--wordnet", type=Path, metavar="FILE", help="WordNet 3.0's data.noun (Debian: wordnet-base)")
    add = parser.add_argument_group("images").add_argument
    add("--images", choices=["rgb", "keep"], help="rgb: upright RGB without metadata; keep: the bytes as they are")
    add("--short-side", type=int, default=0, help="shorter side in pixels above which an image is made smaller")
    add("--encode", choices=["jpeg", "webp"], default="", help="all images become this (else: lossless ones stay so)")
    add("--quality", type=int, help="of what is encoded anew with losses (95)")
    add("--min-side", type=int, default=0, help="leave out images whose shorter side is shorter")
    add("--max-pixels", type=int, default=0, help="refuse images with more, before they are decoded (89478485)")
    add = parser.add_argument_group("on the card").add_argument
    add("--name", default="", help="name of the data set on its card")
    add("--licence", default="", help="licence and terms of the images")
    add("--release", default="", help="edition of the source, such as fall11")
    return parser


def _num_bytes(text: str) -> int:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write a number and a unit, such as 256MB or 1GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])

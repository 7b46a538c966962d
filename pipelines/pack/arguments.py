"""The command line of ``pack``: arguments → source, options and the contents of the files that they name."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.pack.labels import DEBIAN_FILE
from pipelines.pack.options import Inputs, PackOptions, PlanInputs
from pipelines.pack.source_kinds import SOURCES, SourceKind, options_of_sources
from pipelines.pack.state import Task
from pipelines.sources.label_values import LARGEST_NUMBER
from pipelines.sources.options import ENCODING, Option, SourceOptions
from pipelines.sources.protocol import Source
from pipelines.terminal.arguments import add_json, stage_parser
from pretrain.command_line import Parser, check_output_folder
from pretrain.data.images.opening import MAX_PIXELS
from pretrain.errors import ConfigError
from pretrain.files import file_digest
from pretrain.text_files import known_encoding

DEFAULT_MAX_BAD_RATE = 0.01
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
EXAMPLES = """examples:
  python -m pipelines pack digits --classes 0-4 --holdout 0.2 --out data/digits_upstream
  python -m pipelines pack folder photos/ --out data/photos --holdout 0.1 --workers 8
  python -m pipelines pack folder clipart/ --nested-labels --out data/clipart
Rerun a killed command to resume; once the set is complete, it has nothing to do.
On a cluster, task I of N does its share (--task I/N), and then: python -m pipelines pack merge data/photos"""


def _num_bytes(text: str) -> int:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write a number and a unit, such as 256MB or 1GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _option(name: str, text: str, **rest: Any) -> Option:
    return Option(name, text, **{"group": "", **rest})


IMAGES, WHICH, LABELS, CARD = "images", "which images", "labels", "on the card"
# Options that every source understands; the options of some sources are in source_kinds.py.
OPTIONS = (
    _option("out", "folder to make; gets one sub-folder per split", default=None, type=Path),
    _option("seed", "seed of the global shuffle (0)", default=0, type=int),
    _option("workers", "processes (one per core, fewer for a small set)", default=None, type=int),
    _option("task", "do only the I-th of N shares; then: pack merge DIR", metavar="I/N"),
    _option("shard_bytes", "largest size of a tar (256MB)", default="256MB", type=_num_bytes),
    _option("shard_samples", "most images in a tar (10000)", default=10_000, type=int),
    _option("holdout", "share of the training images that becomes val (0)", default=0.0, type=float, group=WHICH),
    _option(
        "split",
        "images of a split, one key or name a line",
        default=[],
        metavar="NAME=FILE",
        repeats=True,
        group=WHICH,
    ),
    _option("classes", "only these: ids, names or ranges of indices, such as 0-4,7", group=WHICH),
    _option("per_class", "only so many training images of each class", default=0, type=int, group=WHICH),
    _option("max_bad_rate", "share that may be bad (0.01)", default=DEFAULT_MAX_BAD_RATE, type=float, group=WHICH),
    _option(
        "duplicates",
        "images with equal bytes: keep all, drop all but one, or merge the labels into that one (keep)",
        default="keep",
        choices=("keep", "drop", "merge"),
        group=WHICH,
    ),
    _option(
        "label_map",
        "CSV from,to[,name]: classes that become others",
        default=None,
        type=Path,
        metavar="FILE",
        group=LABELS,
    ),
    _option("hierarchy", "add the WordNet ancestors of each class to its images", choices=("wordnet",), group=LABELS),
    _option(
        "wordnet",
        "WordNet 3.0's data.noun (Debian: wordnet-base)",
        default=None,
        type=Path,
        metavar="FILE",
        group=LABELS,
    ),
    _option(
        "images",
        "rgb: upright RGB without metadata; keep: the bytes as they are",
        default=None,
        choices=("rgb", "keep"),
        group=IMAGES,
    ),
    _option(
        "short_side", "shorter side in pixels above which an image is made smaller", default=0, type=int, group=IMAGES
    ),
    _option(
        "encode",
        "format of all images (default: lossless images stay lossless)",
        choices=("jpeg", "webp"),
        group=IMAGES,
    ),
    _option("quality", "of lossy encoding (95)", default=None, type=int, group=IMAGES),
    _option("min_side", "leave out images whose shorter side is shorter", default=0, type=int, group=IMAGES),
    _option(
        "max_pixels", "refuse images with more, before they are decoded (89478485)", default=0, type=int, group=IMAGES
    ),
    _option("name", "name of the data set on its card", group=CARD),
)


@dataclass(frozen=True)
class PackRequest:
    """The parsed command line; ``source`` is None for a merge."""

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
    args = parser().parse_args(argv)
    _check_ranges(args)
    if args.source == "merge":
        return _merge_request(args, argv)
    if args.out is None:
        raise ConfigError("--out DIR is missing: the folder to make")
    check_output_folder(args.out)
    kind = SOURCES[args.source]
    _check_paths(args, kind)
    for option, those in options_of_sources().items():
        is_used = args.source in those or (option == ENCODING and args.split)
        if option.is_given(args) and not is_used:
            raise ConfigError(f"{option.flag} belongs to {', '.join(those)}; with {args.source} it would be ignored")
    inputs = Inputs.load(_input_paths(args))
    source = kind.make(args, SourceOptions.of(args))
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
        paths[ENCODING.name] = args.encoding
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
    known = dict.fromkeys((*SOURCES[args.source].options, ENCODING))
    deciding = [option for option in known if option.decides_list and option.is_given(args)]
    given["of_source"] = {option.name: str(getattr(args, option.name)) for option in deciding}
    given["split_lists"] = {entry.split: entry.digest for entry in lists.lists} if lists else {}
    return PackOptions(**given)


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "pack", "Packs labelled images into WebDataset shards with an index and a data set card.", EXAMPLES
    )
    parser.add_argument(
        "source", choices=[*sorted(SOURCES), "merge"], help="kind of source; merge: finish a pack made with --task"
    )
    paths = "; ".join(f"{name}: {kind.paths}" for name, kind in SOURCES.items() if kind.paths)
    parser.add_argument("paths", nargs="*", metavar="PATH", help=paths)
    groups = {"": parser.add_argument}
    for option in (*OPTIONS, *options_of_sources()):
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group).add_argument
        option.declare(groups[option.group])
    add_json(parser)
    return parser

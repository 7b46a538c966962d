"""The options that determine the packed bytes, and the content of the files that they name.

The files are read once, and copied to the pack for the tasks that continue it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.pack.images import ImageOptions
from pipelines.pack.labels import LabelMap, WordNet
from pipelines.pack.masks import OPTIONS as OF_MASKS
from pipelines.pack.masks import MaskOptions
from pipelines.pack.split_lists import SplitLists
from pipelines.sources.options import ENCODING, Option
from pretrain.config.schema.data import IN_WORDS, Target
from pretrain.errors import ConfigError
from pretrain.files import write_atomic
from pretrain.names import parsed
from pretrain.text_files import UTF8

FOLDER, LIST = "inputs", "inputs.json"
DROP_LIST = Option(
    "drop_list",
    "webdataset: leave out what dedup found (drop.jsonl)",
    default=None,
    group="which images",
    type=Path,
    metavar="FILE",
)


@dataclass(frozen=True)
class PackOptions:
    """The options that determine the packed bytes. Two packs with equal options and equal sources are equal.

    Files are named by their digest: ``label_map``, ``split_lists``.
    """

    source: str
    nested_labels: bool = False
    seed: int = 0
    shard_bytes: int = 256_000_000
    shard_samples: int = 10_000
    holdout: float = 0.0
    classes: str = ""
    per_class: int = 0
    name: str = ""
    licence: str = ""
    release: str = ""
    label_map: str = ""
    hierarchy: str = ""
    duplicates: str = "keep"
    split_lists: dict[str, str] = field(default_factory=dict)
    images: str = "keep"
    encode: str = ""
    quality: int = 95
    short_side: int = 0
    min_side: int = 0
    max_pixels: int = 0
    drop_list: str = ""
    reduce_zero_label: bool = False
    mask_values: str = ""
    mask_none: str = ""
    mask_orientation: str = "auto"
    of_source: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values."""
        return asdict(self)

    @property
    def of_images(self) -> ImageOptions:
        """How images are packed."""
        return ImageOptions(
            self.images, self.encode, self.quality, self.short_side, self.min_side, self.max_pixels or None
        )

    def of_masks(self, num_classes: int) -> MaskOptions:
        """The meaning of the numbers of masks.

        Raises:
            ConfigError: see ``MaskOptions.of``.
        """
        return MaskOptions.of(
            num_classes,
            values=self.mask_values,
            none=self.mask_none,
            reduce_zero_label=self.reduce_zero_label,
            orientation=self.mask_orientation,
        )

    def check_target(self, target: Target, num_classes: int) -> None:
        """Rejects options that do not apply to the targets of the source.

        Args:
            target: of the source's images.
            num_classes: classes of the source.

        Raises:
            ConfigError: names the option.
        """
        if target == "mask":
            self.of_masks(num_classes)
        else:
            for option in OF_MASKS:
                if getattr(self, option.name, option.default) != option.default:
                    raise ConfigError(f"{option.flag} is about masks, but this source has none; leave it out")
        of_labels = {
            "--classes": self.classes,
            "--per-class": self.per_class,
            "--label-map": self.label_map,
            "--hierarchy": self.hierarchy,
            "--duplicates merge": self.duplicates == "merge",
        }
        if target != "labels" and (given := next((name for name, value in of_labels.items() if value), "")):
            raise ConfigError(f"{given} is about class labels, but the images of this source have {IN_WORDS[target]}")


@dataclass(frozen=True)
class PlanInputs:
    """The content of the files that the options name, as the plan needs it.

    Attributes:
        label_map: maps classes to new ones.
        wordnet: source of the ancestors.
        split_lists: which image belongs to which split.
        content: uint64 (N, 2), digest of each row's bytes, where duplicates are not kept.
        dropped_keys: samples that a drop list names, as SHARD/KEY.
    """

    label_map: LabelMap | None = None
    wordnet: WordNet | None = None
    split_lists: SplitLists | None = None
    content: NDArray[np.uint64] | None = None
    dropped_keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Inputs:
    """The files that the options name, and their content.

    Attributes:
        paths: option → file, or NAME=FILE for each split list; and the encoding of those.
        content: read from the files.
    """

    paths: dict[str, str | list[str]]
    content: PlanInputs

    @classmethod
    def load(cls, paths: dict[str, str | list[str]]) -> Inputs:
        """Reads the files."""
        single = {name: Path(path) for name, path in paths.items() if isinstance(path, str) and name != ENCODING.name}
        encoding = str(paths.get(ENCODING.name, UTF8))
        splits = paths.get("splits", [])
        assert isinstance(splits, list)
        content = PlanInputs(
            label_map=LabelMap.load(single["label_map"]) if "label_map" in single else None,
            wordnet=WordNet(single["wordnet"]) if "wordnet" in single else None,
            split_lists=SplitLists.load(splits, encoding) if splits else None,
            dropped_keys=load_dropped_keys(single["drop_list"]) if "drop_list" in single else frozenset(),
        )
        return cls(paths, content)

    @classmethod
    def kept_in(cls, folder: Path) -> Inputs:
        """The files that ``keep`` has copied into a pack's working folder."""
        return cls.load(json.loads((folder / FOLDER / LIST).read_bytes()))

    def with_content(self, content: NDArray[np.uint64] | None) -> PlanInputs:
        """A copy with the digests of the images' bytes."""
        return replace(self.content, content=content)

    def keep(self, folder: Path) -> None:
        """Copies the files into a pack's working folder."""
        folder = folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        kept: dict[str, str | list[str]] = {}
        for name, path in self.paths.items():
            if name == ENCODING.name:
                kept[name] = path
            elif isinstance(path, str):
                kept[name] = str(_copy(Path(path), folder / name))
            else:
                pairs = [entry.partition("=") for entry in path]
                kept[name] = [f"{split}={_copy(Path(file), folder / f'split-{split}')}" for split, _, file in pairs]
        write_atomic(folder / LIST, json.dumps(kept))


def _copy(source: Path, target: Path) -> Path:
    if not target.exists():
        write_atomic(target, source.read_bytes())
    return target


def load_dropped_keys(path: Path) -> frozenset[str]:
    """The samples on the list, as ``SHARD/KEY``: shard without .tar, key without extension.

    Raises:
        ConfigError: it cannot be read, or a line is malformed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--drop-list {path}: cannot be read ({error})") from error
    keys = set()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            keys.add(f"{parsed(entry['shard']).removesuffix('.tar')}/{parsed(entry['key'])}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f'--drop-list {path}:{number}: not {{"shard": …, "key": …}} ({error!r})') from error
    return frozenset(keys)

"""Images with segmentation masks: two folders with the same structure, images in one and masks in the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipelines.sources.entries import IMAGE_EXTENSIONS, Found, Walk, folder_fingerprint, images_of
from pipelines.sources.options import SourceOptions
from pipelines.sources.protocol import NOT_STATED, Item, Source
from pipelines.sources.splits import Place, SplitFrom, splits_of_files
from pretrain.data.ledger import Ledger
from pretrain.errors import ConfigError, DataError


class ImagePairSource(Source):
    """Every image below one folder, with the PNG of the same path and stem below another one as its mask.

    The split is found from the path, as in ``images/validation/1.jpg``; see pipelines/sources/splits.py.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        how: the list of the classes, in the order of the masks' numbers; the name of the set, by default that of the
            folder with both; and what decides the split.

    Raises:
        ConfigError: no list of classes is given.
    """

    target = "mask"

    looks_at_files = True

    def __init__(self, images: Path, masks: Path, how: SourceOptions) -> None:
        names = how.class_list()
        if names is None:
            raise ConfigError("the source masks needs --class-names FILE: a class per line, in the masks' order")
        self.classes = names.from_zero("masks")
        self.root, self.masks = images, masks
        self.name = how.name or images.resolve().parent.name
        self.origin = f"images {images.resolve()}, masks {masks.resolve()}"
        self.licence = NOT_STATED
        self.notes: list[str] = []
        self.split_from: SplitFrom = how.split_from

    def fingerprint(self) -> str:
        """See ``Source.fingerprint``."""
        return folder_fingerprint(self.root, self.masks)

    def items(self) -> Iterator[Item]:
        """See ``Source.items``."""
        for folder in (self.root, self.masks):
            if not folder.is_dir():
                raise DataError(f"{folder} is not a folder; give the folder of the images and that of their masks")
        self.ledger = Ledger()
        images, others = images_of(Walk(self.root, self.ledger)), Walk(self.masks, self.ledger)
        if not images:
            raise DataError(f"{self.root} holds no images; known: {' '.join(sorted(IMAGE_EXTENSIONS))}")
        masks: dict[str, Found] = {}
        for file in others.files():
            if file.extension == "png":
                masks[_stem(file.path)] = file
            else:
                others.left_out(file)
        root = os.path.basename(os.path.abspath(self.root))
        splits = splits_of_files([Place(path, root) for path, _ in images], self.split_from, images=True)
        self.split_rule, self.notes = splits.rule, list(splits.notes)
        for (path, num_bytes), split in zip(images, splits.names, strict=True):
            mask = masks.get(_stem(path))
            if mask is None:
                raise DataError(f"{self.root / path} has no mask: {self.masks / _stem(path)}.png does not exist")
            yield Item(path, (), num_bytes + mask.num_bytes, split, mask=mask.path)
        used = {_stem(path) for path, _ in images}
        for stem, file in masks.items():
            if stem in used:
                others.used(file, "masks")
            else:
                others.left_out(file, "mask without an image")

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        return (self.root / item.key).read_bytes(), PurePosixPath(item.key).suffix[1:].lower()

    def read_mask(self, item: Item) -> bytes:
        """See ``Source.read_mask``."""
        return (self.masks / item.mask).read_bytes()


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))

"""Images with segmentation masks: two folders with the same files below them, images in one and masks in the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipelines.sources.folder import EXTENSIONS, files_below
from pipelines.sources.names import split_of
from pipelines.sources.protocol import NOT_STATED, Item, Source
from pretrain.errors import DataError


class ImagePairSource(Source):
    """Every image below one folder, and the PNG of the same path and stem below another: its mask.

    The split is what the path says, as in ``images/validation/1.jpg``; train where it says nothing.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        classes: (id, name) in the order of the masks' numbers.
        name: of the data set; by default that of the folder which holds both.
    """

    target = "mask"

    def __init__(self, images: Path, masks: Path, classes: list[tuple[str, str]], *, name: str = "") -> None:
        self.root, self.masks, self.classes = images, masks, classes
        self.name = name or images.resolve().parent.name
        self.origin = f"images {images.resolve()}, masks {masks.resolve()}"
        self.licence = NOT_STATED
        self.notes: list[str] = []

    def items(self) -> Iterator[Item]:
        """See ``Source.items``."""
        for folder in (self.root, self.masks):
            if not folder.is_dir():
                raise DataError(f"{folder} is not a folder; give the folder of the images and that of their masks")
        masks = {str(PurePosixPath(path).with_suffix("")): (path, size) for path, size in files_below(self.masks, "")}
        used = 0
        for path, num_bytes in files_below(self.root, ""):
            if PurePosixPath(path).suffix[1:].lower() not in EXTENSIONS:
                continue
            mask, mask_bytes = masks.get(str(PurePosixPath(path).with_suffix("")), ("", 0))
            if PurePosixPath(mask).suffix.lower() != ".png":
                stem = PurePosixPath(path).with_suffix(".png")
                raise DataError(f"{self.root / path} has no mask: {self.masks / stem} does not exist")
            used += 1
            yield Item(path, (), num_bytes + mask_bytes, split_of(path), mask=mask)
        if not used:
            raise DataError(f"{self.root} holds no images; known: {' '.join(sorted(EXTENSIONS))}")
        if len(masks) > used:
            self.notes = [f"{len(masks) - used} masks without an image ignored"]

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        return (self.root / item.key).read_bytes(), PurePosixPath(item.key).suffix[1:].lower()

    def read_mask(self, item: Item) -> bytes:
        """See ``Source.read_mask``."""
        return (self.masks / item.mask).read_bytes()

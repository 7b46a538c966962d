"""A folder of images: one folder per class, or nested folders as labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipelines.sources.protocol import NOT_STATED, Item, Source
from pretrain.errors import DataError

EXTENSIONS = frozenset(["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"])


class FolderSource(Source):
    """Images below ``root``; one class per folder, or every folder above a file as a label.

    Args:
        root: one sub-folder per class. Files deeper down belong to the class folder above them.
        nested_labels: every folder on the way to a file is one of its labels.
        name: of the data set; by default the folder's.
    """

    def __init__(self, root: Path, *, nested_labels: bool = False, name: str = "") -> None:
        self.root = Path(root)
        self.multi_label = nested_labels
        self.name = name or self.root.resolve().name
        self.origin = f"folder {self.root.resolve()}"
        self.licence = NOT_STATED
        self.classes: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def items(self) -> list[Item]:
        """Walks the folder; see ``Source.items``."""
        if not self.root.is_dir():
            raise DataError(f"{self.root} is not a folder; give the folder that holds one folder per class")
        images: list[tuple[str, int]] = []
        ignored: Counter[str] = Counter()
        for path, num_bytes in files_below(self.root, ""):
            suffix = PurePosixPath(path).suffix.lower()
            if suffix[1:] in EXTENSIONS:
                images.append((path, num_bytes))
            else:
                ignored[suffix or "no extension"] += 1
        self._check(images, ignored)
        folders = [self._folders(path) for path, _ in images]
        names = sorted({folder for row in folders for folder in row})
        self.classes = [(folder, PurePosixPath(folder).name) for folder in names]
        self.notes = [f"{count} files ignored ({suffix})" for suffix, count in sorted(ignored.items())]
        index = {folder: number for number, folder in enumerate(names)}
        return [
            Item(path, tuple(index[folder] for folder in row), num_bytes)
            for (path, num_bytes), row in zip(images, folders, strict=True)
        ]

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        return (self.root / item.key).read_bytes(), PurePosixPath(item.key).suffix[1:].lower()

    def _folders(self, path: str) -> list[str]:
        parts = PurePosixPath(path).parts[:-1]
        if not self.multi_label:
            return [parts[0]]
        return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]

    def _check(self, images: list[tuple[str, int]], ignored: Counter[str]) -> None:
        if not images:
            seen = ", ".join(f"{count} × {suffix}" for suffix, count in ignored.most_common(4)) or "no files"
            raise DataError(f"{self.root} holds no images ({seen}); known: {' '.join(sorted(EXTENSIONS))}")
        loose = [path for path, _ in images if "/" not in path]
        if loose:
            raise DataError(
                f"{self.root}: {len(loose)} images lie in no class folder, such as {loose[0]}; "
                "move them into a folder that is named like their class"
            )


def files_below(
    root: Path, relative: str, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, int]]:
    """(path below root, bytes) of every file, sorted by name, links followed unless they lead back up."""
    folder = root / relative if relative else root
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in found:
        path = f"{relative}/{entry.name}" if relative else entry.name
        if entry.is_dir():
            yield from files_below(root, path, above | {here})
        elif entry.is_file():
            yield path, entry.stat().st_size

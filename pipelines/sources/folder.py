"""A folder of images: one folder per class, or nested folders as labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from pipelines.sources.entries import IMAGE_EXTENSIONS, Walk, files_fingerprint, hidden_reason
from pipelines.sources.label_classes import in_order
from pipelines.sources.options import Option, SourceOptions
from pipelines.sources.protocol import NOT_STATED, Item, Source
from pipelines.sources.split_folders import SplitFolders
from pipelines.sources.splits import TRAIN, SplitFrom, is_split_word
from pretrain.errors import DataError
from pretrain.names import shown

NESTED_LABELS = Option(
    "nested_labels", "every folder above a file is a label", default=False, group="labels", is_flag=True
)
LISTS = frozenset(["txt", "csv", "jsonl", "json"])


class FolderSource(Source):
    """Images below ``root``; one class per folder, or every folder above a file as a label.

    Folders of splits (``train/CLASS/…`` and ``val/CLASS/…``) are understood, and classes are those of all splits.

    Args:
        root: one sub-folder per class, perhaps below one per split. Files deeper down belong to the class folder above.
        how: the name of the set (default: the folder's), and what determines the split; see split_folders.py.
        nested_labels: every folder in the path of a file is one of its labels.

    Attributes:
        remarks: placed before the notes.
    """

    looks_at_files = True

    def __init__(self, root: Path, how: SourceOptions | None = None, *, nested_labels: bool = False) -> None:
        how = how or SourceOptions()
        self.root = Path(root)
        self.multi_label = nested_labels
        self.name = how.name or self.root.resolve().name
        self.origin = f"folder {self.root.resolve()}"
        self.licence = NOT_STATED
        self.classes: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.remarks: list[str] = []
        self.split_from: SplitFrom = how.split_from

    def fingerprint(self) -> str:
        """See ``Source.fingerprint``."""
        return folder_fingerprint(self.root)

    def items(self) -> list[Item]:
        """Walks the folder; see ``Source.items``."""
        if not self.root.is_dir():
            raise DataError(f"{self.root} is not a folder; give the folder that holds one folder per class")
        walk = Walk(self.root)
        images = images_of(walk)
        self.ledger = walk.ledger
        self._check(images)
        paths = [path for path, _ in images]
        splits = SplitFolders(paths, str(self.root), self.split_from)
        self._check_classes(paths, splits)
        folders = [self._labels(row) for row in splits.folders]
        siblings = {} if self.multi_label else self._siblings({row[0] for row in folders})
        names = in_order({folder for row in [*folders, *siblings.values()] for folder in row})
        self.classes = [(shown(folder), shown(PurePosixPath(folder).name)) for folder in names]
        self.split_rule = splits.rule
        no_class = [folder for folder in walk.folders if PurePosixPath(folder).name not in names]
        self.notes = [*self.remarks, *splits.notes, *without_images(no_class, paths)]
        self.notes += [] if self.multi_label else self._linked(paths, splits)
        if siblings:
            self.notes.append(f"classes are numbered as in all splits beside each other: {', '.join(sorted(siblings))}")
        self.notes += renumbered(names)
        index = {folder: number for number, folder in enumerate(names)}
        return [
            Item(path, tuple(index[folder] for folder in row), num_bytes, split)
            for (path, num_bytes), row, split in zip(images, folders, splits.splits, strict=True)
        ]

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        return (self.root / item.key).read_bytes(), PurePosixPath(item.key).suffix[1:].lower()

    def _labels(self, folders: tuple[str, ...]) -> list[str]:
        if not self.multi_label:
            return [folders[0]]
        return ["/".join(folders[: depth + 1]) for depth in range(len(folders))]

    def _check(self, images: list[tuple[str, int]]) -> None:
        if not images:
            is_empty = not any(account.found for account in self.ledger.accounts.values())
            known = " ".join(sorted(IMAGE_EXTENSIONS))
            seen = "no files" if is_empty else "\n  " + "\n  ".join(self.ledger.lines())
            raise DataError(f"{self.root} holds no images; known: {known}. It holds: {seen}")

    def _check_classes(self, paths: list[str], splits: SplitFolders) -> None:
        """Checks that every image is in a class, and that the splits belong to one set."""
        loose = [path for path, folders in zip(paths, splits.folders, strict=True) if not folders]
        if loose:
            raise DataError(
                f"{self.root}: {len(loose)} images are in no class folder, such as {loose[0]}; "
                "move them into a folder that is named like their class"
            )
        classes: dict[str, dict[str, None]] = {}
        for split, folders in zip(splits.splits, splits.folders, strict=True):
            classes.setdefault(split, {})[folders[0]] = None
        trained = classes.get(TRAIN)
        for split, found in classes.items():
            if trained is not None and split != TRAIN and not found.keys() & trained.keys():
                raise DataError(
                    f"{self.root}: {split} and {TRAIN} have no class in common; the folders of {split} are "
                    f"{', '.join(list(found)[:4])}, those of {TRAIN} {', '.join(list(trained)[:4])}. If its labels "
                    "are in a file, pack a manifest (path, label, split) in place of the folder, or the folder of "
                    f"{TRAIN} alone; to take every folder of the root as a class, add --split-from none"
                )

    def _linked(self, paths: list[str], splits: SplitFolders) -> list[str]:
        """Notes about class folders that are links to other ones, so that every image in them is in two classes."""
        seen: set[tuple[str, str]] = set()  # check each folder only once
        known: dict[tuple[str, str], str] = {}  # (split, real path of a class folder) → class
        notes: dict[str, None] = {}
        for path, folders, split in zip(paths, splits.folders, splits.splits, strict=True):
            if (above := (split, path.rpartition("/")[0])) in seen:
                continue
            seen.add(above)
            parts = PurePosixPath(path).parts[:-1]
            depth = len(parts) - len(folders) if parts[-len(folders) :] == folders else parts.index(folders[0])
            real = os.path.realpath(self.root.joinpath(*parts[: depth + 1]))
            if (other := known.setdefault((split, real), folders[0])) != folders[0]:
                notes[
                    f"the class folders {shown(other)} and {shown(folders[0])} are one folder, since one is a link: "
                    "its images are in both classes; remove the link if that is wrong"
                ] = None
        return list(notes)

    def _siblings(self, classes: set[str]) -> dict[str, set[str]]:
        """If the folder is ``val`` next to ``train``: the class folders of all splits, so that their numbers agree."""
        path = Path(os.path.abspath(self.root))
        if self.split_from == "none" or not is_split_word(path.name):
            return {}
        found = {}
        for entry in path.parent.iterdir():
            if entry.is_dir() and is_split_word(entry.name):
                names = {
                    below.name for below in entry.iterdir() if hidden_reason(below.name) == "" and has_image(below)
                }
                found |= {entry.name: names} if names & classes else {}
        return found if len(found) > 1 else {}


def has_image(folder: Path) -> bool:
    """Whether an image is below a folder; stops at the first."""
    return folder.is_dir() and any(file.extension in IMAGE_EXTENSIONS for file in Walk(folder).files())


def folder_fingerprint(*roots: Path) -> str:
    """Fingerprint of every image and list below folders; "" if a folder does not exist."""
    if not all(root.is_dir() for root in roots):
        return ""
    known = IMAGE_EXTENSIONS | LISTS
    below = [(root, file.path) for root in roots for file in Walk(root).files() if file.extension in known]
    return files_fingerprint((root / path for root, path in below), *(path for _, path in below))


def renumbered(names: Sequence[str]) -> list[str]:
    """A note if the names of class folders are numbers other than their indices."""
    if not all(name.isascii() and name.isdecimal() for name in names):
        return []
    moved = next((number for number, name in enumerate(names) if int(name) != number), None)
    if moved is None:
        return []
    return [f"class indices are not the numbers of the folders: {names[moved]} is class {moved}; the card has both"]


def images_of(walk: Walk) -> list[tuple[str, int]]:
    """(path below the root, bytes) of every image of a walk; the other files are recorded in the ledger."""
    images = []
    for file in walk.files():
        if file.extension in IMAGE_EXTENSIONS:
            walk.used(file)
            images.append((file.path, file.num_bytes))
        else:
            walk.left_out(file)
    return images


def without_images(folders: Iterable[str], paths: Iterable[str]) -> list[str]:
    """A note about the folders without any image below them; nested ones are reported once."""
    used = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    empty = [folder for folder in folders if folder not in used and str(PurePosixPath(folder).parent) in {*used, "."}]
    if not empty:
        return []
    some = ", ".join(map(shown, empty[:3])) + (", …" if len(empty) > 3 else "")
    return [f"folders without an image that can be used, of which no class comes: {len(empty)} ({some})"]

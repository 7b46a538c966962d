"""A folder of images: one folder per class, or nested folders as labels, and perhaps a folder per split.

A folder is a split if, at one depth, every image has a folder with a split word: ROOT/train/CLASS/…, or
ROOT/CLASS/train/…. A class named ``train`` or ``test_tube`` among other classes stays a class.

Source: Hugging Face, "Create an image dataset", ImageFolder: split folders above class folders, classes of all splits.
Differs: there the last folder is the class; here it is the first one besides the split, as in CLASS/images/….
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from pipelines.sources.entries import IMAGE_EXTENSIONS, Walk, folder_fingerprint, has_image, hidden_reason, images_of
from pipelines.sources.label_classes import in_order
from pipelines.sources.options import Option, SourceOptions
from pipelines.sources.protocol import NOT_STATED, Item, Source
from pipelines.sources.splits import (
    OPTION,
    TRAIN,
    Place,
    SplitFrom,
    contrary_note,
    deciding_folder,
    is_contrary,
    is_split_word,
    splits_in,
    splits_of_files,
)
from pretrain.errors import DataError
from pretrain.names import shown

NESTED_LABELS = Option(
    "nested_labels", "every folder above a file is a label", default=False, group="labels", is_flag=True
)


class FolderSource(Source):
    """Images below ``root``; one class per folder, or every folder above a file as a label.

    Folders of splits (``train/CLASS/…`` and ``val/CLASS/…``) are understood, and classes are those of all splits.

    Args:
        root: one sub-folder per class, perhaps below one per split. Files deeper down belong to the class folder above.
        how: the name of the set (default: the folder's), and what determines the split; see ``SplitFolders``.
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
        self.notes += [] if self.multi_label else [*self._linked(paths, splits), *only_class(names, splits.folders)]
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


def only_class(names: Sequence[str], folders: Iterable[tuple[str, ...]]) -> list[str]:
    """A note if all images are in one class: its folder may be one around those of the classes, as photos/images/cat.

    Args:
        names: of the classes.
        folders: of each image, from that of its class on.
    """
    if len(names) != 1:
        return []
    below = sorted({row[1] for row in folders if len(row) > 1})
    some = ", ".join(map(shown, below[:3])) + (", …" if len(below) > 3 else "")
    hint = f"; if the folders below it are the classes ({some}), give that folder" if len(below) > 1 else ""
    return [f"all images are in one class, that of the folder {shown(names[0])}{hint}"]


def renumbered(names: Sequence[str]) -> list[str]:
    """A note if the names of class folders are numbers other than their indices."""
    if not all(name.isascii() and name.isdecimal() for name in names):
        return []
    moved = next((number for number, name in enumerate(names) if int(name) != number), None)
    if moved is None:
        return []
    return [f"class indices are not the numbers of the folders: {names[moved]} is class {moved}; the card has both"]


def without_images(folders: Iterable[str], paths: Iterable[str]) -> list[str]:
    """A note about the folders without any image below them; nested ones are reported once."""
    used = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    empty = [folder for folder in folders if folder not in used and str(PurePosixPath(folder).parent) in {*used, "."}]
    if not empty:
        return []
    some = ", ".join(map(shown, empty[:3])) + (", …" if len(empty) > 3 else "")
    return [f"folders without a usable image, which make no class: {len(empty)} ({some})"]


class SplitFolders:
    """The split and the class folders of images below one root.

    Args:
        paths: of all images, below ``root``.
        root: the folder, as the user named it.
        how: what determines the split; see ``splits_of_files``.
        has_classes: folders are classes, so an image needs one besides its split.

    Attributes:
        splits: of each path.
        folders: of each path, without the split and any folders above it that are the same for all.
        rule: description of how the splits were found.
        notes: on names that were not used.
        is_default: no name denotes a split, so all are in train.

    Raises:
        DataError: some folders look like splits and some do not, or a split has no class folders.
    """

    def __init__(self, paths: Sequence[str], root: str, how: SplitFrom = "auto", *, has_classes: bool = True) -> None:
        self._root, self._has_classes, self.is_default = root, has_classes, False
        all_folders = [PurePosixPath(path).parts[:-1] for path in paths]
        level = self._level(all_folders) if how == "auto" else None
        if level is not None:
            self._by_level(all_folders, level)
        elif how == "folders":
            self._by_each(paths, all_folders)
        else:
            self._by_files(paths, all_folders, how)

    def _by_level(self, all_folders: Sequence[tuple[str, ...]], level: int) -> None:
        """Every image has its split at one depth."""
        above = {folders[:level] for folders in all_folders}
        is_wrapped = len(above) == 1 and all(len(folders) > level + 1 for folders in all_folders)
        is_doubled = all(folders[level + 1 : level + 2] == folders[level : level + 1] for folders in all_folders)
        below = level + 1 + (is_doubled and all(len(folders) > level + 2 for folders in all_folders))
        self.splits = [splits_in(folders[level])[0] for folders in all_folders]
        self.folders = [(() if is_wrapped else folders[:level]) + folders[below:] for folders in all_folders]
        where = "" if level == 0 else f", {level} below the first" if is_wrapped else " below those of the classes"
        self.rule = f"from the names of folders{where} ({OPTION} auto)"
        self.notes = contrary_note(self._contrary(all_folders))

    def _by_each(self, paths: Sequence[str], all_folders: Sequence[tuple[str, ...]]) -> None:
        """Each image by its own folders, regardless of others."""
        made = splits_of_files([Place(path) for path in paths], "folders", images=True)
        self.splits, self.rule, self.notes = list(made.names), made.rule, made.notes
        self.folders = [_without(folders, deciding_folder(folders)) for folders in all_folders]

    def _by_files(self, paths: Sequence[str], all_folders: Sequence[tuple[str, ...]], how: SplitFrom) -> None:
        """All folders are classes; the names of the files determine the split."""
        names = [PurePosixPath(path).name for path in paths]
        root = PurePosixPath(os.path.abspath(self._root))
        made = splits_of_files([Place(name, root.name, str(root.parent)) for name in names], how, images=True)
        self.splits, self.rule, self.folders = list(made.names), made.rule, list(all_folders)
        self.notes, self.is_default = (*made.notes, *contrary_note(self._contrary(all_folders))), made.is_default

    def _contrary(self, all_folders: Sequence[tuple[str, ...]]) -> list[str]:
        pairs = zip(all_folders, self.splits, strict=True)
        return list(dict.fromkeys(name for folders, split in pairs for name in folders if is_contrary(name, split)))

    def _level(self, all_folders: Sequence[tuple[str, ...]]) -> int | None:
        """The depth at which every image has a split folder; None: there are none."""
        for depth in range(max(map(len, all_folders), default=0)):
            at_depth: dict[str, list[tuple[str, ...]]] = defaultdict(list)
            missing = None
            for folders in all_folders:
                if len(folders) > depth:
                    at_depth[folders[depth]].append(folders)
                else:
                    missing = folders
            says = [name for name in at_depth if len(splits_in(name)) == 1]
            silent = [name for name in at_depth if len(splits_in(name)) != 1]
            if not silent and missing is None and self._has_room(at_depth, depth):
                return depth
            self._refuse_mixture(says, silent, at_depth, depth)
        return None

    def _has_room(self, at_depth: dict[str, list[tuple[str, ...]]], depth: int) -> bool:
        """Whether every image still has a folder for its class; rejects a split without class folders."""
        bare = [name for name, rows in at_depth.items() if any(len(folders) == 1 for folders in rows)]
        if not self._has_classes or not bare:
            return True
        if any(is_split_word(name) for name in at_depth):
            raise DataError(
                f"{self._root}: images in the split folder {sorted(bare)[0]!r} are in no class folder; the form is "
                "SPLIT/CLASS/image. Move them, name their labels in a metadata.csv beside them (columns file_name and "
                f"label) or in a manifest, or take each of these folders as a class with {OPTION} none"
            )
        return False  # such as bullet_train and test_tube: classes

    def _refuse_mixture(
        self, says: list[str], silent: list[str], at_depth: dict[str, list[tuple[str, ...]]], depth: int
    ) -> None:
        """Rejects an ``extra`` folder next to ``train`` and ``val``, which may be a class or part of a split."""
        exact = [name for name in says if is_split_word(name)]
        above = [name for name in says if all(len(folders) > depth + 1 for folders in at_depth[name])]
        several = any(len({splits_in(name) for name in names}) > 1 for names in (exact, above))
        if several or (depth == 0 and set(exact) & set(above)):
            others = f"others do not, such as {sorted(silent)[0]!r}" if silent else "other images are outside of them"
            raise DataError(
                f"{self._root}: some folders are named like splits ({', '.join(sorted(exact or above))}), {others}. "
                f"Say what is meant: {OPTION} folders (images without a split folder are in {TRAIN}), or {OPTION} "
                "none (every folder is a class)"
            )


def _without(folders: tuple[str, ...], split: str | None) -> tuple[str, ...]:
    place = folders.index(split) if split is not None else -1
    return folders if place < 0 else folders[:place] + folders[place + 1 :]

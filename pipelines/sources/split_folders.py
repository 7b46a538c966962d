"""Split folders among class folders: determines which folder in an image's path is its split, and which its class.

A folder is a split if, at one depth, every image has a folder with a split word: ROOT/train/CLASS/…, or
ROOT/CLASS/train/…. A class named ``train`` or ``test_tube`` among other classes stays a class.

Source: Hugging Face, "Create an image dataset", ImageFolder: split folders above class folders, classes of all splits.
Differs: there the last folder is the class; here it is the first one besides the split, as in CLASS/images/….
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

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

"""The split that a name denotes: one rule for all sources, the one that Hugging Face documents.

A split word counts anywhere in a name where it is delimited: by its ends, by one of ``-._`` or a space, or by a digit.
Folders come before file names, the outermost first. Upper and lower case are the same.

Source: Hugging Face Hub, "File names and splits" and "Automatic splits detection": keywords, delimiters, the order of
the patterns, and ``data/NAME-00000-of-00001`` for splits of other names.
Differs: where Hugging Face puts one file into two splits, or leaves out a file without a split word next to others with
one, this rule takes one split, or train, and notes it; a name with two different splits is rejected.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, get_args

from pretrain.errors import DataError

SplitFrom = Literal["auto", "folders", "names", "none"]
SPLIT_FROM = get_args(SplitFrom)
TRAIN = "train"
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
OPTION = "--split-from"
_DELIMITER = "-._ 0-9"
_WORD = re.compile(f"(?<![^{_DELIMITER}])(?:{'|'.join(SPLIT_WORDS)})(?![^{_DELIMITER}])", re.IGNORECASE | re.ASCII)
_TITLES = "|".join(word.title() for word in (*SPLIT_WORDS, "tests"))
_JOINED = re.compile(  # a split word delimited only by its case or a plural s: testSet, cifarTest, tests-0
    f"(?<![A-Za-z])(?:{'|'.join(SPLIT_WORDS)}|{_TITLES})(?=[A-Z])|(?<=[a-z])(?:{_TITLES})(?![a-z])|(?<![A-Za-z])tests(?![A-Za-z])"
)
AROUND = "-._ 0123456789"  # delimiters of a split word
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_SHARDED = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}", re.ASCII)
_SHARDED_FOLDER = "data"
_SHOWN = 3


def to_split_name(text: str, where: str) -> str:
    """The canonical name of a split: train, val or test for their words, else the name itself.

    Splits are folders of the pack, so this is the one place that determines which names are allowed.

    Raises:
        DataError: the name is empty, or is not a plain folder name.
    """
    name = SPLIT_WORDS.get(text.strip().lower(), text.strip())
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise DataError(
            f"{where}: {text!r} cannot be the name of a split; write train, val, test, or up to 64 letters, digits, "
            "hyphens, underscores and dots that begin with a letter or digit"
        )
    return name


@lru_cache(maxsize=65536)
def splits_in(name: str) -> tuple[str, ...]:
    """The splits whose words occur in the name of a file or folder, each once."""
    return tuple(dict.fromkeys(SPLIT_WORDS[word.lower()] for word in _WORD.findall(name)))


def is_split_word(name: str) -> bool:
    """Whether the name is exactly a split word."""
    return name.lower() in SPLIT_WORDS


class Place(NamedTuple):
    """Where a file is.

    Attributes:
        below: its path below the folder that the user named.
        root: the name of that folder.
        above: the path of the folders above it. Neither determines a split; both are only used for a note.
    """

    below: str
    root: str = ""
    above: str = ""


@dataclass(frozen=True)
class Splits:
    """The split of each file, a description of the rule, notes, and whether no name denotes a split."""

    names: tuple[str, ...]
    rule: str
    notes: tuple[str, ...] = ()
    is_default: bool = False


def splits_of_files(places: Sequence[Place], how: SplitFrom = "auto", *, images: bool = False) -> Splits:
    """The split that each file's folders or else its name denote; else train.

    As on Hugging Face, where names are relative to the root of a repository, the names of the given folder and of those
    above it do not matter: ``/scratch/test/photos`` is not a test set.

    Args:
        places: of the files.
        how: "folders" and "names" use only those, "none" puts all into train.
        images: the files are images, not shards of them. Their names count only if each of them denotes a split:
            ``test_tube.jpg`` among others is a picture of a test tube.

    Raises:
        DataError: a name that determines the split denotes two.
    """
    readers = _readers(places, how, images=images)
    found = [next((made for reader in readers if (made := reader(place))), None) for place in places]
    names = tuple(TRAIN if made is None else made.split for made in found)
    counts = Counter("default" if made is None else made.by for made in found)
    contrary = Counter(
        part
        for place, made, split in zip(places, found, names, strict=True)
        for part in PurePosixPath(place.below).parts
        if is_contrary(part, split) and (made is None or part != made.component)
    )
    notes = (*_unsaid(places, found), *contrary_note(list(contrary)))
    if how == "auto":
        notes += _joined(places, found)
    if set(counts) == {"default"} and how != "none":
        notes += _said_above(places)
    return Splits(names, _in_words(counts, how), notes, is_default=set(counts) == {"default"})


def _readers(places: Sequence[Place], how: SplitFrom, *, images: bool) -> Sequence[Callable[[Place], _Found | None]]:
    if how != "auto":
        return {"folders": (_by_folder,), "names": (_by_name,), "none": ()}[how]
    if images and not all(len(splits_in(PurePosixPath(place.below).name)) == 1 for place in places):
        return (_by_folder,)
    return (_by_sharded, _by_folder, _by_name)


class _Found(NamedTuple):
    """A split, the kind of name that denotes it, and that name."""

    split: str
    by: Literal["sharded", "folder", "name"]
    component: str


def _by_sharded(place: Place) -> _Found | None:
    *folders, name = PurePosixPath(place.below).parts
    match = _SHARDED.match(name)
    if match is None or (folders or [place.root]) != [_SHARDED_FOLDER]:
        return None
    return _Found(to_split_name(match[1], place.below), "sharded", name)


def _by_folder(place: Place) -> _Found | None:
    folder = deciding_folder(PurePosixPath(place.below).parts[:-1])
    return None if folder is None else _Found(_one_split(folder, place.below), "folder", folder)


def deciding_folder(folders: Sequence[str]) -> str | None:
    """The outermost folder that is a split word, else the outermost that contains one."""
    words = [folder for folder in folders if splits_in(folder)]
    return next((folder for folder in words if is_split_word(folder)), words[0] if words else None)


def _by_name(place: Place) -> _Found | None:
    name = PurePosixPath(place.below).name
    return _Found(_one_split(name, place.below), "name", name) if splits_in(name) else None


def _one_split(name: str, path: str) -> str:
    first, *others = splits_in(name)
    if others:
        raise DataError(
            f"{path}: the name {name!r} matches {' and '.join([first, *others])}; rename it, or settle it with "
            f"{OPTION} {', '.join(SPLIT_FROM[1:-1])} or none (all images in train)"
        )
    return first


def _in_words(counts: Counter[str], how: str) -> str:
    if how == "none":
        return f"all images are in train ({OPTION} none)"
    words = {
        "sharded": "from names such as data/NAME-00000-of-00001",
        "folder": "from the names of folders",
        "name": "from the names of files",
        "default": "train where no name says a split",
    }
    return f"{'; '.join(words[by] for by in words if counts[by])} ({OPTION} {how})"


def _unsaid(places: Sequence[Place], found: Sequence[_Found | None]) -> tuple[str, ...]:
    """A note about files without a split while others have one: Hugging Face would leave them out."""
    silent = [place.below for place, made in zip(places, found, strict=True) if made is None]
    if not silent or len(silent) == len(places):
        return ()
    return (f"{len(silent)} of {len(places)} files say no split, such as {silent[0]}: they are in train",)


def _joined(places: Sequence[Place], found: Sequence[_Found | None]) -> tuple[str, ...]:
    """A note about files without a split whose names contain a split word without a delimiter."""
    silent = [place.below for place, made in zip(places, found, strict=True) if made is None]
    near = [below for below in silent if any(not word.lower().startswith(TRAIN) for word in _JOINED.findall(below))]
    if not near:
        return ()
    count, are = ("1 name holds", "is") if len(near) == 1 else (f"{len(near)} names hold", "are")
    return (
        f"{count} a split word that is not delimited, such as {near[0]}, and {are} in {TRAIN}; if that is wrong, "
        "delimit the word, as in test-0.tar",
    )


def _said_above(places: Sequence[Place]) -> tuple[str, ...]:
    """A note about the given folder and those above it, if nothing below denotes a split."""
    parts = dict.fromkeys(part for place in places for part in (*PurePosixPath(place.above).parts, place.root))
    words = [part for part in parts if is_split_word(part) and SPLIT_WORDS[part.lower()] != TRAIN]
    if not words:
        return ()
    return (
        f"the images are in {TRAIN}, though they are below a folder called {words[-1]!r}: if they are that split, give "
        "the folder above it (or a pattern such as {train,val}/0.tar), whose folders are then the splits",
    )


def is_contrary(name: str, split: str) -> bool:
    """Whether the name contains a split word, but none of this split."""
    found = splits_in(name)
    return bool(found) and split not in found


def contrary_note(names: Sequence[str]) -> tuple[str, ...]:
    """The note about names with a word of a split other than the chosen one; () if there are none."""
    if not names:
        return ()
    shown = ", ".join(repr(name) for name in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    hold = "1 name holds" if len(names) == 1 else f"{len(names)} names hold"
    return (f"{hold} a split word that was not used: {shown}; {OPTION} chooses what decides",)

"""Everything below a folder, recorded in a ledger: the files, and why other entries are not used.

Links to files and folders are followed wherever they lead, unless a folder would be entered below itself. All stages
that look for images in folders use this walk, so they see the same ones.

Changes to files are detected without reading them: a file is unchanged if its name, size, modification time (mtime)
and status change time (ctime, both in nanoseconds) are the same. Programs can reset mtime but not ctime, so on a local
disk no write goes unnoticed. The reverse does not hold: a copy, ``chmod`` or a link also changes ctime, and then the
packer compares the content.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pretrain.data.ledger import Ledger
from pretrain.errors import DataError
from pretrain.names import shown, to_bytes

LISTS = frozenset(["txt", "csv", "jsonl", "json"])
KIND = "directory entries"
HIDDEN, LOOP, DANGLING = "hidden", "link to a folder above it", "dangling link"
MAC_FORK = "macOS resource fork"
NOT_A_FILE = "neither a file nor a folder"
UNLABELLED_BYTES = "an image by its bytes, but not by its name"
# of the formats in pretrain/data/images/opening.py
IMAGE_EXTENSIONS = frozenset(
    [
        *("avif", "bmp", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg"),
        *("pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
    ]
)
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "icon\r", "ehthumbs.db"})
_EXTENSION = re.compile(r"\.[a-z0-9]{1,8}")
_IMAGE_HEADS = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*", re.S)


@dataclass(frozen=True)
class Found:
    """A file: its path relative to the folder, with slashes, and its size."""

    path: str
    num_bytes: int

    @property
    def extension(self) -> str:
        """In lower case, without the dot."""
        return PurePosixPath(self.path).suffix[1:].lower()


@dataclass(frozen=True)
class Walk:
    """The files below ``root`` sorted by name; the caller reports how each is used.

    Attributes:
        root: the folder.
        ledger: records every entry; those that are not files are accounted for here.
        folders: those that are not hidden, filled during the walk.
    """

    root: Path
    ledger: Ledger = field(default_factory=Ledger)
    folders: list[str] = field(default_factory=list)

    def files(self) -> Iterator[Found]:
        """Every file that is not hidden.

        Raises:
            DataError: a folder cannot be read.
        """
        self.ledger.found(KIND, 0)
        yield from self._below("", frozenset(), hidden=False)

    def used(self, file: Found, what: str = "images") -> None:
        """Records in the ledger what a file is used as."""
        self.ledger.used(KIND, what)

    def left_out(self, file: Found, reason: str = "") -> None:
        """Records in the ledger that a file is not used, and why: by default, as its name and first bytes suggest."""
        self.ledger.lost(KIND, reason or self._reason(file), file.path)

    def _below(self, relative: str, above: frozenset[tuple[int, int]], *, hidden: bool) -> Iterator[Found]:
        folder = self.root / relative if relative else self.root
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        for entry in _entries(folder):
            path = f"{relative}/{entry.name}" if relative else entry.name
            self.ledger.found(KIND)
            reason = HIDDEN if hidden else hidden_reason(entry.name)
            kind = _kind_of(entry)
            if kind == stat.S_IFDIR:
                target = entry.stat()
                if (target.st_dev, target.st_ino) in above | {here}:
                    self.ledger.lost(KIND, LOOP, path)
                    continue
                if reason:
                    self.ledger.lost(KIND, reason, f"{path}/")
                else:
                    self.ledger.used(KIND, "folders")
                    self.folders.append(path)
                yield from self._below(path, above | {here}, hidden=bool(reason))
            elif reason:
                self.ledger.lost(KIND, reason, path)
            elif kind == stat.S_IFREG:
                yield Found(path, entry.stat().st_size)
            else:
                self.ledger.lost(KIND, DANGLING if kind == 0 else NOT_A_FILE, path)

    def _reason(self, file: Found) -> str:
        name, suffix = PurePosixPath(file.path).name, PurePosixPath(file.path).suffix.lower()
        if name.lower() in SYSTEM_FILES:
            return "system file"
        if _has_head_of_image(self.root / file.path):
            return UNLABELLED_BYTES
        if not suffix:
            return "no extension"
        return f"not a known image ({suffix})" if _EXTENSION.fullmatch(suffix) else "not a known image"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{shown(folder)}: the folder cannot be read ({error.strerror})") from error


def hidden_reason(name: str) -> str:
    """Why an entry of this name is always ignored; "": it is not."""
    if name.startswith("._") or name == "__MACOSX":
        return MAC_FORK
    return HIDDEN if name.startswith(".") else ""


def _kind_of(entry: os.DirEntry[str]) -> int:
    """The type bits of an entry's target; 0: there is none."""
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            return 0
        raise DataError(f"{shown(entry.path)} cannot be read ({error.strerror})") from error


def _has_head_of_image(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return _IMAGE_HEADS.match(file.read(16)) is not None
    except OSError:
        return False


def files_fingerprint(paths: Iterable[str | Path], *words: str) -> str:
    """A digest of the state of files and of words that belong to them; a missing file has its own state."""
    seen = hashlib.blake2b(digest_size=16)
    for word in words:
        seen.update(b"word\0" + to_bytes(word) + b"\0")
    for path in paths:
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        except (OSError, ValueError):
            state = "missing"
        seen.update(to_bytes(os.path.basename(path)) + b"\0" + state.encode() + b"\0")
    return seen.hexdigest()


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

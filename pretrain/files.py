"""Files that are complete or not there, for everything that must survive a kill. Everybody may import this."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path

from pretrain import disk

TEMPORARY_SUFFIX = ".tmp"
MAX_PENDING = 100_000  # lines that a journal remembers while its file cannot be written


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes ``data`` (text as UTF-8) to a temporary file beside ``path``, makes it durable and renames it.

    Processes that write the same file at the same time do not disturb each other; the last one stays.

    Raises:
        FileExistsError: a folder or device has this path, such as /dev/null, which root could replace.
        OSError: the old file is as it was, and no other file is left beside it.
    """
    content = data.encode() if isinstance(data, str) else data
    found = disk.current.status(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise FileExistsError(errno.EEXIST, "not a regular file, so it is not replaced", str(path))
    # Processes of several hosts may have the same number, so the name needs more than that.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}{TEMPORARY_SUFFIX}")
    try:
        disk.current.write(temporary, content)
        disk.current.sync(temporary)
        disk.current.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.current.unlink(temporary)
        raise
    disk.current.sync(path.parent)


def sync(path: Path) -> None:
    """Makes a file's content, or the new and renamed entries of a folder, durable."""
    disk.current.sync(path)


def make_folders(path: Path) -> None:
    """Makes a folder and those above it, each durably."""
    missing = []
    while not disk.current.is_folder(path):
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        disk.current.make_folder(folder)
        disk.current.sync(folder.parent)


def remove_tree(path: Path) -> None:
    """Removes a folder and what is in it, as far as that is possible; what stays is not an error."""
    with contextlib.suppress(OSError):
        for name in disk.current.entries(path):
            inner = path / name
            with contextlib.suppress(OSError):
                if not inner.is_symlink() and disk.current.is_folder(inner):
                    remove_tree(inner)
                else:
                    disk.current.unlink(inner)
        disk.current.remove_folder(path)


class Journal:
    """A file of lines that is only added to. While it cannot be written its lines wait, and are added later.

    Args:
        path: of the file; made with the first line.
        durable: whether each line is on the disk when ``add`` returns.
    """

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path, self._durable = path, durable
        self._pending: list[str] = []
        self.num_lost = 0

    def add(self, line: str) -> OSError | None:
        """Adds a line (without its newline); returns why it is not in the file yet, or None."""
        if len(self._pending) == MAX_PENDING:
            self._pending.pop(0)
            self.num_lost += 1
        self._pending.append(line)
        return self.flush()

    def flush(self) -> OSError | None:
        """Tries again to add the lines that wait."""
        try:
            while self._pending:
                disk.current.append(self.path, f"{self._pending[0]}\n".encode(), durable=self._durable)
                self._pending.pop(0)
        except OSError as error:
            return error
        return None


def digest(data: bytes | memoryview) -> str:
    """BLAKE2b-128 of ``data`` as hex: the name of content everywhere in the project."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """``digest`` of a file's content, in constant memory."""
    content = hashlib.blake2b(digest_size=16)
    for block in disk.current.blocks(path):
        content.update(block)
    return content.hexdigest()

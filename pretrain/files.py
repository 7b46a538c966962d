"""Atomic writes, for every file that must survive a kill. Any module may import this one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from pretrain import disk

TEMPORARY_SUFFIX = ".tmp"
MAX_PENDING = 100_000  # lines that a journal keeps in memory while its file cannot be written


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes ``data`` (text as UTF-8) to a temporary file beside ``path``, syncs it and renames it.

    Several processes may write the same file at the same time; the last one wins.

    Raises:
        FileExistsError: the path is a folder or a device, such as /dev/null, which root could replace.
        OSError: the write failed. The old file is unchanged, and no temporary file is left beside it.
    """
    content = data.encode() if isinstance(data, str) else data
    found = disk.current.status(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise FileExistsError(errno.EEXIST, "not a regular file, so it is not replaced", str(path))
    # Processes on different hosts may share a process id, so the id alone does not make the name unique.
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
    """Makes a folder and its missing parents, and syncs each."""
    missing = []
    while not disk.current.is_folder(path):
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        disk.current.make_folder(folder)
        disk.current.sync(folder.parent)


def remove_tree(path: Path) -> None:
    """Removes a folder and its content as far as possible; anything that cannot be removed is ignored."""
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
    """An append-only file of lines. While it cannot be written, its lines are kept in memory and added later.

    Args:
        path: of the file, which is created with the first line.
        durable: whether ``add`` syncs each line to the disk before it returns.
    """

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path, self._durable = path, durable
        self._pending: list[str] = []
        self.num_lost = 0

    def add(self, line: str) -> OSError | None:
        """Adds a line, given without its newline. Returns the error that keeps it out of the file for now, or None."""
        if len(self._pending) == MAX_PENDING:
            self._pending.pop(0)
            self.num_lost += 1
        self._pending.append(line)
        return self.flush()

    def flush(self) -> OSError | None:
        """Tries again to write the pending lines."""
        try:
            while self._pending:
                disk.current.append(self.path, f"{self._pending[0]}\n".encode(), durable=self._durable)
                self._pending.pop(0)
        except OSError as error:
            return error
        return None


def digest(data: bytes | memoryview) -> str:
    """BLAKE2b-128 of ``data`` as hex: how the whole project identifies content."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """The ``digest`` of a file's content, computed in constant memory."""
    return digest_of(disk.current.blocks(path))


def digest_of(blocks: Iterable[bytes]) -> str:
    """The ``digest`` of all blocks together."""
    content = hashlib.blake2b(digest_size=16)
    for block in blocks:
        content.update(block)
    return content.hexdigest()

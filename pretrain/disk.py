"""The operating system calls that read and write a run folder, in one object.

Every such call goes through ``current``. Tests replace it with a disk that fails on demand (a full disk, a lost server)
or that loses everything that was not synced (a power cut).

A *fence* guards a folder: it runs a check before every change at or below the folder, so a process that has lost
ownership changes nothing. Any module may import this one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

BLOCK_BYTES = 1 << 22


class FencedOut(OSError):
    """A change was refused because this process no longer owns the folder. Nothing was changed."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.ESTALE, reason)

    def __str__(self) -> str:
        return str(self.strerror)


class Disk:
    """Every method makes one or a few system calls and raises ``OSError`` if one of them fails."""

    def __init__(self) -> None:
        self._fences: dict[Path, Callable[[], None]] = {}

    def fence(self, root: Path, check: Callable[[], None] | None) -> None:
        """Calls ``check`` before every change at or below ``root``; None removes the fence.

        Args:
            root: a folder.
            check: raises FencedOut if this process may not change the folder.
        """
        if check is None:
            self._fences.pop(root.absolute(), None)
        else:
            self._fences[root.absolute()] = check

    def about_to(self, call: str, path: Path) -> None:
        """Called before every system call; tests raise from here."""

    def may_change(self, path: Path) -> None:
        """To call before a library writes on its own. Raises: FencedOut if this process does not own the folder."""
        for root, check in list(self._fences.items()):
            if path.absolute().is_relative_to(root):
                check()

    def _change(self, call: str, *paths: Path) -> None:
        for path in paths:
            self.may_change(path)
        self.about_to(call, paths[0])

    # Calls that only read.

    def read(self, path: Path) -> bytes:
        """The content of a file."""
        self.about_to("read", path)
        return path.read_bytes()

    def tail(self, path: Path, num_bytes: int) -> bytes:
        """The end of a file."""
        self.about_to("read", path)
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
            return file.read()

    def blocks(self, path: Path) -> Iterator[bytes]:
        """The content of a file in constant memory."""
        self.about_to("read", path)
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block

    def entries(self, path: Path) -> list[str]:
        """Sorted names in a folder. Opening a folder makes a network file system ask its server again."""
        self.about_to("list", path)
        return sorted(os.listdir(path))

    def status(self, path: Path) -> os.stat_result | None:
        """The result of ``stat``; None if the path does not exist."""
        self.about_to("stat", path)
        try:
            return os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def fresh_status(self, path: Path) -> os.stat_result | None:
        """Like ``status``, but opens the file first, so that a network file system asks its server, not its cache."""
        self.about_to("stat", path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def exists(self, path: Path) -> bool:
        """Whether the path exists."""
        return self.status(path) is not None

    def is_folder(self, path: Path) -> bool:
        """Whether the path is a folder."""
        found = self.status(path)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def free_bytes(self, path: Path) -> int:
        """Bytes that may be written to the file system of ``path``."""
        self.about_to("stat", path)
        return shutil.disk_usage(path).free

    def read_with(self, path: Path, reader: Callable[[Path], Any]) -> Any:
        """Lets a library open and read a file."""
        self.about_to("read", path)
        return reader(path)

    # Calls that change something.

    def write(self, path: Path, data: bytes, *, exclusive: bool = False) -> None:
        """Creates a file with this content, without syncing it.

        Args:
            path: of the file.
            data: its content.
            exclusive: raise FileExistsError if the file exists already.
        """
        self._change("open", path)
        with open(path, "xb" if exclusive else "wb", buffering=0) as file:
            self._put(file, path, data)

    def append(self, path: Path, data: bytes, *, durable: bool = False) -> None:
        """Appends to a file. If a failed attempt left half a line at its end, a newline ends that line first."""
        self._change("open", path)
        with open(path, "a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            self._put(file, path, (b"\n" if torn else b"") + data)
            if durable:
                self.about_to("sync", path)
                self._flush(file.fileno())

    def extend(self, path: Path, data: bytes) -> None:
        """Appends to a file, without syncing it."""
        self._change("open", path)
        with open(path, "ab", buffering=0) as file:
            self._put(file, path, data)

    def _put(self, file: IO[bytes], path: Path, data: bytes) -> None:
        self.about_to("write", path)
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]

    def write_with(self, path: Path, writer: Callable[[Path], Any]) -> None:
        """Lets a library write a file, and gives it the permissions of any other new file."""
        self._change("open", path)
        with open(path, "wb") as file:  # some libraries make their files readable only by the owner
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        self.about_to("write", path)
        writer(path)
        os.chmod(path, mode)

    def write_blocks(self, path: Path, blocks: Iterable[bytes]) -> None:
        """Creates a file from blocks, in constant memory, without syncing it."""

        def write(path: Path) -> None:
            with open(path, "wb", buffering=0) as file:
                for block in blocks:
                    rest = memoryview(block)
                    while rest:
                        rest = rest[file.write(rest) :]

        self.write_with(path, write)

    def sync(self, path: Path) -> None:
        """Makes a file's content, or the new and renamed entries of a folder, durable."""
        self.about_to("sync", path)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self._flush(descriptor)
        finally:
            os.close(descriptor)

    def _flush(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Renames a file or folder, replacing an existing file."""
        self._change("rename", source, target)
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Makes a hard link. Raises FileExistsError if the target exists."""
        self._change("link", source, target)
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """Removes a file, if it exists."""
        self._change("unlink", path)
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """Makes a folder, unless it exists."""
        self._change("mkdir", path)
        path.mkdir(exist_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Removes an empty folder."""
        self._change("rmdir", path)
        path.rmdir()

    def touch(self, path: Path) -> None:
        """Sets a file's modification time to now; needs no free space."""
        self._change("touch", path)
        os.utime(path)

    def flock(self, file: Any, operation: int) -> None:
        """Same as ``fcntl.flock``."""
        self.about_to("flock", Path(getattr(file, "name", "")))
        fcntl.flock(file, operation)


current = Disk()

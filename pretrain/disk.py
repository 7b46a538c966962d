"""The calls of the operating system by which the project writes and reads a run folder, in one object.

``current`` is what every such call goes through. A test puts another one in its place, which fails where the test
wants it to (a full disk, a lost server) or forgets what was not made durable (a power cut).

A *fence* guards a folder: before every change at or below it a check is made, and an owner that has lost the folder
changes nothing. Everybody may import this.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

BLOCK_BYTES = 1 << 22


class FencedOut(OSError):
    """A change was refused, because this process does not own the folder any more. Nothing was changed."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.ESTALE, reason)

    def __str__(self) -> str:
        return str(self.strerror)


class Disk:
    """Every method is one or a few system calls and raises ``OSError`` where one fails."""

    def __init__(self) -> None:
        self._fences: dict[Path, Callable[[], None]] = {}

    def fence(self, root: Path, check: Callable[[], None] | None) -> None:
        """Calls ``check`` before every change at or below ``root``; None: no more.

        Args:
            root: a folder.
            check: raises FencedOut where this process may not change the folder.
        """
        if check is None:
            self._fences.pop(root.absolute(), None)
        else:
            self._fences[root.absolute()] = check

    def about_to(self, call: str, path: Path) -> None:
        """Comes before every system call; a test raises here."""

    def may_change(self, path: Path) -> None:
        """For a library that writes on its own. Raises: FencedOut where this process does not own the folder."""
        for root, check in list(self._fences.items()):
            if path.absolute().is_relative_to(root):
                check()

    def _change(self, call: str, *paths: Path) -> None:
        for path in paths:
            self.may_change(path)
        self.about_to(call, paths[0])

    # What changes nothing.

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
        """Names in a folder, sorted. Opening a folder makes a network file system ask its server again."""
        self.about_to("list", path)
        return sorted(os.listdir(path))

    def status(self, path: Path) -> os.stat_result | None:
        """What ``stat`` finds; None where nothing is there."""
        self.about_to("stat", path)
        try:
            return os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def fresh_status(self, path: Path) -> os.stat_result | None:
        """As ``status``, of an opened file: what a network file system's server says now, not what is remembered."""
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
        """Whether something is there."""
        return self.status(path) is not None

    def is_folder(self, path: Path) -> bool:
        """Whether a folder is there."""
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

    # What changes something.

    def write(self, path: Path, data: bytes, *, exclusive: bool = False) -> None:
        """Makes a file with this content, not yet durable.

        Args:
            path: of the file.
            data: its content.
            exclusive: FileExistsError where it is there already.
        """
        self._change("open", path)
        with open(path, "xb" if exclusive else "wb", buffering=0) as file:
            self._put(file, path, data)

    def append(self, path: Path, data: bytes, *, durable: bool = False) -> None:
        """Adds to the end of a file. What a failed attempt left half-written there is ended by a newline first."""
        self._change("open", path)
        with open(path, "a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            self._put(file, path, (b"\n" if torn else b"") + data)
            if durable:
                self.about_to("sync", path)
                self._flush(file.fileno())

    def _put(self, file: IO[bytes], path: Path, data: bytes) -> None:
        self.about_to("write", path)
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]

    def write_with(self, path: Path, writer: Callable[[Path], Any]) -> None:
        """Lets a library write a file; its permissions are those of any other new file."""
        self._change("open", path)
        with open(path, "wb") as file:  # some libraries make their files readable by the owner alone
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        self.about_to("write", path)
        writer(path)
        os.chmod(path, mode)

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
        """Gives a file or folder another name; a file of that name is replaced."""
        self._change("rename", source, target)
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Gives a file a second name. FileExistsError where it is taken."""
        self._change("link", source, target)
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """Removes a file; none is fine."""
        self._change("unlink", path)
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """Makes a folder; one that is there is fine."""
        self._change("mkdir", path)
        path.mkdir(exist_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Removes an empty folder."""
        self._change("rmdir", path)
        path.rmdir()

    def touch(self, path: Path) -> None:
        """Sets a file's time of change to now; needs no space."""
        self._change("touch", path)
        os.utime(path)

    def flock(self, file: Any, operation: int) -> None:
        """As ``fcntl.flock``."""
        self.about_to("flock", Path(getattr(file, "name", "")))
        fcntl.flock(file, operation)


current = Disk()

"""Tars that are read at random: where their members lie, and ranges of bytes from open files."""

from __future__ import annotations

import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from pretrain.errors import DataError

MAX_OPEN_FILES = 64
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"(\xb5/\xfd": "unzstd"}


class Member(NamedTuple):
    """A file in a tar: its name, the offset of its first byte, and its size."""

    name: str
    offset: int
    size: int


def members_of(path: Path) -> Iterator[Member]:
    """Every file in a tar in order; only headers are read.

    Raises:
        DataError: compressed, truncated, or no tar.
    """
    with open(path, "rb") as file:
        yield from members_in(file, str(path))


def members_in(file: IO[bytes], name: str) -> Iterator[Member]:
    """The same for an open file. Offsets count from its start."""
    head = file.read(6)
    file.seek(0)
    for magic, tool in COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(
                f"{name} is compressed, so it cannot be read at random; unpack it first with: {tool} {name}"
            )
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members.clear()  # tarfile remembers all that it saw  # pyright: ignore
                if member.isfile():
                    if member.offset_data + member.size > end:
                        raise DataError(f"{name} is truncated: its member {member.name} ends behind its end")
                    yield Member(member.name, member.offset_data, member.size)
            file.seek(tar.offset)  # tarfile takes an unreadable header, and no more bytes, for the end
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise DataError(
                    f"{name} is cut short or damaged: after {tar.offset:,} of its {end:,} bytes there is neither "
                    "another member nor the mark of the end; copy it again"
                )
    except tarfile.TarError as error:
        raise DataError(f"{name} is no complete tar ({error})") from error


class Section:
    """A part of an open file that reads like a file of its own."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._place = file, offset, size, 0

    def read(self, count: int = -1) -> bytes:
        """See ``io.RawIOBase.read``."""
        left = max(0, self._size - self._place)
        self._file.seek(self._offset + self._place)
        data = self._file.read(left if count < 0 else min(count, left))
        self._place += len(data)
        return data

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """See ``io.IOBase.seek``."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = start + place
        return self._place

    def tell(self) -> int:
        """See ``io.IOBase.tell``."""
        return self._place


class RangeReader:
    """Ranges of bytes from many files, few of which are open at a time. Pickles without what is open."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """``size`` bytes of a file.

        Raises:
            OSError: it cannot be read, or ends before.
        """
        if path not in self._open:
            if len(self._open) >= MAX_OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(path)
        data = os.pread(self._open[path], size, offset)
        if len(data) != size:
            raise OSError(f"{path} ends {size - len(data)} bytes too early")
        return data

    def close(self) -> None:
        """Closes every file."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": OrderedDict()}

    def __del__(self) -> None:
        if os is not None:  # the interpreter may be on its way out
            self.close()


def file_fingerprint(paths: list[Path]) -> str:
    """Names and sizes of files: what is looked at to see whether a source has changed."""
    return ";".join(f"{path.name}:{path.stat().st_size}" for path in paths)

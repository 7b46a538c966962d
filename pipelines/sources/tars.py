"""Random access to tars: the positions of their members, and ranges of bytes from open files."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from pipelines.sources.entries import DANGLING, MAC_FORK, NOT_A_FILE, hidden_reason
from pretrain.data.ledger import Ledger
from pretrain.errors import DataError
from pretrain.names import shown

MAX_OPEN_FILES = 64
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"(\xb5/\xfd": "unzstd"}
KIND = "tar members"
SPARSE = "sparse file (write the tar without --sparse)"
BEHIND_END = "no member, behind the end of the tar"
MOST_LINKS = 8  # from a link to a link
ZEROS_AT_ONCE = 1 << 20


class Member(NamedTuple):
    """A file in a tar: its name, the offset of its first byte, and its size."""

    name: str
    offset: int
    size: int


def members_of(path: Path, ledger: Ledger | None = None) -> Iterator[Member]:
    """Every file in a tar in order; only headers are read.

    Links inside the tar resolve to the bytes of their target. Tars that were concatenated with ``cat`` are read
    completely, where other readers stop at the first end.

    Args:
        path: the tar.
        ledger: records every member; the caller accounts for those that are returned.

    Raises:
        DataError: compressed, truncated, or no tar.
    """
    with open(path, "rb") as file:
        yield from members_in(file, shown(path), ledger)


def members_in(file: IO[bytes], name: str, ledger: Ledger | None = None) -> Iterator[Member]:
    """The same for an open file. Offsets count from its start."""
    ledger = Ledger() if ledger is None else ledger
    ledger.found(KIND, 0)
    _refuse_compressed(file, name)
    links = _Links(file, name)
    for header in _headers(file, name, ledger):
        ledger.found(KIND)
        if header.isdir():
            ledger.used(KIND, "folders")
        elif reason := _hidden(header.name):
            ledger.lost(KIND, reason, header.name)
        elif header.issparse():
            ledger.lost(KIND, SPARSE, header.name)
        elif header.isreg():
            yield Member(header.name, header.offset_data, header.size)
        elif not (header.islnk() or header.issym()):
            ledger.lost(KIND, NOT_A_FILE, header.name)
        elif (target := links.target(header)) is not None:
            yield target._replace(name=header.name)
        else:
            ledger.lost(KIND, DANGLING, header.name)


def _refuse_compressed(file: IO[bytes], name: str) -> None:
    head = file.read(6)
    file.seek(0)
    for magic, tool in COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(
                f"{name} is compressed, so it cannot be read at random; unpack it first and give what comes out, with: "
                f"{tool} < {name} > NEW.tar"
            )


def _hidden(name: str) -> str:
    """Why a member is always ignored; "": it is not. Folders may begin with a dot, since readers see their content."""
    return MAC_FORK if "__MACOSX" in name.split("/") else hidden_reason(posixpath.basename(name))


def _headers(file: IO[bytes], name: str, ledger: Ledger) -> Iterator[tarfile.TarInfo]:
    """The header of every member, including those after an end marker in the middle."""
    end, start = file.seek(0, os.SEEK_END), 0
    try:
        while True:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                for member in tar:
                    tar.members.clear()  # tarfile remembers all members  # pyright: ignore
                    if member.isreg() and not member.issparse() and member.offset_data + member.size > end:
                        raise DataError(f"{name} is truncated: its member {shown(member.name)} ends behind its end")
                    yield member
                start = _after_the_end(file, tar.offset, end, name)  # pyright: ignore[reportAttributeAccessIssue]
            if start == end:
                return
            if not _is_header(file, start):
                ledger.found(KIND)
                ledger.lost(KIND, BEHIND_END, f"{name}, {end - start:,} bytes")
                return
    except tarfile.TarError as error:
        raise DataError(f"{name} is not a complete tar ({error})") from error


def _after_the_end(file: IO[bytes], offset: int, end: int, name: str) -> int:
    """The first byte after the zeros that end a tar.

    Raises:
        DataError: there are none. tarfile treats an unreadable header, or a lack of bytes, as the end.
    """
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise DataError(
            f"{name} is cut short or damaged: after {offset:,} of its {end:,} bytes there is neither another member "
            "nor the mark of the end; copy it again"
        )
    while data := file.read(ZEROS_AT_ONCE):
        if rest := len(data.lstrip(tarfile.NUL)):
            here = file.tell() - rest
            return here - (here - offset) % tarfile.BLOCKSIZE
    return end


def _is_header(file: IO[bytes], offset: int) -> bool:
    file.seek(offset)
    try:
        tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


class _Links:
    """Resolves links inside a tar; its files are only indexed if there is a link."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._files: dict[str, Member | str] | None = None

    def target(self, link: tarfile.TarInfo) -> Member | None:
        """The file that a link leads to, if it is also in the tar."""
        if self._files is None:
            place = self._file.tell()
            self._files = dict(self._entries())
            self._file.seek(place)
        found: Member | str | None = _leads_to(link)
        for _ in range(MOST_LINKS):
            if not isinstance(found, str):
                break
            found = self._files.get(found)
        return found if isinstance(found, Member) else None

    def _entries(self) -> Iterator[tuple[str, Member | str]]:
        """(name, the file, or the name of a link's target) of every member."""
        for header in _headers(self._file, self._name, Ledger()):
            name = posixpath.normpath(header.name)
            if header.isreg() and not header.issparse():
                yield name, Member(header.name, header.offset_data, header.size)
            elif (header.islnk() or header.issym()) and _leads_to(header) != name:
                yield name, _leads_to(header)


def _leads_to(link: tarfile.TarInfo) -> str:
    """The name of a link's target: relative to the root for a hard link, to the link for a symbolic one."""
    folder = "" if link.islnk() else posixpath.dirname(link.name)
    return posixpath.normpath(posixpath.join(folder, link.linkname))


class Section:
    """A part of an open file that reads like a separate file."""

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
    """Ranges of bytes from many files, few of which are open at a time. Pickles without the open files."""

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
        if os is not None:  # the interpreter may be shutting down
            self.close()

"""Files that are either whole or not there, for everything that must survive a kill. Everybody may import this."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes ``data`` (text as UTF-8) to a temporary file beside ``path``, makes it durable and renames it.

    Processes that write the same file at the same time do not disturb each other; the last one stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    with open(temporary, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Makes a file's content, or the new and renamed entries of a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(data: bytes | memoryview) -> str:
    """BLAKE2b-128 of ``data`` as hex: the name of content everywhere in the project."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """``digest`` of a file's content, in constant memory."""
    content = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            content.update(block)
    return content.hexdigest()

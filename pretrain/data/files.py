"""Files that are either whole or not there, for everything that must survive a kill."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def write_atomic(path: Path, data: bytes) -> None:
    """Writes ``data`` to a temporary file beside ``path``, makes it durable and renames it."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(data: bytes | memoryview) -> str:
    """BLAKE2b-128 of ``data`` as hex: the name of content everywhere in the data sets."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()

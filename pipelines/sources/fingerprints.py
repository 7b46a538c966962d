"""Whether the files of a source may have changed, without reading them.

A file counts as the same where its name, size, time of change (mtime) and time of status change (ctime, in nanoseconds
each) are. Programs can set the first time back but not the second, so on a local disk no write goes unseen. The reverse
does not hold: a copy, ``chmod`` or a link changes ctime too, and then the packer compares the content.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from pretrain.names import to_bytes


def files_fingerprint(paths: Iterable[str | Path], *words: str) -> str:
    """Names files and their state, and words that belong to them; a file that is missing counts as that."""
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

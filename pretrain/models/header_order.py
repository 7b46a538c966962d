"""One order for the header of a safetensors file, whose writer puts the texts of its metadata in a random one."""

from __future__ import annotations

import json
from pathlib import Path

METADATA = "__metadata__"
_LENGTH_BYTES = 8


def sort_metadata(path: Path) -> None:
    """Sorts the metadata in a file's header in place, so that equal content gives equal bytes; no tensor moves."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(size))
        header = {METADATA: dict(sorted(header.pop(METADATA).items())), **header}
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(encoded) <= size, "the header has become longer"
        file.seek(_LENGTH_BYTES)
        file.write(encoded.ljust(size))  # the format pads with blanks

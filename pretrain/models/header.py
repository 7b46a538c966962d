"""The header of a weights file, read and written as JSON: without torch, so that it can be read before a job starts."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from pretrain.config.schema.model import ModelConfig

METADATA = "__metadata__"  # where the safetensors format keeps texts
HEADER_KEY = "pretrain.weights"  # the text that holds our metadata as JSON
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format
_LENGTH_BYTES = 8


def model_in_file(path: Path) -> ModelConfig | None:
    """The model of a weights file; None: it is not a complete weights file of ours."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length)) if length <= LONGEST_HEADER else {}
        return ModelConfig.model_validate(json.loads(header[METADATA][HEADER_KEY])["model"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def sort_metadata(path: Path) -> None:
    """Sorts the texts in a file's header in place, so that equal content gives equal bytes; no tensor moves.

    The safetensors writer puts them in random order.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(size))
        header = {METADATA: dict(sorted(header.pop(METADATA).items())), **header}
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(encoded) <= size, "the header has become longer"
        file.seek(_LENGTH_BYTES)
        file.write(encoded.ljust(size))  # the format pads with blanks

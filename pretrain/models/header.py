"""Reads and writes the header of a weights file as JSON, without torch, so that it can be read before a job starts."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from pretrain.config.schema.model import ModelConfig

METADATA = "__metadata__"  # key of the metadata in the safetensors format
HEADER_KEY = "pretrain.weights"  # entry with our metadata as JSON
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
    """Sorts the metadata in a file's header in place, so that equal content gives equal bytes; tensors do not move.

    The safetensors writer uses a random order.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(size))
        header = {METADATA: dict(sorted(header.pop(METADATA).items())), **header}
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(encoded) <= size, "the header has become longer"
        file.seek(_LENGTH_BYTES)
        file.write(encoded.ljust(size))  # the format pads with spaces

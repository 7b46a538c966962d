"""Results of transfers: where they are, under which names, and what they record about their data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.data.storage.packed_set import PackedSet

SWEEP_FILE = "sweep.json"
PROBE_FILE = "probe.json"


def transfer_folder(source: object) -> Path:
    """The folder of the transfers that start from a run, or from a weights file."""
    return Path(f"{str(source).rstrip('/')}_transfer")


def record_of(packed: PackedSet) -> dict[str, Any]:
    """A result's record of a set: its name, split and size, and the digests that identify its content."""
    card = packed.card
    return {
        "shards": str(packed.location),
        "name": card.name,
        "split": card.split,
        "num_samples": card.num_samples,
        "num_classes": card.num_classes,
        "index_digest": card.index_digest,
        "lists": {split: entry.model_dump() for split, entry in card.lists.items()},
    }

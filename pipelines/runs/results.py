"""What a result says of a set that it was learned from or measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.data.storage.packed_set import PackedSet


def record_of(packed: PackedSet) -> dict[str, Any]:
    """The card's name of the set, its split and size, and the digests that name its content."""
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

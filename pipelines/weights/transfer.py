"""Results of transfers: where they are, what they record about their data sets, and what the paper published.

Source: ViT (2010.11929), Tables 2, 5 and 9.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.sources.vtab import GROUPS, TASKS

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


class Published(NamedTuple):
    """Top-1 accuracy in per cent: the mean of three runs, and its spread where it was given."""

    dataset: str
    model: str
    value: float
    spread: float | None
    source: str


_MODELS = ("H/14 JFT-300M", "L/16 JFT-300M", "L/16 ImageNet-21k")
# Table 2: mean and standard deviation of three runs, for the three models above.
_TABLE_2 = {
    "imagenet": ((88.55, 0.04), (87.76, 0.03), (85.30, 0.02)),
    "imagenet_real": ((90.72, 0.05), (90.54, 0.03), (88.62, 0.05)),
    "cifar10": ((99.50, 0.06), (99.42, 0.03), (99.15, 0.03)),
    "cifar100": ((94.55, 0.04), (93.90, 0.05), (93.25, 0.05)),
    "pets": ((97.56, 0.03), (97.32, 0.11), (94.67, 0.15)),
    "flowers": ((99.68, 0.02), (99.74, 0.00), (99.61, 0.02)),
    "vtab": ((77.63, 0.23), (76.28, 0.46), (72.72, 0.21)),
}
# Table 5: ImageNet at 384 px, one run.
_TABLE_5_IMAGENET_384 = {
    "B/16 ImageNet-21k": 83.97,
    "B/32 ImageNet-21k": 81.28,
    "L/16 ImageNet-21k": 85.15,
    "L/32 ImageNet-21k": 80.99,
    "H/14 ImageNet-21k": 85.13,
    "B/16 JFT-300M": 84.15,
    "B/32 JFT-300M": 80.73,
    "L/16 JFT-300M": 87.12,
    "L/32 JFT-300M": 84.37,
    "H/14 JFT-300M": 88.04,
}
# Table 9: the tasks of VTAB-1k, for the three models above. The means of the groups are computed from it.
_TABLE_9 = {
    "caltech101": (95.3, 95.4, 90.8),
    "cifar": (85.5, 81.9, 84.1),
    "dtd": (75.2, 74.3, 74.1),
    "oxford_flowers102": (99.7, 99.7, 99.3),
    "oxford_iiit_pet": (97.2, 96.7, 92.7),
    "sun397": (65.0, 63.5, 61.0),
    "svhn": (88.9, 87.4, 80.9),
    "patch_camelyon": (83.3, 83.6, 82.5),
    "eurosat": (96.7, 96.5, 95.6),
    "resisc45": (91.4, 89.7, 85.2),
    "diabetic_retinopathy": (76.6, 77.1, 75.3),
    "clevr_count": (91.7, 86.4, 70.3),
    "clevr_dist": (63.8, 63.1, 56.1),
    "dmlab": (53.1, 49.7, 41.9),
    "dsprites_loc": (79.4, 74.5, 74.7),
    "dsprites_ori": (63.3, 60.5, 64.9),
    "kitti": (84.5, 82.2, 79.9),
    "smallnorb_azi": (33.2, 36.2, 30.5),
    "smallnorb_ele": (51.2, 51.1, 41.7),
}


def _group_mean(group: str, model: int) -> float:
    values = [row[model] for task, row in _TABLE_9.items() if TASKS[task].group == group]
    return round(sum(values) / len(values), 2)


PUBLISHED = (
    *(
        Published(dataset, model, value, spread, "2010.11929, Table 2")
        for dataset, row in _TABLE_2.items()
        for model, (value, spread) in zip(_MODELS, row, strict=True)
    ),
    *(
        Published(f"vtab/{task}", model, value, None, "2010.11929, Table 9")
        for task, row in _TABLE_9.items()
        for model, value in zip(_MODELS, row, strict=True)
    ),
    *(
        Published(f"vtab_{group}", model, _group_mean(group, number), None, "mean over 2010.11929, Table 9")
        for group in GROUPS
        for number, model in enumerate(_MODELS)
    ),
)


def published(dataset: str) -> tuple[Published, ...]:
    """The published results on a data set, by its name in this table."""
    return tuple(row for row in PUBLISHED if row.dataset == dataset)


# Words in the name of a run → the data set that the paper pretrained on
_UPSTREAMS = {"jft300m": "JFT-300M", "i21k": "ImageNet-21k", "imagenet21k": "ImageNet-21k"}
_DOWNSTREAMS = ("imagenet", "cifar100", "cifar10", "pets", "flowers")


def published_for(settings: Mapping[str, Any], source: str) -> str | None:
    """The paper's result for a fine-tuning, or None if it has none.

    Args:
        settings: of the fine-tuning, by dotted key.
        source: what it started from; the upstream set is read from its name, as our configs name runs.
    """
    upstream = next((name for word, name in _UPSTREAMS.items() if word in source.lower()), None)
    words = re.findall(r"[a-z0-9]+", f"{settings.get('data.shards')} {settings.get('name')}".lower())
    dataset = next((name for name in _DOWNSTREAMS if name in words), None)
    model = f"{settings.get('model.variant')} {upstream}"
    if dataset == "imagenet" and settings.get("model.img_size") == 384:
        value = _TABLE_5_IMAGENET_384.get(model)
        return None if value is None else f"{value:.2f} (Table 5)"
    found = (row for row in published(dataset or "") if row.model == model)
    return next((f"{row.value:.2f} ± {row.spread:.2f} (Table 2)" for row in found), None)

"""Published transfer results, to stand beside ours."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Top-1 accuracy in per cent: the mean of three runs, and its spread where it was given."""

    dataset: str
    model: str
    value: float
    spread: float | None
    source: str


_MODELS = ("H/14 JFT-300M", "L/16 JFT-300M", "L/16 ImageNet-21k")
# Source: ViT (2010.11929), Table 2; per data set the three models above: (mean, spread).
_TABLE_2 = {
    "imagenet": ((88.55, 0.04), (87.76, 0.03), (85.30, 0.02)),
    "imagenet_real": ((90.72, 0.05), (90.54, 0.03), (88.62, 0.05)),
    "cifar10": ((99.50, 0.06), (99.42, 0.03), (99.15, 0.03)),
    "cifar100": ((94.55, 0.04), (93.90, 0.05), (93.25, 0.05)),
    "pets": ((97.56, 0.03), (97.32, 0.11), (94.67, 0.15)),
    "flowers": ((99.68, 0.02), (99.74, 0.00), (99.61, 0.02)),
    "vtab": ((77.63, 0.23), (76.28, 0.46), (72.72, 0.21)),
}
PUBLISHED = tuple(
    Published(dataset, model, value, spread, "2010.11929, Table 2")
    for dataset, row in _TABLE_2.items()
    for model, (value, spread) in zip(_MODELS, row, strict=True)
)


def published(dataset: str) -> tuple[Published, ...]:
    """The published results on a data set, by the name of its config."""
    return tuple(row for row in PUBLISHED if row.dataset == dataset)

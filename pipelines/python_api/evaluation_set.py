"""Every image of a set once, in its order and without augmentation, for the evaluation in any training loop.

Legend: B images per batch · H, W pixels · K classes · D numbers of a vector · N images of the set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

from pydantic import Field
from torch import Tensor

from pipelines.python_api.sets import check_share, open_set, target_of
from pretrain.config.loader import load_settings
from pretrain.config.schema.base import Strict
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.data.batch import to_model_input
from pretrain.data.images.augment import EvalTransform
from pretrain.data.storage.tally import FaultLog
from pretrain.data.workers.dataset import EvalDataset, Failure, Share
from pretrain.data.workers.processes import loader

PREFETCH = 2


class _Settings(Strict):
    """The settings that are written as in an experiment's section ``data``."""

    eval_transform: EvalTransformConfig = Field(default_factory=EvalTransformConfig, description="See docs/config.md.")


class EvaluationSet:
    """Batches ``(images, target)`` of every readable image of a set, once, like a ``DataLoader`` without shuffling.

    Each ``for`` starts from the beginning. Rank r of R yields the images i with i mod R = r, in as many batches as
    every other rank; the last ones may be smaller, and with fewer images than ranks one may be empty.

    Args:
        source: the folder or address of a packed split, or a folder ``CLASS/image``, also below folders of splits.
        batch_size: B, images per batch and rank.
        img_size: pixels, or (height, width).
        eval_transform: resize and crop, as in a config: ``{"resize": "short_side", "crop_ratio": 0.9}``.
        mean: subtracted from pixels in [0, 1].
        std: the pixels are divided by it after that.
        split: of a folder with folders of splits; a packed split has no other one.
        num_workers: data processes; 0: this one.
        rank: this rank of ``world_size``.
        world_size: ranks, which read different images.
        max_bad_rate: largest fraction of unreadable images, which are left out and counted.

    Attributes:
        class_names: in index order.
        num_classes: K, or D for vectors.
        num_samples: N.
        faults: unreadable images so far, by file and reason.
        notes: on how a folder was read, and what of it is not used.

    Raises:
        ConfigError: a wrong setting. DataError: no readable set there.
    """

    # many: what the user of a DataLoader sets, with defaults
    def __init__(
        self,
        source: str,
        batch_size: int,
        *,
        img_size: int | tuple[int, int] = 224,
        eval_transform: Mapping[str, Any] | None = None,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        split: str = "val",
        num_workers: int = 2,
        rank: int = 0,
        world_size: int = 1,
        max_bad_rate: float = 0.01,
    ) -> None:
        check_share(batch_size, rank, world_size, num_workers)
        found = open_set(str(source), split)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        transform = EvalTransform(_transform(eval_transform), height, width)
        self._dataset = EvalDataset(found.reader, transform, Share(rank, world_size, batch_size))
        self._mean, self._std, self._num_workers = tuple(mean), tuple(std), num_workers
        self.class_names, self.notes = found.class_names, found.notes
        self.num_classes, self.num_samples = found.reader.table.num_classes, found.reader.table.num_samples
        self.faults = FaultLog(self.num_samples, max_bad_rate)

    def __len__(self) -> int:
        """Number of batches, the same on every rank."""
        return len(self._dataset)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of this rank.

        Yields:
            images: float32 (B, 3, H, W), normalised.
            target: as ``ImageStream`` yields it.

        Raises:
            DataError: a shard cannot be read, or too many images are unreadable.
        """
        num_workers = min(self._num_workers, len(self))
        made = loader(self._dataset, range(len(self)), num_workers=num_workers, prefetch_factor=PREFETCH)
        with closing(made):
            for batch in made:
                if isinstance(batch, Failure):
                    raise batch.error
                self.faults.add(batch.faults)
                images, target = to_model_input(batch.images, self._mean, self._std), target_of(batch, self.num_classes)
                yield images[batch.valid], target[batch.valid]


def _transform(settings: Mapping[str, Any] | None) -> EvalTransformConfig:
    words = [] if settings is None else [f"eval_transform={json.dumps(dict(settings))}"]
    return load_settings(words, _Settings).eval_transform

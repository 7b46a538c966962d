"""An endless stream of augmented training batches, of a packed set or of a folder of images, for any training loop.

Legend: B images per batch · H, W pixels · K classes · D numbers of a vector · M largest number of labels of an image ·
    N images of the set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

from pydantic import Field
from torch import Tensor

from pipelines.python_api.sets import check_share, open_set, target_of
from pretrain.config.batches import Batches
from pretrain.config.loader import load_settings
from pretrain.config.schema.base import Strict
from pretrain.config.schema.transforms import AnyTrainTransform, InceptionConfig
from pretrain.data.batch import to_model_input
from pretrain.data.images.augment import TrainTransform
from pretrain.data.order.order import check_world
from pretrain.data.storage.tally import FaultLog
from pretrain.data.stream import MicroSteps
from pretrain.data.workers.dataset import Failure, Share, TrainDataset
from pretrain.data.workers.processes import loader
from pretrain.errors import ConfigError

FORMAT = 1
PREFETCH = 2


class _Settings(Strict):
    """The settings that are written as in an experiment's section ``data``."""

    train_transform: AnyTrainTransform = Field(default_factory=InceptionConfig, description="See docs/config.md.")


class ImageStream:
    """Batches ``(images, target)`` in an order that is a function of the seed, like a ``DataLoader``.

    ``for`` yields the rest of the current epoch, ``len`` batches if none of it was drawn; the next ``for`` continues
    with the next one. All draws are of one endless order, so an epoch leaves out fewer images than a batch, and other
    ones each time. The order and the augmentation depend on neither the workers nor, with equal ``batch_size *
    world_size``, on the number of ranks.

    Args:
        source: the folder or address of a packed split, or a folder ``CLASS/image``, also below folders of splits.
        batch_size: B, images per batch and rank; even.
        img_size: pixels, or (height, width).
        train_transform: crop and augmentation, as in a config: ``{"crop": "inception", "randaugment": …}``.
        mean: subtracted from pixels in [0, 1].
        std: the pixels are divided by it after that.
        split: of a folder with folders of splits; a packed split has no other one.
        seed: determines order and augmentation.
        num_workers: data processes; 0: this one.
        rank: this rank of ``world_size``.
        world_size: ranks, which draw different images.
        max_bad_rate: largest fraction of unreadable images, each of which is replaced by the next one and counted.

    Attributes:
        class_names: in index order.
        num_classes: K, or D for vectors.
        num_samples: N.
        faults: unreadable images so far, by file and reason.
        notes: on how a folder was read, and what of it is not used.

    Raises:
        ConfigError: a wrong setting, or a batch that cannot be drawn. DataError: no readable set there.
    """

    # many: what the user of a DataLoader sets, with defaults
    def __init__(
        self,
        source: str,
        batch_size: int,
        *,
        img_size: int | tuple[int, int] = 224,
        train_transform: Mapping[str, Any] | None = None,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        split: str = "train",
        seed: int = 0,
        num_workers: int = 2,
        rank: int = 0,
        world_size: int = 1,
        max_bad_rate: float = 0.01,
    ) -> None:
        check_share(batch_size, rank, world_size, num_workers)
        self._seed, self._num_workers = seed, num_workers
        self._batch_size, self._global_batch_size = batch_size, batch_size * world_size
        self._share = Share(rank, world_size, batch_size)
        self._set = open_set(str(source), split, self._global_batch_size)
        self._order = self._set.order(self._global_batch_size, seed)
        check_world(self._global_batch_size, self._order.lanes, world_size)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self._mean, self._std = tuple(mean), tuple(std)
        self._transform = TrainTransform(_transform(train_transform), height, width, seed, mean)
        self._made = json.dumps([seed, self._global_batch_size, self._set.digest])
        self._batches = 0
        self.class_names, self.notes = self._set.class_names, self._set.notes
        self.num_classes, self.num_samples = self._set.reader.table.num_classes, self._set.reader.table.num_samples
        self.faults = FaultLog(self.num_samples, max_bad_rate)

    def __len__(self) -> int:
        """Batches of an epoch; at least 1."""
        return max(1, self.num_samples // self._global_batch_size)

    @property
    def epoch(self) -> int:
        """Complete epochs so far."""
        return self._batches // len(self)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The rest of the epoch.

        Yields:
            images: float32 (B, 3, H, W), normalised.
            target: int64 (B,); for images with several labels float32 (B, K) of zeros and ones; for vectors float32
                (B, D); for masks int64 (B, H, W), with 255 for pixels without a class.

        Raises:
            DataError: a shard cannot be read, or too many images are unreadable.
        """
        left = len(self) - self._batches % len(self)
        steps = MicroSteps(
            self._batches * self._global_batch_size,
            left,
            batches=Batches.constant(self._global_batch_size, (self._transform.height, self._transform.width)),
            share=self._share,
            first_step=self._batches,
        )
        dataset = TrainDataset(self._set.drawn_from(), self._order, self._transform, self._share)
        made = loader(dataset, steps, num_workers=min(self._num_workers, left), prefetch_factor=PREFETCH)
        with closing(dataset), closing(made):
            for batch in made:
                if isinstance(batch, Failure):
                    raise batch.error
                self.faults.add(batch.faults)
                self._batches += 1  # before the batch is used: a state that is taken then counts it
                yield to_model_input(batch.images, self._mean, self._std), target_of(batch, self.num_classes)

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream after the last batch that was yielded."""
        return {"format": FORMAT, "batches": self._batches, "made_of": self._made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues exactly after the batch at which ``state`` was taken.

        Raises:
            ConfigError: the state is of another set, seed, or number of images per batch of all ranks.
        """
        if state.get("format") != FORMAT:
            raise ConfigError(f"the state of a stream has format {FORMAT}, this one has {state.get('format')}")
        if state["made_of"] != self._made:
            names = ("seed", "batch_size × world_size", "the set")
            pairs = zip(names, json.loads(state["made_of"]), json.loads(self._made), strict=True)
            other = ", ".join(f"{name} (saved {old}, now {new})" for name, old, new in pairs if old != new)
            raise ConfigError(f"the state belongs to another stream: {other}; create the stream as it was")
        self._batches = int(state["batches"])


def _transform(settings: Mapping[str, Any] | None) -> Any:
    words = [] if settings is None else [f"train_transform={json.dumps(dict(settings))}"]
    transform = load_settings(words, _Settings).train_transform
    if transform.sequence_lengths:
        raise ConfigError(
            f"train_transform.crop: {transform.crop} keeps every image's aspect ratio, but the batches of an "
            "ImageStream are images of one size; use another crop"
        )
    return transform

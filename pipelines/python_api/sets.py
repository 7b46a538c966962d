"""The sets that the streams read: a packed split, or a folder of images as it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.sources.folder import FolderSource
from pretrain.config.schema.cluster import AutoClusterConfig
from pretrain.data.batch import Batch
from pretrain.data.order.mixture import Mixture, Part, Selection
from pretrain.data.order.order import Order, resolve_lanes
from pretrain.data.storage.index import TABLE_FILE
from pretrain.data.storage.location import Location
from pretrain.data.storage.packed_set import open_packed
from pretrain.data.storage.records import PADDING_LABEL
from pretrain.data.workers.files import FileReader
from pretrain.data.workers.reader import MixedReader, ShardReader
from pretrain.errors import ConfigError, DataError
from pretrain.files import digest

SHUFFLE_WINDOW = 8192  # as data.shuffle_window


@dataclass(frozen=True)
class ImageSet:
    """A set of images.

    Attributes:
        location: of a packed split, or the folder.
        reader: sample id → bytes and labels.
        sizes: samples of each shard, which are drawn together; int64.
        class_names: in index order.
        digest: of what is read.
        notes: on how a folder was read, and what of it is not used.
    """

    location: str
    reader: ShardReader | FileReader
    sizes: NDArray[np.int64]
    class_names: tuple[str, ...]
    digest: str
    notes: tuple[str, ...] = ()

    def drawn_from(self) -> MixedReader | FileReader:
        """The reader of a training stream, which replaces unreadable images."""
        reader = self.reader
        return reader if isinstance(reader, FileReader) else MixedReader([reader], [0], [self.location])

    def order(self, global_batch_size: int, seed: int) -> Mixture:
        """Position → sample ids.

        Raises:
            ConfigError: the batch is odd, or larger than the set allows.
        """
        lanes = resolve_lanes(global_batch_size, "auto", int(self.sizes.sum()))
        order = Order(self.sizes, seed=seed, global_batch_size=global_batch_size, lanes=lanes, window=SHUFFLE_WINDOW)
        return Mixture([Part(order, Selection(self.sizes))], seed=seed)


def check_share(batch_size: int, rank: int, world_size: int, num_workers: int) -> None:
    """Raises ConfigError for numbers that make no share of a set."""
    if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size or num_workers < 0:
        raise ConfigError(
            f"batch_size {batch_size}, rank {rank}, world_size {world_size}, num_workers {num_workers}: batch_size "
            "and world_size are at least 1, 0 ≤ rank < world_size, num_workers is at least 0"
        )


def open_set(source: str, split: str, global_batch_size: int | None = None) -> ImageSet:
    """Opens a packed split where there is one, else a folder of images.

    Args:
        source: path or address.
        split: of a folder with folders of splits.
        global_batch_size: B of all ranks of a training stream; None: the set is read in sequence.

    Raises:
        DataError: no readable set there, or the folder has no such split.
        ConfigError: B is odd, or larger than the set allows.
    """
    is_folder = Path(source).is_dir() and not (Path(source) / TABLE_FILE).is_file()
    if is_folder and not any(Path(source).glob("*.tar")):
        return _folder(Path(source), split)
    if not Location.parse(source).is_remote and not Path(source).exists():
        raise DataError(f"{source} does not exist: give a packed split, or a folder with one folder per class")
    return _packed(source, global_batch_size)


def _packed(source: str, global_batch_size: int | None) -> ImageSet:
    cluster = AutoClusterConfig()
    packed = open_packed(source, cluster, allow_pipe=False)
    packed.check_files()
    table = packed.table
    names = tuple(name for _, name in packed.classes)
    lanes = 1 if global_batch_size is None else resolve_lanes(global_batch_size, "auto", table.num_samples)
    reader = ShardReader(table, packed.store(cluster, lanes))
    return ImageSet(str(packed.location), reader, table.sizes, names, table.digest)


def _folder(root: Path, split: str) -> ImageSet:
    listed = FolderSource(root)
    items = listed.items()
    chosen = [item for item in items if item.split == split]
    if not chosen:
        splits = ", ".join(sorted({item.split for item in items}))
        raise DataError(f"{root} has no split {split!r}; it has {splits}")
    names, labels = [item.key for item in chosen], [item.labels for item in chosen]
    reader = FileReader(root, names, labels, len(listed.classes))
    # Files in the order of their classes; with one to a "shard", every epoch shuffles all of them.
    sizes = np.ones(len(chosen), dtype=np.int64)
    made_of = digest(json.dumps([[item.key, item.num_bytes, item.labels] for item in chosen]).encode())
    names_of_classes = tuple(name for _, name in listed.classes)
    notes = (f"splits: {listed.split_rule}", *listed.notes, *listed.ledger.lines())
    return ImageSet(str(root), reader, sizes, names_of_classes, made_of, notes)


def target_of(batch: Batch, num_classes: int) -> Tensor:
    """The target of each image of a batch.

    Returns:
        int64 (B,); for images with several labels float32 (B, K) of zeros and ones; for vectors float32 (B, D); for
        masks int64 (B, H, W), with 255 for pixels without a class.
    """
    if batch.targets is not None:
        return batch.targets.long() if batch.targets.dtype == torch.uint8 else batch.targets
    if batch.labels.shape[1] == 1:
        return batch.labels[:, 0]
    hot = torch.zeros(len(batch), num_classes + 1)
    labels = torch.where(batch.labels == PADDING_LABEL, num_classes, batch.labels)
    return hot.scatter_(1, labels, 1.0)[:, :num_classes]

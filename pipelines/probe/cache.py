"""Features on disk: computed once for given weights, images and transform, then reused bit for bit.

FOLDER/KEY/values.npy   fp32 (N, D)      FOLDER/KEY/valid.npy   bool (N,), False = the image could not be read
FOLDER/KEY/about.json   the inputs of the key and the digest of the values; an entry is complete or absent

Legend: N images · D width of the features · M most labels of an image · b images in a micro-batch · R ranks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from pipelines.weights.network import Frozen
from pipelines.weights.ranks import batches_of
from pretrain.config.schema.cluster import AutoClusterConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.data.images.augment import EvalTransform
from pretrain.data.images.opening import READING
from pretrain.data.storage.index import ShardTable, read_labels
from pretrain.data.storage.packed_set import PackedSet
from pretrain.data.storage.records import PADDING_LABEL
from pretrain.data.workers.dataset import NO_SAMPLE, EvalDataset, Share
from pretrain.data.workers.reader import ShardReader
from pretrain.distributed.collectives import broadcast_object, raise_together
from pretrain.distributed.rank import Rank
from pretrain.errors import DataError, SetupError
from pretrain.evaluation.features import Features, own_features
from pretrain.files import TEMPORARY_SUFFIX, digest, file_digest, sync, write_atomic
from pretrain.redaction import redacted_in

FORM = 1  # raise it when features are computed differently


@dataclass(frozen=True)
class FeatureCache:
    """Where features are kept, and how missing ones are computed.

    Attributes:
        folder: one folder in it per entry.
        frozen: the model.
        rank: this process.
        micro_batch_size: b.
        num_workers: data processes.
        say: one line for the user.
    """

    folder: Path
    frozen: Frozen
    rank: Rank
    micro_batch_size: int
    num_workers: int
    say: Callable[[str], None]
    _opened: dict[str, CachedSet] = field(default_factory=dict)

    @cached_property
    def model(self) -> dict[str, Any]:
        """The model's part of the key."""
        about = self.frozen.metadata
        return {
            "weights": digest(json.dumps(self.frozen.digests(), sort_keys=True).encode()),
            "config": about.model.model_dump(mode="json", exclude_defaults=True),
            "precision": [about.precision, about.tf32],
            "img_size": about.img_size,
            "mean": about.mean,
            "std": about.std,
            "device": self.frozen.device.type,
        }

    def features(self, packed: PackedSet, transform: EvalTransformConfig) -> CachedSet:
        """A set's features with a transform; nothing is computed before it is needed."""
        name = f"{packed.location} {transform.model_dump_json()}"
        return self._opened.setdefault(name, CachedSet(self, packed, transform))


@dataclass(frozen=True)
class CachedSet:
    """Features of a set, or of some of its samples (``evaluation.features.FeatureSet``).

    Attributes:
        cache: where they are kept.
        packed: the set.
        transform: how its images are made.
        sample_ids: int64 (N,), rising; None: all.
    """

    cache: FeatureCache
    packed: PackedSet
    transform: EvalTransformConfig
    sample_ids: NDArray[np.int64] | None = None

    @property
    def shards(self) -> str:
        """See ``FeatureSet``."""
        return str(self.packed.location)

    @property
    def table(self) -> ShardTable:
        """See ``FeatureSet``."""
        return self.packed.table

    def only(self, sample_ids: NDArray[np.int64]) -> CachedSet:
        """See ``FeatureSet.only``."""
        return replace(self, sample_ids=np.unique(sample_ids))

    def own(self) -> Iterator[Features]:
        """See ``FeatureSet.own``."""
        values, valid = self._arrays
        size, rank = self.cache.micro_batch_size, self.cache.rank
        per_rank = -(-len(self._ids) // rank.world)
        for first in range(0, per_rank, size):
            places = (first + np.arange(size)) * rank.world + rank.rank
            yield self._rows(values, valid, places).to(self.cache.frozen.device)

    def whole(self) -> Features:
        """See ``FeatureSet.whole``."""
        values, valid = self._arrays
        return self._rows(values, valid, np.flatnonzero(valid))

    def _rows(self, values: NDArray[np.float32], valid: NDArray[np.bool_], places: NDArray[np.int64]) -> Features:
        """The features of some rows; an index past the last row is padding."""
        inside = places < len(valid)
        kept = places[inside]
        labels = np.full((len(places), self._labels.shape[1]), PADDING_LABEL, np.int64)
        ids = np.full(len(places), NO_SAMPLE, np.int64)
        found = np.zeros((len(places), values.shape[1]), np.float32)
        real = np.zeros(len(places), bool)
        found[inside], real[inside], ids[inside] = values[kept], valid[kept], self._ids[kept]
        labels[inside] = self._labels[self._ids[kept]]
        return Features(*(torch.from_numpy(array) for array in (found, labels, ids, real)))

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        return read_labels(self.table)

    @cached_property
    def _ids(self) -> NDArray[np.int64]:
        return np.arange(self.table.num_samples) if self.sample_ids is None else self.sample_ids

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The entry's values and which of them are valid; computed if they are not on disk. Collective: yes."""
        folder, rank, say = self.cache.folder / self._key, self.cache.rank, self.cache.say
        what = f"features of {len(self._ids):,} images of {self.shards}"
        if broadcast_object(rank.is_main and _is_whole(folder, say)):
            say(f"{what}: as kept in {folder}")
        else:
            self._compute(folder)
            say(f"{what}: computed, kept in {folder}")
        problem = None
        if not (folder / "about.json").is_file():
            problem = SetupError(
                f"{folder} is not seen on {rank.host}: --cache DIR must be a folder that all nodes see"
            )
        raise_together(problem, doing="reading features")
        values, valid = np.load(folder / "values.npy", mmap_mode="r"), np.load(folder / "valid.npy")
        if not valid.any():
            raise DataError(f"{self.shards}: none of its {len(valid):,} images could be read")
        if num_bad := int((~valid).sum()):
            say(f"note: {num_bad:,} images of {self.shards} could not be read and do not count")
        return values, valid

    @cached_property
    def _key(self) -> str:
        return digest(json.dumps(self._about, sort_keys=True).encode())

    @cached_property
    def _about(self) -> dict[str, Any]:
        some = None if self.sample_ids is None else digest(self.sample_ids.tobytes())
        return {
            "form": FORM,
            "model": self.cache.model,
            "set": self.table.digest,
            "samples": some,
            "transform": self.transform.model_dump(mode="json"),
            "reading": READING,
        }

    def _compute(self, folder: Path) -> None:
        """Rank 0 writes what all ranks compute. Collective: yes."""
        cache, doing = self.cache, f"features of {self.shards}"
        writer = _Writer(folder, self._ids) if cache.rank.is_main else None
        with closing(batches_of(self._dataset(), cache.rank, cache.num_workers, doing)) as batches:
            for part in own_features(cache.frozen, batches):
                gathered = part.gathered().to("cpu")
                if writer is not None:
                    writer.add(gathered)
        error = None
        if writer is not None:
            try:
                writer.finish({"shards": self.shards, **self._about})
            except OSError as problem:
                error = SetupError(f"{folder} cannot be written ({problem}); name another folder: --cache DIR")
        raise_together(error, doing="writing features")

    def _dataset(self) -> EvalDataset:
        height, width = self.cache.frozen.metadata.img_size
        return EvalDataset(
            ShardReader(self.table, self.packed.store(AutoClusterConfig(), 1)),
            EvalTransform(self.transform, height, width),
            Share(self.cache.rank.rank, self.cache.rank.world, self.cache.micro_batch_size),
            self.sample_ids,
        )


class _Writer:
    """An entry under construction: a folder that is renamed when it is complete."""

    def __init__(self, folder: Path, ids: NDArray[np.int64]) -> None:
        self._folder, self._ids = folder, ids
        self._temporary = folder.with_name(f"{folder.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
        self._values: NDArray[np.float32] | None = None
        self._valid = np.zeros(len(ids), bool)

    def add(self, part: Features) -> None:
        """Takes the features of some images, in any order."""
        if self._values is None:
            self._values = self._new(part.values.shape[1])
        real = part.valid.numpy()
        places = np.searchsorted(self._ids, part.sample_ids.numpy()[real])
        self._values[places], self._valid[places] = part.values.numpy()[real], True

    def _new(self, width: int) -> NDArray[np.float32]:
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
            needed, free = 4 * width * len(self._ids), shutil.disk_usage(self._temporary).free
            if needed > free:
                raise OSError(f"{needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free")
            return open_memmap(
                self._temporary / "values.npy", mode="w+", dtype=np.float32, shape=(len(self._ids), width)
            )
        except OSError as error:
            raise SetupError(
                f"{self._folder.parent} cannot hold features ({error}); name another: --cache DIR"
            ) from error

    def finish(self, about: dict[str, Any]) -> None:
        """Publishes the entry."""
        assert self._values is not None, "every set has a batch"
        self._values.flush()  # type: ignore[attr-defined]
        self._values = None
        np.save(self._temporary / "valid.npy", self._valid)
        sync(self._temporary / "values.npy")
        sync(self._temporary / "valid.npy")
        about = {**about, "values_digest": file_digest(self._temporary / "values.npy")}
        write_atomic(self._temporary / "about.json", json.dumps(redacted_in(about), indent=1))
        if self._folder.exists():  # a damaged entry, or another process has just published the same one
            shutil.rmtree(self._folder)
        os.rename(self._temporary, self._folder)
        sync(self._folder.parent)


def _is_whole(folder: Path, say: Callable[[str], None]) -> bool:
    try:
        about = json.loads((folder / "about.json").read_bytes())
        if file_digest(folder / "values.npy") == about["values_digest"]:
            return True
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError):
        pass
    say(f"note: the features in {folder} are damaged; they are computed again")
    return False

"""Frozen features: what the last layer of a model sees, from shards, on any number of ranks.

Legend: B images · N images of a set · D width of the features · M most labels of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.distributed.collectives import all_gather_rows
from pretrain.models.families.registry import classifier_layers


@dataclass(frozen=True)
class Features:
    """Features of some images with their labels.

    Attributes:
        values: fp32 (N, D).
        labels: int64 (N, M), padded with −1.
        sample_ids: int64 (N,).
        valid: bool (N,), False = padding.
    """

    values: Tensor
    labels: Tensor
    sample_ids: Tensor
    valid: Tensor

    def gathered(self) -> Features:
        """Those of all ranks behind each other. Collective: equal shapes on all ranks."""
        return Features(
            all_gather_rows(self.values),
            all_gather_rows(self.labels),
            all_gather_rows(self.sample_ids),
            all_gather_rows(self.valid.to(torch.uint8)).bool(),
        )

    def to(self, device: torch.device | str) -> Features:
        """The same on ``device``."""
        return Features(
            self.values.to(device), self.labels.to(device), self.sample_ids.to(device), self.valid.to(device)
        )


class HeadInput(AbstractContextManager["HeadInput"]):
    """Listens to what a model's last layers are given; of several (DeiT's two heads) it takes the mean.

    The model is called as in training, through the engine, so that sharded weights are gathered as always.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = classifier_layers(model)
        self._seen: list[Tensor] = []

    def __enter__(self) -> HeadInput:
        self._handles = [layer.register_forward_pre_hook(self._listen) for layer in self._layers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _listen(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._seen.append(inputs[0].detach().float().flatten(1))

    def take(self) -> Tensor:
        """Features of the images of the last call, fp32 (B, D)."""
        assert len(self._seen) == len(self._layers), "each head is called once"
        taken, self._seen = torch.stack(self._seen).mean(0), []
        return taken


class FrozenModel(Protocol):
    """A model that is asked for features: ``evaluation.context.Context``, or one that a stage has read."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    def logits(self, batch: Batch) -> Tensor:
        """Logits of a batch on the device; calls ``model``."""
        ...


@torch.no_grad()
def own_features(frozen: FrozenModel, stream: Iterable[Batch]) -> Iterator[Features]:
    """Features of this rank's share, batch by batch, on the device. Collective: at ZeRO-3."""
    with HeadInput(frozen.model) as head_input:
        for batch in stream:
            batch = batch.to(frozen.device)
            frozen.logits(batch)
            yield Features(head_input.take(), batch.labels, batch.sample_ids, batch.valid)


def joined(parts: list[Features]) -> Features:
    """Batches behind each other, without their padding."""
    kept = [(part.values, part.labels, part.sample_ids, part.valid) for part in parts]
    values, labels, sample_ids, valid = (torch.cat(column) for column in zip(*kept, strict=True))
    return Features(values[valid], labels[valid], sample_ids[valid], valid[valid])


def all_features(frozen: FrozenModel, stream: Iterable[Batch]) -> Features:
    """Features of the whole set in the order of the sample ids, on the host of every rank. Collective: yes."""
    found = joined([part.gathered().to("cpu") for part in own_features(frozen, stream)])
    order = torch.argsort(found.sample_ids)
    return Features(found.values[order], found.labels[order], found.sample_ids[order], found.valid[order])

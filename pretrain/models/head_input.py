"""The features of a model of any family: what its last layers receive.

Legend: B images · D width of the features.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.models.families.registry import classifier_layers


class HeadInput(AbstractContextManager["HeadInput"]):
    """Records the input of a model's last layers; of several (DeiT's two heads) it takes the mean.

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

"""Costs of a timm backbone, measured on the meta device: shapes only, no memory and no arithmetic.

The closed forms of ``cost.py`` cover only our Vision Transformer. Here a model is run with tensors without values while
torch counts its operations and the live storages. The rest (optimiser, ZeRO) is as in ``cost.py``.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config.schema.model import ModelConfig
from pretrain.models.families.timm_backbone import build_timm, head_tensors
from pretrain.models.footprint import Footprint, Precision

_CHANNELS = 3


def num_parameters(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Parameters of the backbone; without the head those of its last layer do not count."""
    sizes = _sizes(model.model_dump_json(), num_classes)
    return sizes.total if with_head else sizes.total - sizes.head


class Sizes(NamedTuple):
    """Numbers of parameters: all, those of the last layer, and those of the largest layer."""

    total: int
    head: int
    largest: int


@functools.lru_cache(maxsize=64)
def _sizes(key: str, num_classes: int) -> Sizes:
    net = meta_model(ModelConfig.model_validate_json(key), num_classes)
    counts = {name: parameter.numel() for name, parameter in net.named_parameters()}
    largest = max(sum(parameter.numel() for parameter in layer.parameters(recurse=False)) for layer in net.modules())
    return Sizes(sum(counts.values()), sum(counts[name] for name in head_tensors(net)), largest)


@functools.lru_cache(maxsize=64)
def _forward_flops(key: str, num_classes: int) -> int:
    model = ModelConfig.model_validate_json(key)
    net = meta_model(model, num_classes).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(_images(model, 1))
    return counter.get_total_flops()


def forward_macs(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Multiply-adds of the matrix products and convolutions in one image's forward pass, attention included."""
    key = model.model_dump_json()
    macs = _forward_flops(key, num_classes) // 2
    if with_head:
        return macs
    return macs - num_classes * (_forward_flops(key, num_classes + 1) // 2 - macs)  # each class costs the same


def activation_bytes(model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none") -> int:
    """Peak bytes that an additional image needs in a forward and backward pass, excluding gradients of weights.

    On the meta device attention is computed with its matrix of weights, so that models with much of it need less on a
    GPU (a ViT-B/16 about a seventh in fp32, a third in bf16). Autocast is treated as fp32, an upper bound: torch
    does not support autocast on the meta device.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return _bytes_per_image(model.model_dump_json(), num_classes, dtype, checkpointing)


@functools.lru_cache(maxsize=64)
def _bytes_per_image(key: str, num_classes: int, dtype: torch.dtype, checkpointing: str) -> int:
    model = ModelConfig.model_validate_json(key)
    net = meta_model(model, num_classes).to(dtype).train()
    net.set_grad_checkpointing(checkpointing)  # type: ignore[operator]
    first = next(net.parameters())

    def peak(num_images: int) -> int:
        images = _images(model, num_images)
        with LiveBytes() as live:
            torch.autograd.grad(net(images).sum(), first)
        return live.peak

    return peak(3) - peak(2)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live storages that operations create; ``peak`` is the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation and counts the storages that it creates."""
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        size = self._seen[storage] = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size


def footprint(model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none") -> Footprint:
    """The numbers of the model that decide its memory; ``kept`` includes the working memory of the backward pass."""
    parameters, _, largest = _sizes(model.model_dump_json(), num_classes)
    return Footprint(
        parameters=parameters,
        largest_unit=largest,
        kept=activation_bytes(model, num_classes, precision=precision, checkpointing=checkpointing),
        working=0,
        copies=2 * parameters if precision == "autocast" else 0,
    )


def recomputed_macs(model: ModelConfig, checkpointing: str) -> int:
    """Multiply-adds per image that the backward pass recomputes: with ``full`` about a forward pass."""
    return forward_macs(model, 1) if checkpointing == "full" else 0


def meta_model(model: ModelConfig, num_classes: int) -> nn.Module:
    """The backbone on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return build_timm(model, num_classes)


def _images(model: ModelConfig, num_images: int) -> Tensor:
    return torch.empty(num_images, _CHANNELS, *model.size, device="meta")

"""Costs of a network that has no closed form, measured on the meta device: shapes only, no memory, no arithmetic.

The closed forms of ``cost.py`` cover only our Vision Transformer. Here a network is run with tensors without values
while torch counts its operations and the live storages. The rest (optimiser, ZeRO) is as in ``cost.py``.

Legend: K classes.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config.schema.model import ModelConfig
from pretrain.models.families.live_bytes import LiveBytes
from pretrain.models.families.protocol import Footprint, Precision

_CHANNELS = 3
Network = Callable[[ModelConfig, int], nn.Module]


class Sizes(NamedTuple):
    """Numbers of parameters: all, those of the head, and those of the largest layer."""

    total: int
    head: int
    largest: int


class MeasuredCosts:
    """The costs of the models of a family; each is measured once per config.

    Args:
        network: the network of a config for K classes, on the meta device.
        head_tensors: names of the head's parameters.
    """

    def __init__(self, network: Network, head_tensors: Callable[[nn.Module], Collection[str]]) -> None:
        self.network, self._head_tensors = network, head_tensors
        self._sizes = functools.lru_cache(maxsize=64)(self._count)
        self._macs = functools.lru_cache(maxsize=64)(self._count_macs)
        self._bytes = functools.lru_cache(maxsize=64)(self._count_bytes)

    def num_parameters(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """Number of parameters."""
        sizes = self._sizes(model.model_dump_json(), num_classes)
        return sizes.total if with_head else sizes.total - sizes.head

    def forward_macs(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """Multiply-adds of the matrix products and convolutions in one image's forward pass, attention included."""
        key = model.model_dump_json()
        macs = self._macs(key, num_classes)
        if with_head:
            return macs
        return macs - num_classes * (self._macs(key, num_classes + 1) - macs)  # each class costs the same

    def weight_macs(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """Name of a dense or convolution weight → multiply-adds of its products in one image's forward pass."""
        net = self.network(model, num_classes).eval().requires_grad_(False)
        found: Counter[str] = Counter()

        def count(layer: Any, inputs: Any, output: Tensor, name: str) -> None:
            found[f"{name}.weight"] += output.numel() * layer.weight[0].numel()

        for name, layer in net.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
                layer.register_forward_hook(functools.partial(count, name=name))
        net(_images(model, 1))
        return dict(found)

    def recomputed_macs(self, model: ModelConfig, checkpointing: str) -> int:
        """Multiply-adds per image that the backward pass recomputes: about a forward pass, or a k-th of one."""
        if checkpointing == "full":
            return self.forward_macs(model, 1)
        every = checkpointing.removeprefix("every_")
        return self.forward_macs(model, 1) // int(every) if every != checkpointing else 0

    def footprint(
        self, model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none"
    ) -> Footprint:
        """See ``protocol.Footprint``; ``kept`` includes the working memory of the backward pass.

        On the meta device attention is computed with its matrix of weights, so that models with much of it need less
        on a GPU (a ViT-B/16 about a seventh in fp32, a third in bf16). Autocast is treated as fp32, an upper bound:
        torch does not support autocast on the meta device.
        """
        sizes = self._sizes(model.model_dump_json(), num_classes)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return Footprint(
            parameters=sizes.total,
            largest_unit=sizes.largest,
            kept=self._bytes(model.model_dump_json(), num_classes, dtype, checkpointing),
            working=0,
            copies=2 * sizes.total if precision == "autocast" else 0,
        )

    def cast_names(self, model: ModelConfig, num_classes: int) -> frozenset[str]:
        """Names of the parameters of layers whose class is one of these; a subclass may compute otherwise.

        Source: DeepSpeed 0.19, ``runtime/torch_autocast.py``, LOWER_PRECISION_SAFE_MODULES.
        """
        layers = self.network(model, num_classes).named_modules()
        return frozenset(
            f"{name}.{own}"
            for name, layer in layers
            if type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
            for own, _ in layer.named_parameters(recurse=False)
        )

    def running_statistics(self, model: ModelConfig, num_classes: int) -> tuple[str, ...]:
        """Means and variances of batch norms, and their counters."""
        net = self.network(model, num_classes)
        parameters = {name for name, _ in net.named_parameters()}
        return tuple(name for name in net.state_dict() if name not in parameters)

    def _count(self, key: str, num_classes: int) -> Sizes:
        net = self.network(ModelConfig.model_validate_json(key), num_classes)
        counts = {name: parameter.numel() for name, parameter in net.named_parameters()}
        largest = max(sum(each.numel() for each in layer.parameters(recurse=False)) for layer in net.modules())
        return Sizes(sum(counts.values()), sum(counts[name] for name in self._head_tensors(net)), largest)

    def _count_macs(self, key: str, num_classes: int) -> int:
        model = ModelConfig.model_validate_json(key)
        net = self.network(model, num_classes).eval().requires_grad_(False)  # else the counter's hooks need gradients
        with FlopCounterMode(display=False) as counter:
            net(_images(model, 1))
        return counter.get_total_flops() // 2

    def _count_bytes(self, key: str, num_classes: int, dtype: torch.dtype, checkpointing: str) -> int:
        """Peak bytes that an additional image needs in a forward and backward pass, without gradients of weights."""
        model = ModelConfig.model_validate_json(key)
        net = self.network(model, num_classes).to(dtype).train()
        net.set_grad_checkpointing(checkpointing)  # type: ignore[operator]
        first = next(parameter for parameter in net.parameters() if parameter.requires_grad)

        def peak(num_images: int) -> int:
            images = _images(model, num_images)
            with LiveBytes() as live:
                torch.autograd.grad(net(images).sum(), first)
            return live.peak

        return peak(3) - peak(2)


def _images(model: ModelConfig, num_images: int) -> Tensor:
    return torch.empty(num_images, _CHANNELS, *model.size, device="meta")

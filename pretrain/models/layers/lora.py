"""Dense layers with low-rank adapters, put into a built network of any family, and merged into its weights.

Source: LoRA (2106.09685), section 4.1: A random, B zero, so that training starts from the network as it is. The initial
values of A are peft's (uniform within ±√(1 / in), ``kaiming_uniform_`` with a = √5), drawn by name from the seed.

Legend: R rank · K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pretrain import seeds
from pretrain.config.schema.lora import LoraConfig
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.adapters import A, Adapters, B, adapters_of
from pretrain.models.families.registry import build_frozen


class LoraLinear(nn.Linear):
    """W x + b + scale · B A dropout(x). A built layer becomes one in place, so that W and b keep their names."""

    lora_A: nn.Linear
    lora_B: nn.Linear
    lora_dropout: nn.Module
    lora_scale: float

    def forward(self, input: Tensor) -> Tensor:
        """Maps (…, in) to (…, out)."""
        adapted = self.lora_B(self.lora_A(self.lora_dropout(input)))
        return super().forward(input) + adapted * self.lora_scale


def add_adapters(net: nn.Module, config: LoraConfig, seed: int) -> Adapters:
    """Adds adapters to an unsharded network on the CPU, and freezes all that ``Adapters.trained`` does not name.

    Raises:
        ConfigError: see ``adapters_of``; or a target is another kind of layer, or is never called.
    """
    model, num_classes = net.config, net.num_classes
    assert isinstance(model, ModelConfig) and isinstance(num_classes, int)
    adapters = adapters_of(model, num_classes, config)
    _refuse_bypassed(model, num_classes, adapters, config)
    _insert(net, adapters, config)
    _init(net, adapters, seed)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in adapters.trained)
    return adapters


def _insert(net: nn.Module, adapters: Adapters, config: LoraConfig) -> None:
    for name in adapters.layers:
        layer = net.get_submodule(name)
        if type(layer) is not nn.Linear:
            kind = type(layer).__name__
            raise ConfigError(
                f"optim.lora.targets: {name} is a {kind}, not torch's Linear; leave it out of the targets"
            )
        layer.__class__ = LoraLinear
        assert isinstance(layer, LoraLinear)
        options = {"bias": False, "dtype": layer.weight.dtype, "device": layer.weight.device}
        layer.lora_A = nn.Linear(layer.in_features, config.rank, **options)
        layer.lora_B = nn.Linear(config.rank, layer.out_features, **options)
        layer.lora_dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        layer.lora_scale = config.scale
    if config.dropout:
        net.uses_generator = True  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def _init(net: nn.Module, adapters: Adapters, seed: int) -> None:
    """A function of (seed, name), like every other initial value."""
    for layer in adapters.layers:
        generator = torch.Generator().manual_seed(seeds.integer_seed(seed, "init", layer + A))
        into = net.get_parameter(layer + A)
        bound = math.sqrt(1.0 / into.shape[1])
        into.copy_(torch.empty(into.shape).uniform_(-bound, bound, generator=generator))
        net.get_parameter(layer + B).zero_()


def _refuse_bypassed(model: ModelConfig, num_classes: int, adapters: Adapters, config: LoraConfig) -> None:
    """Raises ConfigError for a layer whose weight the network reads without calling the layer, as BEiT's qkv.

    Its adapter would have no effect. One image without values, on the meta device, shows which layers are called.
    """
    with torch.device("meta"):
        twin = build_frozen(model, num_classes)
        _insert(twin, adapters, config)
        called: set[str] = set()
        for name in adapters.layers:
            twin.get_submodule(name).register_forward_hook(lambda layer, inputs, output, name=name: called.add(name))
        with torch.no_grad():
            twin(torch.empty(1, 3, *model.size))
    bypassed = [name for name in adapters.layers if name not in called]
    if bypassed:
        raise ConfigError(
            f"optim.lora.targets: {model.name} reads the weight of {bypassed[0]} without calling the layer, so that "
            f"the adapters of {len(bypassed)} layers would be ignored; leave {bypassed[0].rpartition('.')[2]} out"
        )


@torch.no_grad()
def merged(tensors: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """The tensors of the network without adapters: W + scale · B A instead of W, fp32.

    Args:
        tensors: every parameter by name, adapters included, fp32 on the CPU.
        config: of the adapters.
    """
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith((A, B))}
    for name in tensors:
        if name.endswith(A):
            layer = name.removesuffix(A)
            change = tensors[layer + B] @ tensors[layer + A]
            plain[f"{layer}.weight"] = plain[f"{layer}.weight"] + config.scale * change
    return plain

"""Low-rank adapters by name: the layers that have them, the tensors that are trained. Does not import torch.

An adapted dense layer ``NAME`` has two further tensors, ``NAME.lora_A.weight`` (R, in) and ``NAME.lora_B.weight``
(out, R); its own weight and bias keep their names.

Legend: R rank · K classes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pretrain.config.schema.lora import LoraConfig
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.families.protocol import Shapes
from pretrain.models.families.registry import parameter_shapes

A, B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Adapters:
    """The tensors of a model with adapters.

    Attributes:
        shapes: name → shape of every parameter, adapters included, in the order of the model.
        layers: the adapted layers.
        trained: names of the parameters that are trained: adapters, head, and those of ``optim.lora.train``.
    """

    shapes: Shapes
    layers: tuple[str, ...]
    trained: frozenset[str]

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the parameters that keep their values."""
        return frozenset(self.shapes) - self.trained

    def layer_ids(self, of_weights: Mapping[str, int]) -> dict[str, int]:
        """Parameter name → layer, where an adapter is in the layer of its weight."""
        return {name: of_weights[name if name in of_weights else weight_of(name)] for name in self.shapes}


def weight_of(adapter: str) -> str:
    """Name of the weight that an adapter's tensor changes."""
    return f"{adapter.removesuffix(A).removesuffix(B)}.weight"


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return name.endswith((A, B))


def adapters_of(model: ModelConfig, num_classes: int, config: LoraConfig) -> Adapters:
    """The tensors of ``model`` with a head of K classes and the adapters of ``config``.

    Raises:
        ConfigError: a target is not a dense layer of the model, or a pattern of ``train`` finds nothing.
    """
    own = parameter_shapes(model, num_classes)
    head = {name for name, shape in parameter_shapes(model, num_classes + 1).items() if own[name] != shape}
    layers = _adapted(own, head, config)
    shapes: Shapes = {}
    names = list(own)
    for name, following in zip(names, [*names[1:], ""], strict=True):
        shapes[name] = own[name]
        layer = name.rpartition(".")[0]
        if layer in layers and following.rpartition(".")[0] != layer:  # after the layer's own tensors
            out, into = own[f"{layer}.weight"]
            shapes |= {layer + A: (config.rank, into), layer + B: (out, config.rank)}
    return Adapters(shapes, layers, frozenset(_trained(shapes, head, config)))


def _adapted(own: Shapes, head: Collection[str], config: LoraConfig) -> tuple[str, ...]:
    dense = [
        name.removesuffix(".weight")
        for name, shape in own.items()
        if name.endswith(".weight") and len(shape) == 2 and name not in head
    ]
    ends = list(dict.fromkeys(layer.rpartition(".")[2] for layer in dense))
    for target in config.targets:
        if target not in ends:
            raise ConfigError(
                f"optim.lora.targets: the model has no dense layer of the name {target}; it has {', '.join(ends)}"
            )
    return tuple(layer for layer in dense if layer.rpartition(".")[2] in config.targets)


def _trained(shapes: Shapes, head: Collection[str], config: LoraConfig) -> set[str]:
    trained = {name for name in shapes if is_adapter(name) or name in head}
    for pattern in config.train:
        found = {name for name in shapes if re.search(pattern, name)} - trained
        if not found:
            raise ConfigError(
                f"optim.lora.train: {pattern!r} would be ignored: it is in no name of a frozen parameter; correct it "
                "or remove it"
            )
        trained |= found
    return trained

"""Architectures by name: a new one is one function and one row here."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pretrain.config.schema import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.deit import DistilledVisionTransformer
from pretrain.models.masked import MaskedPatchTransformer
from pretrain.models.vit import build_vit



def _vit(model: ModelConfig, num_classes: int) -> nn.Module:
    if model.distilled:
        return DistilledVisionTransformer(model, num_classes)
    return MaskedPatchTransformer(model, num_classes) if model.mask_token else build_vit(model, num_classes)


MODELS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "vit": _vit,
}


def build_model(model: ModelConfig, num_classes: int) -> nn.Module:
    """Builds the architecture ``model.name`` with a head of ``num_classes``, on torch's default device.

    Raises:
        ConfigError: no such architecture, or an impossible one.
    """
    if model.name not in MODELS:
        raise ConfigError(f"model.name: unknown architecture {model.name!r}; known are {', '.join(MODELS)}")
    return MODELS[model.name](model, num_classes)

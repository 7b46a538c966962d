"""Architectures by name: a new one is one function and one row here."""

from __future__ import annotations

from collections.abc import Callable

from pretrain.config.schema import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.vit import VisionTransformer, build_vit

MODELS: dict[str, Callable[[ModelConfig, int], VisionTransformer]] = {
    "vit": build_vit,
}


def build_model(model: ModelConfig, num_classes: int) -> VisionTransformer:
    """Builds the architecture ``model.name`` with a head of ``num_classes``, on torch's default device.

    Raises:
        ConfigError: no such architecture, or an impossible one.
    """
    if model.name not in MODELS:
        raise ConfigError(f"model.name: unknown architecture {model.name!r}; known are {', '.join(MODELS)}")
    return MODELS[model.name](model, num_classes)

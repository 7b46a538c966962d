"""Architectures by name: a new one is one function and one row here.

``timm/NAME`` stands for every classifier of timm; timm is imported only where one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models import init, variants
from pretrain.models.deit import DistilledVisionTransformer
from pretrain.models.dense import DenseTransformer
from pretrain.models.masked import MaskedPatchTransformer
from pretrain.models.vit import build_vit


def _vit(model: ModelConfig, num_classes: int) -> nn.Module:
    if model.head == "dense":
        return DenseTransformer(model, num_classes)
    if model.distilled:
        return DistilledVisionTransformer(model, num_classes)
    return MaskedPatchTransformer(model, num_classes) if model.mask_token else build_vit(model, num_classes)


def _timm(model: ModelConfig, num_classes: int) -> nn.Module:
    from pretrain.models.timm_backbone import build_timm

    return build_timm(model, num_classes)


MODELS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "vit": _vit,
    "timm": _timm,
}


def build_model(model: ModelConfig, num_classes: int) -> nn.Module:
    """Builds the architecture ``model.name`` with a head of ``num_classes``, on torch's default device.

    Raises:
        ConfigError: no such architecture, or an impossible one.
    """
    family = model.name.partition("/")[0]
    if family not in MODELS:
        known = ", ".join("timm/NAME" if name == "timm" else name for name in MODELS)
        raise ConfigError(f"model.name: unknown architecture {model.name!r}; known are {known}")
    return MODELS[family](model, num_classes)


def build_frozen(model: ModelConfig, num_classes: int) -> nn.Module:
    """The same for inference only, in evaluation mode and without gradients.

    Raises:
        ConfigError: no such architecture, or an impossible one.
    """
    if model.is_timm:
        from pretrain.models.timm_backbone import build_frozen

        net = build_frozen(model, num_classes)
    else:
        net = build_model(model, num_classes)
    return net.eval().requires_grad_(False)


def init_weights(model: nn.Module, seed: int) -> None:
    """Sets every tensor of a whole (unsharded) model to its initial value: a function of (seed, config).

    Raises:
        LookupError: the model has a tensor that no rule explains.
    """
    own = getattr(model, "init_weights", None)
    if own is not None:
        own(seed)
    else:
        init.init_weights(model, seed)


def tensor_shapes(model: ModelConfig, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor in the weights of ``model``, running statistics included.

    Raises:
        ConfigError: an impossible architecture.
    """
    if model.is_timm:
        from pretrain.models.timm_backbone import frozen_shapes

        return frozen_shapes(model, num_classes)
    return variants.parameter_shapes(model, num_classes)


def uses_generator(model: nn.Module) -> bool:
    """Whether a training forward pass draws from torch's generator, which the engine then reseeds."""
    own = getattr(model, "uses_generator", None)
    return bool(own) if own is not None else model.config.dropout > 0  # type: ignore[union-attr]


def takes_any_size(model: ModelConfig) -> bool:
    """Whether weights of ``model`` serve images of any size as they are (convolutions; no window or position grid)."""
    if not model.is_timm:
        return False
    from pretrain.models.timm_backbone import has_img_size

    return not has_img_size(model)


def classifier_layers(model: nn.Module) -> list[nn.Module]:
    """The last layers, whose input are a model's features: one, or two of a distilled model."""
    if hasattr(model, "get_classifier"):  # one of timm's
        from pretrain.models.timm_backbone import classifiers

        return classifiers(model)
    return [layer for name in ("head", "head_dist") if (layer := getattr(model, name, None)) is not None]

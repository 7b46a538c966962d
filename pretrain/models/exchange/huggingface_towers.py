"""Which classes of transformers are our Vision Transformers, and the config of ours that computes the same.

A row names the place of the tower in the class, the head behind it and the tensors that do not belong to it. The
numbers come from config.json; those it leaves out are the defaults of transformers' config classes, as transformers
reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.mae import FIXED, decoder_of
from pretrain.models.exchange.translation import named_config
from pretrain.models.variants import Size

GELU = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}


@dataclass(frozen=True)
class Tower:
    """A class of transformers whose image tower is one of our Vision Transformers.

    Attributes:
        kind: key of ``DEFAULTS``.
        prefix: of the names of the tower's tensors; some versions write a part of them without it.
        heads: our head → theirs.
        unused: prefixes of tensors that do not contribute to the tower's output: a decoder, a text tower.
        options: settings of ModelConfig that the class decides.
        has_decoder: it is a masked autoencoder with its decoder.
    """

    kind: str
    prefix: str = ""
    heads: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    has_decoder: bool = False


_BASE = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "num_channels": 3,
    "qkv_bias": True, "use_swiglu_ffn": False, "vision_use_head": True, "pooler_act": "tanh",
}  # fmt: skip
_DINOV2 = _BASE | {"layer_norm_eps": 1e-6, "patch_size": 14, "mlp_ratio": 4, "layerscale_value": 1.0}
_SIGLIP = _BASE | {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}
# Values that config.json leaves out. Source: the config classes of transformers 5.
DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": _BASE,
    "deit": _BASE,
    "vit_mae": _BASE
    | {"decoder_hidden_size": 512, "decoder_num_hidden_layers": 8}
    | {"decoder_num_attention_heads": 16, "decoder_intermediate_size": 2048},
    "vit_msn": _BASE | {"layer_norm_eps": 1e-6},
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2 | {"patch_size": 16, "num_register_tokens": 4},
    "siglip_vision_model": _SIGLIP,
    "siglip2_vision_model": _SIGLIP | {"num_patches": 256},
}
_HEAD = {"head": "classifier"}
_TEXT = ("text_model.", "logit_scale", "logit_bias")
_MAP = {"class_token": False, "pool": "map"}
_MEAN = {"class_token": False, "pool": "norm_avg"}

TOWERS: dict[str, Tower] = {
    # architectures[0] of config.json
    "ViTForImageClassification": Tower("vit", "vit.", _HEAD),
    "ViTModel": Tower("vit"),
    "ViTForMaskedImageModeling": Tower("vit", "vit.", unused=("decoder.",)),
    "ViTMSNModel": Tower("vit_msn"),
    "ViTMSNForImageClassification": Tower("vit_msn", "vit.", _HEAD),
    "ViTMAEModel": Tower("vit_mae"),
    "ViTMAEForPreTraining": Tower("vit_mae", "vit.", has_decoder=True),
    "DeiTModel": Tower("deit", options={"num_registers": 1}),
    "DeiTForMaskedImageModeling": Tower("deit", "deit.", unused=("decoder.",), options={"num_registers": 1}),
    "DeiTForImageClassification": Tower("deit", "deit.", _HEAD, options={"num_registers": 1}),
    "DeiTForImageClassificationWithTeacher": Tower(
        "deit",
        "deit.",
        {"head": "cls_classifier", "head_dist": "distillation_classifier"},
        options={"distilled": True},
    ),
    "Dinov2Model": Tower("dinov2"),
    "Dinov2WithRegistersModel": Tower("dinov2_with_registers"),
    "SiglipVisionModel": Tower("siglip_vision_model", "vision_model.", options=_MAP),
    "SiglipModel": Tower("siglip_vision_model", "vision_model.", unused=_TEXT, options=_MAP),
    "SiglipForImageClassification": Tower(
        "siglip_vision_model", "vision_model.", _HEAD, (*_TEXT, "vision_model.head."), _MEAN
    ),
    "Siglip2VisionModel": Tower("siglip2_vision_model", "vision_model.", options=_MAP),
    "Siglip2Model": Tower("siglip2_vision_model", "vision_model.", unused=_TEXT, options=_MAP),
    "Siglip2ForImageClassification": Tower(
        "siglip2_vision_model", "vision_model.", _HEAD, (*_TEXT, "vision_model.head."), _MEAN
    ),
}

# Towers of which the pooled output is what ours computes without a head.
POOLED = frozenset({"ViTModel", "Dinov2Model", "Dinov2WithRegistersModel", "SiglipVisionModel"})


class UnlikeOursError(CheckpointError):
    """A class of ``TOWERS`` with a setting that our Vision Transformer does not have."""


def settings_of(tower: Tower, content: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The settings of the image tower: those of config.json (of its ``vision_config``), completed by the defaults.

    Raises:
        CheckpointError: a number is missing or has another type.
    """
    own = content.get("vision_config") or content
    settings = DEFAULTS[tower.kind] | {name: value for name, value in own.items() if value is not None or name in _SIZE}
    for name in _SIZE:
        if not isinstance(settings[name], int):
            raise CheckpointError(f"{where}: {name}: {settings[name]!r} is not a number; copy or export it again")
    return settings


_SIZE = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")


def tower_config(tower: Tower, settings: Mapping[str, Any], found: Mapping[str, Tensor], where: Path) -> ModelConfig:
    """The config of ours that computes the same.

    Args:
        tower: the row of the class.
        settings: see ``settings_of``.
        found: the tower's tensors under our names.
        where: config.json, for errors.

    Raises:
        UnlikeOursError: our Vision Transformer has no such setting. CheckpointError: the numbers make no model.
    """
    patch, has_pooler = _pair(settings["patch_size"]), "pre_logits.fc.weight" in found
    _require_ours(settings, where, has_pooler=has_pooler)
    options = dict(tower.options)
    if options.get("pool") == "map" and not settings["vision_use_head"]:
        options["pool"] = "norm_avg"
    if "reg_token" in found and "num_registers" not in options:
        options |= {"num_registers": found["reg_token"].shape[1], "pos_embed_prefix": False}
    if tower.has_decoder:
        options |= {"decoder": decoder_of(settings), "pos_embed": FIXED}
    if "layerscale_value" in settings:
        options["layer_scale"] = settings["layerscale_value"]
    return named_config(
        where,
        Size(settings[_SIZE[0]], settings[_SIZE[1]], _mlp_dim(settings), settings["num_attention_heads"]),
        patch=patch[0],
        img_size=_img_size(settings, patch[0], where),
        gelu=GELU[settings["hidden_act"]],
        layer_norm_eps=settings["layer_norm_eps"],
        representation_size=found["pre_logits.fc.weight"].shape[0] if has_pooler else None,
        mask_token="mask_token" in found,
        **options,
    )


def _require_ours(settings: Mapping[str, Any], where: Path, *, has_pooler: bool) -> None:
    patch = _pair(settings["patch_size"])
    if settings["num_channels"] != 3:
        raise CheckpointError(
            f"{where}: num_channels: {settings['num_channels']} is not read, only 3; name other weights"
        )
    for name, only in (("qkv_bias", True), ("use_swiglu_ffn", False)):
        if settings[name] != only:
            raise UnlikeOursError(f"{where}: {name}: {settings[name]!r} is not read, only {only}; name other weights")
    if settings["hidden_act"] not in GELU:
        raise UnlikeOursError(f"{where}: hidden_act: {settings['hidden_act']!r} is not read, only {', '.join(GELU)}")
    if has_pooler and settings["pooler_act"] != "tanh":
        raise UnlikeOursError(f"{where}: pooler_act: {settings['pooler_act']!r} is not read, only tanh")
    if patch[0] != patch[1]:
        raise UnlikeOursError(f"{where}: patch_size: {patch} is not read; patches must be square")


def _mlp_dim(settings: Mapping[str, Any]) -> int:
    return (
        int(settings["hidden_size"] * settings["mlp_ratio"])
        if "mlp_ratio" in settings
        else settings["intermediate_size"]
    )


def _img_size(settings: Mapping[str, Any], patch: int, where: Path) -> tuple[int, int]:
    """(height, width) in pixels; SigLIP 2's positions belong to a square grid, whatever the images' sizes are."""
    if "num_patches" not in settings:
        return _pair(settings["image_size"])
    side = math.isqrt(settings["num_patches"])
    if side * side != settings["num_patches"]:
        raise CheckpointError(f"{where}: num_patches: {settings['num_patches']} is not a square; export it again")
    return side * patch, side * patch


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))

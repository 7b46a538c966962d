"""The parameters that autocast casts, by name, against the layers of the networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.families.registry import build_model, family_of

TINY: dict[str, Any] = {"variant": "mu/4", "img_size": 8, "depth": 1}
# DeepSpeed 0.19, runtime/torch_autocast.py, LOWER_PRECISION_SAFE_MODULES; it compares classes, not instances.
CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@pytest.mark.parametrize(
    "settings",
    [
        {**TINY, "representation_size": "width"},
        {**TINY, "pool": "map", "class_token": False},
        {**TINY, "head": "dense", "pool": "norm_avg", "class_token": False},
        {**TINY, "distilled": True, "pos_embed": "relative_1d"},
        {**TINY, "mask_token": True, "pos_embed": "relative_bias"},
        {**TINY, "qk_norm": True, "layer_scale": 1e-4, "num_registers": 2},
        {**TINY, "rope": "mixed", "mlp": "swiglu", "norm": "rms_norm", "gated_attention": True, "qkv_bias": False},
        {**TINY, "decoder": {"embed_dim": 16, "depth": 1, "num_heads": 2}},
        {**TINY, "patch_sizes": (2, 4)},
        {**TINY, "block": "parallel", "qk_norm": True, "layer_scale": 0.1},
        {"variant": "R50+S/16", "img_size": 64},
        {"name": "timm/resnet18", "img_size": 32},
    ],
)
def test_they_are_those_of_dense_and_convolution_layers(settings: dict[str, Any]) -> None:
    model = ModelConfig(**settings)
    with torch.device("meta"):
        net = build_model(model, 5)
    layers = {name: layer for name, layer in net.named_modules() if type(layer) in CAST}
    names = {f"{name}.{own}" for name, layer in layers.items() for own, _ in layer.named_parameters(recurse=False)}
    assert family_of(model).cast_names(model, 5) == names

"""Multiply-adds in closed form against torch's FLOP counter on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config.schema.model import ModelConfig
from pretrain.models.cost import forward_macs, training_flops
from pretrain.models.families.registry import build_model


@pytest.mark.parametrize(
    "changes",
    [
        {"variant": "B/16"},
        {"variant": "B/16", "img_size": (160, 224), "pool": "norm_avg", "class_token": False},
        {"variant": "S/32", "representation_size": "width"},
        {"variant": "nano/8", "img_size": 32, "representation_size": 17},
        {"variant": "S/16", "pool": "map", "num_registers": 2, "qk_norm": True, "layer_scale": 0.1},
        {"variant": "nano/8", "img_size": 32, "pos_embed": "relative_1d"},
        {"variant": "nano/8", "img_size": 32, "pos_embed": "relative_bias"},
        {"variant": "nano/8", "img_size": 32, "pos_embed": "rope_2d"},
        {"variant": "R50+S/16"},
        {"variant": "R50+S/32", "img_size": (224, 288)},
        {"variant": "S/16", "img_size": (64, 96), "head": "dense"},
    ],
)
def test_macs_equal_torchs_count(changes: dict[str, Any]) -> None:
    config, num_classes, num_images = ModelConfig(**changes), 100, 2
    with torch.device("meta"):
        model: Any = build_model(config, num_classes)
        images = torch.empty(num_images, 3, *model.shape.img_size)
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert counter.get_total_flops() == 2 * num_images * forward_macs(config, num_classes)


def test_training_is_three_forward_passes() -> None:
    config = ModelConfig(variant="S/16")
    assert training_flops(config, 10, 5) == 5 * 3 * 2 * forward_macs(config, 10)

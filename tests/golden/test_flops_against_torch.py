"""Multiply-adds in closed form against torch's FLOP counter on the meta device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config.schema.model import ModelConfig
from pretrain.models.cost import forward_macs
from pretrain.models.families.registry import build_model, training_flops
from pretrain.models.layers.patch_drop import kept_patches
from pretrain.sharding.work import image_flops
from tests.unit.data.sets import experiment


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
        {"variant": "nano/8", "img_size": 32, "pos_embed": "none", "rope": "axial"},
        {"variant": "nano/8", "img_size": 32, "rope": "mixed", "gated_attention": True, "qkv_bias": False},
        {"variant": "S/16", "block": "parallel"},
        {"variant": "S/16", "patch_drop": 0.5, "rope": "axial", "pool": "map"},
        {"variant": "S/16", "mlp": "swiglu", "norm": "rms_norm", "pool": "map"},
        {"variant": "S/16", "patch_drop": 0.75, "num_registers": 1, "decoder": {"depth": 2}},
        {"variant": "R50+S/16"},
        {"variant": "R50+S/32", "img_size": (224, 288)},
        {"variant": "S/16", "img_size": (64, 96), "head": "dense"},
        {"variant": "S/16", "img_size": (64, 96), "head": "patches", "representation_size": 100},
        {"variant": "S/16", "img_size": (64, 96), "head": "pooled_and_patches"},
    ],
)
def test_macs_equal_torchs_count(changes: dict[str, Any]) -> None:
    config, num_classes, num_images = ModelConfig(**changes), 100, 2
    with torch.device("meta"):
        model: Any = build_model(config, num_classes)
        images = torch.empty(num_images, 3, *model.shape.img_size)
    with FlopCounterMode(display=False) as counter:
        model(images, **_kept(model))
    assert counter.get_total_flops() == 2 * num_images * forward_macs(config, num_classes)


def test_macs_of_padded_sequences_equal_torchs_count() -> None:
    """Those of the length, whatever the aspect ratio of the images."""
    transforms = {"data__train_transform": {"crop": "native", "max_tokens": 60}}
    transforms["data__eval_transform"] = {"resize": "native", "max_tokens": 60}
    model_keys = {"variant": "S/16", "depth": 2, "pos_embed": "none", "rope": "axial", "pool": "map"}
    config = experiment("none", 9, **transforms, model=model_keys)
    with torch.device("meta"):
        model: Any = build_model(config.model, config.num_outputs)
        strips, grids = torch.empty(2, 3, 16, 16 * 60), torch.ones(2, 2, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(strips, grids=grids)
    assert counter.get_total_flops() * 3 == pytest.approx(2 * image_flops(config))


def _kept(model: Any) -> dict[str, Any]:
    """The patches that training keeps, for a model that drops some."""
    kept = kept_patches(np.arange(2), model.shape, seed=0)
    return {} if kept is None else {"kept": kept.to("meta")}


def test_training_is_three_forward_passes() -> None:
    config = ModelConfig(variant="S/16")
    assert training_flops(config, 10, 5) == 5 * 3 * 2 * forward_macs(config, 10)

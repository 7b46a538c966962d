"""Learning-rate scales of layer-wise decay against timm's ``param_groups_layer_decay`` on the same models."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.optim.elementwise import AdamWConfig
from pretrain.models.families.registry import build_model
from pretrain.optim.optimizers import build_optimizer

DECAY = 0.65


def scales(groups: list[dict], model: nn.Module) -> dict[str, float]:
    of = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    return {name: of[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("ours", "theirs", "kwargs"),
    [
        ({"variant": "Ti/16"}, "vit_tiny_patch16_224", {}),
        ({"variant": "Ti/16", "pool": "avg_norm", "num_registers": 4}, "vit_tiny_patch16_224",
         {"global_pool": "avg", "reg_tokens": 4}),
        ({"variant": "Ti/16", "pool": "map", "class_token": False}, "vit_tiny_patch16_224",
         {"global_pool": "map", "class_token": False}),
        ({"variant": "Ti/16", "distilled": True}, "deit_tiny_distilled_patch16_224", {}),
        ({"name": "timm/swin_tiny_patch4_window7_224"}, "swin_tiny_patch4_window7_224", {}),
        ({"name": "timm/pvt_v2_b0"}, "pvt_v2_b0", {}),
    ],
)  # fmt: skip
def test_scales_equal_timms(ours: dict, theirs: str, kwargs: dict) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig.model_validate(ours), 10)
        peer = timm.create_model(theirs, num_classes=10, **kwargs)
    config = AdamWConfig(lr=1e-3, weight_decay=0.05, layer_decay=DECAY)
    found = scales(build_optimizer(model, config).param_groups, model)
    wanted = scales(param_groups_layer_decay(peer, 0.05, layer_decay=DECAY), peer)
    assert found == pytest.approx(wanted)
    assert len(set(found.values())) > 5

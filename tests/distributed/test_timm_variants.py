"""Parts of foundation models in timm's modules train at every sharding, with layer-wise decay and frozen tensors."""

from __future__ import annotations

from typing import Any

import pytest

from pretrain.config.schema.experiment import Experiment
from tests.distributed.test_backbones import ALL_SHARDED, losses
from tests.distributed.training import experiment
from tests.pool import Pool

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 2}
# parts → the model
MODELS: dict[str, dict[str, Any]] = {
    "LayerScale, registers, SwiGLU": {"name": "timm/vit_giant_patch14_reg4_dinov2", "img_size": 28},
    "RoPE, attention pooling": {"name": "timm/vit_pe_core_tiny_patch16_384", "img_size": 32},
    "RoPE, query and value biases, GLU": {"name": "timm/eva02_tiny_patch14_224", "img_size": 28},
}
FROZEN = {"pattern": "^patch_embed", "freeze": True}
LAYOUTS = {
    "ZeRO-1": ("deepspeed", {"cluster__zero_stage": 1}),
    "ZeRO-2": ("deepspeed", {"cluster__zero_stage": 2}),
    "ZeRO-3": ("deepspeed", {"cluster__zero_stage": 3, "cluster__deepspeed": ALL_SHARDED}),
    "DDP": ("accelerate", {"cluster__zero_stage": 0}),
}
FAST = [(parts, "ZeRO-3", "full") for parts in list(MODELS)[:2]]
CASES = [
    pytest.param(parts, layout, policy, marks=() if (parts, layout, policy) in FAST else pytest.mark.slow)
    for parts in MODELS
    for layout in LAYOUTS
    for policy in ("none", "full")
]


def settings(parts: str, **changes: Any) -> Experiment:
    model = {"head_init": "normal", "kwargs": SMALL, **MODELS[parts]}
    tuned = {"optim__layer_decay": 0.5, "optim__overrides": [FROZEN], "cluster__micro_batch_size": 4}
    return experiment(model=model, **tuned, **changes)


@pytest.mark.parametrize(("parts", "layout", "policy"), CASES)
def test_any_layout_gives_the_losses_of_one_without_sharding(pool2: Pool, parts: str, layout: str, policy: str) -> None:
    plain = losses(pool2, settings(parts, cluster__zero_stage=0))
    kind, cluster = LAYOUTS[layout]
    values = losses(pool2, settings(parts, **cluster, cluster__activation_checkpointing=policy), kind)
    assert list(values.values()) == pytest.approx(list(plain.values()), rel=2e-5)
    assert plain[5] < plain[1] - 1e-3, "the loss must move, or equality says nothing"

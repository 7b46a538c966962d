"""Costs and training of timm's models with every pooling that timm has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.config.schema.model import ModelConfig
from pretrain.models.families.registry import build_model, family_of, forward_macs

SMALL: dict[str, Any] = {"depth": 1, "embed_dim": 32, "num_heads": 2}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {"global_pool": "token"}),
    ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    ("vit_tiny_patch16_224", {"global_pool": "max"}),
    ("vit_tiny_patch16_224", {"global_pool": "avgmax"}),
    ("vit_tiny_patch16_224", {"global_pool": "map"}),
    ("vit_tiny_patch16_224", {"global_pool": "prr", "class_token": False}),
    ("vit_pe_core_tiny_patch16_384", {"global_pool": "map"}),
    ("vit_small_patch16_dinov3", {"global_pool": "avg"}),
    ("beit_base_patch16_224", {"global_pool": "avg"}),
]


@pytest.mark.parametrize(("name", "pooling"), CASES)
def test_costs_are_measured_and_every_tensor_is_trained(name: str, pooling: dict[str, Any]) -> None:
    model = ModelConfig(name=f"timm/{name}", img_size=64, head_init="normal", kwargs=SMALL | pooling)
    net = build_model(model, 3).train()
    assert forward_macs(model, 3) > 16 * 12 * 32 * 32  # the dense layers of one block, for 16 patches
    assert forward_macs(model, 3) - forward_macs(model, 3, with_head=False) == 3 * 32
    footprint = family_of(model).footprint(model, 3, precision="fp32")
    assert footprint.kept > 0 and footprint.parameters == sum(each.numel() for each in net.parameters())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    net(images).square().sum().backward()
    assert [key for key, each in net.named_parameters() if each.grad is None] == []


def test_tokens_that_are_not_pooled_are_no_logits() -> None:
    from pretrain.errors import ConfigError

    with pytest.raises(ConfigError, match=r"gives \(17, 3\) per image, not 3 logits.*global_pool"):
        build_model(ModelConfig(name="timm/vit_tiny_patch16_224", img_size=64, kwargs=SMALL | {"global_pool": ""}), 3)

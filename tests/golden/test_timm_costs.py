"""Costs of timm's backbones against their papers and model cards and against our closed forms."""

from __future__ import annotations

from typing import Any

import pytest

from pretrain.config.schema.model import ModelConfig
from pretrain.models import cost
from pretrain.models.families.protocol import Precision
from pretrain.models.families.registry import build_model, family_of, forward_macs, num_parameters, training_flops
from pretrain.sharding.protocol import Memory
from pretrain.sharding.replicated import ZERO_0
from pretrain.sharding.step import DeepSpeedSettings
from pretrain.sharding.zero import Zero
from tests.unit.models.families.test_timm import config
from tests.unit.sharding import steps

# parameters in millions and multiply-adds in thousand millions of one image at 224 pixels, 1,000 classes
PUBLISHED = {
    "swin_tiny_patch4_window7_224": (28.29, 4.5),  # Swin (2103.14030) Table 1: 29 M, 4.5 G
    "pvt_v2_b0": (3.67, 0.57),  # PVT v2 (2106.13797) Table 1: 3.4 M and 0.6 G; its code prints 3.67 M
    "resnetv2_50x1_bit": (25.55, 4.09),  # ResNet-50: 25.5 M, 4.1 G
    "deit_tiny_patch16_224": (5.72, 1.26),  # DeiT (2012.12877) Table 1: 5 M; DeiT III's README: 1.3 G
}


def kept(model: ModelConfig, num_classes: int, precision: Precision, checkpointing: str = "none") -> int:
    return family_of(model).footprint(model, num_classes, precision=precision, checkpointing=checkpointing).kept


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    model, (parameters, macs) = ModelConfig(name=f"timm/{name}"), PUBLISHED[name]
    assert num_parameters(model, 1000) / 1e6 == pytest.approx(parameters, abs=0.005)
    assert forward_macs(model, 1000) / 1e9 == pytest.approx(macs, rel=0.01)
    assert training_flops(model, 1000, 10) == 60 * forward_macs(model, 1000)


def test_the_same_architecture_costs_the_same_by_both_ways() -> None:
    ours, theirs = ModelConfig(variant="Ti/16"), ModelConfig(name="timm/vit_tiny_patch16_224")
    for with_head in (True, False):
        counts = [num_parameters(model, 10, with_head=with_head) for model in (ours, theirs)]
        assert counts[0] == counts[1]
    assert forward_macs(theirs, 10) == pytest.approx(forward_macs(ours, 10), rel=1e-6)


def test_activations_of_the_same_architecture_are_near_the_closed_form() -> None:
    """On the meta device the attention matrix is counted: more than fused attention keeps, and never less."""
    ours = ModelConfig(variant="Ti/16", depth=2)
    theirs = ModelConfig(name="timm/vit_tiny_patch16_224", kwargs={"depth": 2})
    expected = cost.activation_bytes(ours, 10, precision="fp32") + cost.working_bytes(ours, precision="fp32")
    found = kept(theirs, 10, "fp32")
    matrices = 4 * 2 * 3 * 197**2 * 4  # logits, weights and their gradients of two blocks with three heads
    assert expected * 0.9 < found < expected + matrices


@pytest.mark.parametrize("family", ["swin", "pvt_v2", "bit", "deit"])
def test_checkpointing_and_bf16_need_less(family: str) -> None:
    model = config(family)
    plain = kept(model, 5, "fp32")
    assert kept(model, 5, "bf16") < plain
    assert kept(model, 5, "fp32", "full") < plain


def test_memory_of_a_device() -> None:
    model, total = config("pvt_v2"), sum(p.numel() for p in build_model(config("pvt_v2"), 5).parameters())

    def held(stage: int, precision: Precision = "fp32", micro: int = 4) -> Memory:
        settings: dict[str, Any] = {"precision": precision, "num_devices": 2, "micro_batch_size": micro}
        settings["deepspeed"] = DeepSpeedSettings(persistence_threshold=1000)
        return steps.memory(Zero(stage) if stage else ZERO_0, model, 5, **settings)

    padded = total + -total % 4
    assert held(0).weights == held(0).gradients == 4 * total and held(0).optimizer == 8 * total
    assert held(1).optimizer == 12 * padded // 2 and held(2).gradients == 4 * padded // 2
    assert held(3).weights < held(2).weights and held(1, "bf16").weights == 2 * padded
    assert held(1, micro=8).activations == 2 * held(1).activations

"""FLOPs of a step with frozen weights against torch's count of a forward and a backward pass, on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config.schema.experiment import Experiment
from pretrain.models.adapters import adapters_of
from pretrain.models.families.registry import build_frozen, build_model, training_flops
from pretrain.models.layers.lora import _insert
from pretrain.sharding.work import image_flops
from tests.distributed.training import experiment

VIT = {"variant": "S/16", "img_size": 224}
SWIN = {"name": "timm/swin_tiny_patch4_window7_224", "img_size": 224}
NUM_IMAGES = 2


def counted(config: Experiment) -> float:
    """torch's count for one image."""
    lora = config.optim.lora
    with torch.device("meta"):
        net = (build_model if lora is None else build_frozen)(config.model, config.num_outputs)
        trained = None
        if lora is not None:
            adapters = adapters_of(config.model, config.num_outputs, lora)
            _insert(net, adapters, lora)
            trained = adapters.trained
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.startswith("head.") if trained is None else name in trained)
        images = torch.empty(NUM_IMAGES, 3, *config.model.size)
    with FlopCounterMode(display=False) as counter:
        net.train()(images).sum().backward()
    return counter.get_total_flops() / NUM_IMAGES


@pytest.mark.parametrize(
    ("model", "optim"),
    [
        (VIT, {"lora": {"rank": 16}}),
        (VIT, {"lora": {"rank": 4, "targets": ["qkv"]}}),
        (VIT, {"overrides": [{"pattern": r"^(?!head\.)", "freeze": True}]}),
        (SWIN, {"lora": {"rank": 16}}),
    ],
)
def test_flops_are_those_that_torch_counts(model: dict[str, Any], optim: dict[str, Any]) -> None:
    config = experiment(model=model, optim={"name": "adamw", "lr": 1e-3, **optim})
    assert image_flops(config) == pytest.approx(counted(config), rel=0.03)
    assert image_flops(config) < 0.8 * training_flops(config.model, config.num_outputs, 1)


def test_without_frozen_weights_they_are_three_forward_passes() -> None:
    config = experiment(model=VIT)
    assert image_flops(config) == training_flops(config.model, config.num_outputs, 1)

"""The blocks that are gathered together where weights are sharded."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.families.registry import build_model, family_of
from pretrain.models.units import listed_blocks
from tests.distributed.test_backbones import FAMILIES

EXPECTED = {
    "vit": ["blocks.0", "blocks.1"],
    "swin": ["layers.0.blocks.0", "layers.1.blocks.0"],
    "pvt_v2": [f"stages.{index}.blocks.0" for index in range(4)],
    "timm_deit": ["blocks.0", "blocks.1"],
    "hf_clip": [f"body.vision_model.encoder.layers.{index}" for index in range(2)],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_units_of_a_family_are_those_of_its_networks(name: str) -> None:
    settings: dict[str, Any] = FAMILIES[name][0]
    config = ModelConfig(**settings)
    assert build_model(config, 5).units() == EXPECTED[name] == list(family_of(config).units(config, 5))  # type: ignore[operator]


class Pair(nn.Module):
    """Two layers."""

    def __init__(self, second: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), second or nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_only_innermost_blocks_of_several_layers_that_share_nothing() -> None:
    shared = nn.Linear(2, 2)
    net = nn.Module()
    net.stem = Pair()  # in no list
    net.single = nn.ModuleList([nn.Linear(2, 2)])  # one layer
    net.stages = nn.Sequential(nn.Sequential(Pair(), Pair()), Pair())
    net.tied = nn.ModuleList([Pair(shared), Pair(shared)])
    assert listed_blocks(net) == ["stages.0.0", "stages.0.1", "stages.1"]
